"""The benchmark of language models at sizes where it takes seconds; tables, refusals."""

import numpy as np
import pytest

from experiments.benchmarks.language import config
from experiments.benchmarks.language.ours import make_job, make_prompts
from experiments.benchmarks.language.report import (
    memory_table,
    seconds_table,
    targets,
    tokens,
)
from experiments.benchmarks.language.run import turns
from experiments.benchmarks.language.shapes import SHAPES, kernels
from experiments.benchmarks.report import by_job
from jaxcl.runs.command import main
from jaxcl.runs.folder import read_records

SMOKE = config.PRESETS["smoke"]


def start(folder, *words):
    argv = ["smoke", *words, "--out", str(folder)]
    return main(config.EXPERIMENT, argv)


@pytest.mark.slow
def test_the_smoke_preset_does_every_job(tmp_path, capsys):
    """Oracle: the jobs asked for, and laws of what they measure."""
    assert start(tmp_path / "lm") == 0
    done = {record["run"]: record for record in read_records(tmp_path / "lm")}
    assert set(done) == {turn.name for turn in turns(SMOKE, ())}
    assert all(record.get("cpu", 1) > 0 for record in done.values())
    # A mean loss of random tokens: that of equal probabilities, by small weights.
    for what in ("step", "lora", "sam"):
        loss = done[f"round=0/tiny-{what}/jaxcl"]["loss"]
        np.testing.assert_allclose(loss, np.log(64), rtol=0.05)
    assert done["round=0/tiny-generate_5/jaxcl"]["tokens"] == 5 * SMOKE.new_tokens
    memory = done["round=0/tiny-memory/jaxcl"]
    assert 6 <= memory["state"] / memory["adapter"] < 6.1
    text = (tmp_path / "lm" / "tables" / "targets.md").read_text()
    assert "step of an adapter with SAM against without" in text
    assert text in capsys.readouterr().out


def test_others_take_turns_at_what_they_can_do():
    """Oracle: the jobs that are compared, counted; memory is asked once."""
    cut = config.Config(jobs=("small-lora", "small-sam", "smollm2-memory"), rounds=2)
    names = [turn.name for turn in turns(cut, ("transformers",))]
    assert names == [
        *("round=0/small-lora/jaxcl", "round=0/small-lora/transformers"),
        *("round=0/small-sam/jaxcl", "round=0/smollm2-memory/jaxcl"),
        *("round=1/small-lora/jaxcl", "round=1/small-lora/transformers"),
        "round=1/small-sam/jaxcl",
    ]


def test_the_projections_are_those_of_the_model():
    """Oracle: the parameters of a model of this shape, and PEFT's count of an adapter."""
    job = make_job(SMOKE, "tiny", adapter=True)
    found = {}
    for path, shape in shapes_of(job.frozen):
        if path.endswith("kernel"):
            count, inputs, outputs = (1, *shape)[-3:]
            found[inputs, outputs] = found.get((inputs, outputs), 0) + count
    wanted = {}
    for count, *pair in kernels("tiny"):
        wanted[tuple(sorted(pair))] = wanted.get(tuple(sorted(pair)), 0) + count
    pairs = {}
    for pair, count in found.items():
        pairs[tuple(sorted(pair))] = pairs.get(tuple(sorted(pair)), 0) + count
    assert pairs == wanted
    rank = SMOKE.rank * sum(
        count * sum(pair) for count, *pair in kernels("tiny") if count > 1
    )
    assert rank == sum(np.prod(shape) for _, shape in shapes_of(job.trainable))


def shapes_of(tree):
    """Paths and shapes of the leaves of nested dicts, without those of other parts."""
    if not isinstance(tree, dict):
        return [("", tree.shape)] if hasattr(tree, "shape") else []
    return [
        (f"{name}/{path}".rstrip("/"), shape)
        for name, part in tree.items()
        for path, shape in shapes_of(part)
    ]


def test_prompts_are_drawn_once_and_of_a_few_lengths():
    """Oracle: the lengths as listed, and the same tokens again."""
    once, again = (make_prompts(config.Config(), "small", 5) for _ in range(2))
    assert [len(prompt) for prompt in once] == [24, 8, 12, 16, 20]
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert max(map(max, once)) < SHAPES["small"].config.vocab_size


def test_ratios_are_taken_within_rounds_and_seconds_are_medians():
    """Oracle: by hand."""
    line = lambda job, system, number, cpu, **more: {
        **{"job": job, "system": system, "round": number, "cpu": cpu},
        **{"status": "done", **more},
    }
    records = [
        *(
            line("small-lora", "jaxcl", n, s, first_cpu=9.0)
            for n, s in ((0, 2), (1, 4))
        ),
        line("small-lora", "transformers", 0, 1.0, first_cpu=0.5),
        line("small-lora", "transformers", 1, 8.0),
        *(line("small-sam", "jaxcl", n, s) for n, s in ((0, 4), (1, 8.4))),
        line("small-fisher", "jaxcl", 0, 3.0, gradient_cpu=2.0),
        line("smollm2-gradient", "jaxcl", 0, 5.0),
        line("smollm2-products", "jaxcl", 0, 4.0),
        line("smollm2-memory", "jaxcl", 0, 0.0)
        | {"base": 9e6, "adapter": 1e6, "state": 6e6, "temporary": 2e6},
    ]
    jobs = tuple(dict.fromkeys(record["job"] for record in records))
    small, done = config.Config(jobs=jobs, rounds=2), by_job(records)
    found = {target.what.split(": ")[1]: target for target in targets(done)}
    assert found["step of an adapter against torch"].values == [2.0, 0.5]
    sam = found["step of an adapter with SAM against without"].values
    np.testing.assert_allclose(sam, [2.0, 2.1])
    assert found["Fisher of an adapter against its gradient"].values == [1.5]
    assert found["gradient against its products alone"].values == [1.25]
    row = seconds_table(small, done).rows[0]
    assert row[2:] == (3.0, 1024 / 3, 9.0, 4.5, 1024 / 4.5, 0.5, 1.25, "0.50 to 2.00")
    assert memory_table(done).rows == (("SmolLM2-135M", 9e6, 1e6, 6e6, 2e6, 6.0),)
    assert tokens(small, "small-fisher") == 128 * 128
    assert tokens(small, "smollm2-generate_5") == 5 * 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--jobs", "small-lara"],
            "jobs: unknown 'small-lara'; did you mean small-lora?",
        ),
        (["--jobs", "bert-generate_1"], "jobs: unknown 'bert-generate_1'"),
        (["--rounds", "0"], "rounds: expected"),
        (["--fisher-rows", "3"], "fisher_rows: expected a multiple"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(words, message, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the trouble."""
    assert start(tmp_path / "lm", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "lm").exists()


def test_an_interpreter_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    """Oracle: exit code 2, and the file that an environment is made from."""
    monkeypatch.setenv("JAXCL_PEERS_PYTHON", str(tmp_path / "python"))
    assert start(tmp_path / "lm") == 2
    assert "third_party/peers/requirements-transformers.txt" in capsys.readouterr().err
