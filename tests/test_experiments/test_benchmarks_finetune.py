"""The benchmark of fine-tuning at sizes where it takes seconds; tables, refusals."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from experiments.benchmarks.finetune import config
from experiments.benchmarks.finetune.first_step import PARTS, between
from experiments.benchmarks.finetune.report import (
    ratios,
    start_table,
    steps_table,
    targets,
)
from experiments.benchmarks.finetune.run import turns
from experiments.benchmarks.report import by_job
from jaxcl.data.widths import row_lengths
from jaxcl.memory import reservoir
from jaxcl.runs.command import main
from jaxcl.runs.folder import read_records
from jaxcl.tree import as_batch, at
from tests.steps import seen

SMOKE = config.PRESETS["smoke"]


def start(folder, *words):
    argv = ["smoke", *words, "--out", str(folder)]
    return main(config.EXPERIMENT, argv)


@pytest.mark.slow
def test_the_smoke_preset_does_every_job(tmp_path, capsys):
    """Oracle: the jobs asked for, and laws of what they measure; no time is asserted."""
    pytest.importorskip("transformers")
    assert start(tmp_path / "ft") == 0
    done = {record["job"]: record for record in read_records(tmp_path / "ft")}
    assert set(done) == set(SMOKE.jobs)
    steps, loop = done["tiny-steps"], done["loop"]
    for what in SMOKE.methods:
        assert steps[f"{what}_cpu"] > 0
        assert steps[f"{what}_flops"] > 0
    assert steps["update_cpu"] > 0
    # An average adds little to a step with replay, I-LoRA a pass over the replayed rows.
    flops = [steps[f"{what}_flops"] for what in ("er", "average", "ilora")]
    assert flops[0] < flops[1] < 1.01 * flops[0] < 1.1 * flops[0] < flops[2]
    assert loop["steps"] == SMOKE.loop_steps - config.REPORT_EVERY
    held = by_job(list(done.values()))
    pairs = ("average", "er"), ("ilora", "er"), ("update", "er")
    found = [ratios(held, "tiny-steps", *pair) for pair in pairs]
    found.append(ratios(held, "loop", "learn", "bare"))
    assert all(len(one) == 1 and 0 < one[0] < math.inf for one in found)
    padding, began = done["padding"], done["start"]
    assert 0 <= padding["padding"] < padding["padding_of_one_width"] < 1
    assert all(began[part] >= 0 for part in PARTS)
    np.testing.assert_allclose(
        sum(began[part] for part in PARTS), began["total"], atol=0.01
    )
    assert began["programs"] == sum(began[f"{part}_programs"] for part in PARTS)
    assert min(began["planning_programs"], began["compiling_programs"]) > 0
    assert began["imports_programs"] == began["first_run_programs"] == 0
    text = (tmp_path / "ft" / "tables" / "targets.md").read_text()
    assert "I-LoRA against replay" in text
    assert text in capsys.readouterr().out


def test_jobs_take_turns_and_padding_is_asked_once():
    """Oracle: the jobs of two rounds, in words."""
    cut = config.Config(jobs=("small-steps", "padding", "loop"), rounds=2)
    names = [turn.name for turn in turns(cut)]
    assert names == [
        *("round=0/small-steps", "round=0/padding", "round=0/loop"),
        *("round=1/small-steps", "round=1/loop"),
    ]


def test_ratios_are_taken_within_rounds_and_seconds_are_medians():
    """Oracle: by hand."""
    line = lambda job, number, **more: {
        **{"job": job, "round": number, "status": "done"},
        **more,
    }
    one = {"er_first_cpu": 9.0, "ilora_first_cpu": 9.5, "er_flops": 1e6}
    one["ilora_flops"] = 3e6
    records = [
        line("small-steps", 0, er_cpu=2.0, ilora_cpu=3.0, update_cpu=0.01, **one),
        line("small-steps", 1, er_cpu=4.0, ilora_cpu=5.0, update_cpu=0.01, **one),
        line("loop", 0, learn_cpu=1.02, bare_cpu=1.0),
        line("padding", 0, padding=0.125),
    ]
    done = by_job(records)
    small = config.Config(jobs=("small-steps",), methods=("er", "ilora"))
    found = {target.what.split(": ")[-1]: target for target in targets(done)}
    assert found["I-LoRA against replay"].values == [1.5, 1.25]
    alone = found["the average alone, of a step with replay"]
    assert (alone.values, alone.unit) == ([0.5, 0.25], "%")
    assert found["learn against its bare step"].values == [1.02]
    assert found["padding of new rows, of all positions"].values == [12.5]
    assert "SAM against without" not in found  # was not measured
    replay, slow = steps_table(small, done).rows
    assert replay[2:] == (3.0, None, None, None, 9.0, 1e6)
    assert slow[2:] == (4.0, "replay", 1.375, "1.250 to 1.500", 9.5, 3e6)


def test_the_parts_of_the_start_follow_each_other():
    """Oracle: by hand, from the times at which parts ended and programs were compiled."""
    ends = dict(zip(PARTS, (12.0, 13.0, 15.0, 19.0, 24.0, 24.5), strict=True))
    found = between(10.0, ends, [14.0, 16.0, 19.0, 24.0])
    assert [found[part] for part in PARTS] == [2.0, 1.0, 2.0, 4.0, 5.0, 0.5]
    assert [found[f"{part}_programs"] for part in PARTS] == [0, 0, 1, 2, 1, 0]
    assert (found["total"], found["programs"]) == (14.5, 4)
    head = {"job": "start", "round": 0, "status": "done"}
    rows = start_table(by_job([head | found])).rows
    assert rows[-1] == ("all together", 14.5, "14.50 to 14.50", 4)


@pytest.mark.filterwarnings("ignore:.*lost their beginning")
def test_padding_is_that_of_the_widths(tmp_path):
    """Oracle: each row's positions by hand, from the widths; one width as the control."""
    pytest.importorskip("transformers")
    from experiments.benchmarks.finetune import loop, text
    from jaxcl.finetune.tasks import read_tasks

    few = dataclasses.replace(SMOKE, most_rows=12)
    text.make_files(few, tmp_path)
    found = loop.padding(few, tmp_path)(turns(few)[0])
    given = text.settings(few, tmp_path, few.max_length)
    files, widths = read_tasks(given, text.tokenizer_of(few, tmp_path))
    lengths = np.concatenate([row_lengths(one.task.train) for one in files])
    taken = [min(width for width in widths if width >= n) for n in lengths]
    assert found["rows"] == len(lengths) == 3 * 11  # one of twelve is for tests
    np.testing.assert_allclose(found["padding"], 1 - lengths.sum() / sum(taken))
    one = 1 - lengths.sum() / (len(lengths) * lengths.max())
    np.testing.assert_allclose(found["padding_of_one_width"], one)
    assert found["padding"] < one


def test_replayed_rows_have_the_largest_width():
    """Oracle: the rows of a memory that has got rows of a narrow width only."""
    ones = lambda width: np.ones((2, width), np.int32)
    rows = lambda n: as_batch({"tokens": ones(n), "mask": ones(n)}, ones(n))
    wide, narrow = rows(16), rows(8)
    memory, key = reservoir(4, 2), jax.random.key(0)
    state = memory.init({}, at(slice(0, 1), wide))
    state = memory.observe(key, state, seen(narrow), {})
    assert memory.sample(key, state).y.shape == (2, 16)


def test_docstrings_come_in_one_order_and_once():
    """Oracle: two readings, and a function whose docstring everyone knows."""
    pytest.importorskip("transformers")
    from experiments.benchmarks.finetune.text import docstrings

    once, again = (list(docstrings(("bisect", "textwrap"))) for _ in range(2))
    assert once == again
    words = [words for _, words in once]
    assert len(set(words)) == len(words) > 5
    assert dict(once)["textwrap.dedent"].startswith("Remove any common leading")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "smal-steps"], "jobs: unknown 'smal-steps'; did you mean small-"),
        (["--methods", "ilara"], "methods: unknown 'ilara'; did you mean ilora?"),
        (["--loop-steps", "5"], "loop_steps: expected more than the 5 steps of"),
        (["--loop-model", "bert"], "loop_model: unknown 'bert'"),
        (["--rounds", "0"], "rounds: expected"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(words, message, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the trouble."""
    assert start(tmp_path / "ft", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "ft").exists()
