"""``jaxcl finetune`` and the commands on its runs, from files to files."""

import csv
import dataclasses
import html
import itertools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.cli import main
from jaxcl.cli.finetune import parse
from jaxcl.data import load_tokenizer
from jaxcl.files import read_lines
from jaxcl.finetune import evaluate as evaluation
from jaxcl.finetune import interpolate as interpolation
from jaxcl.finetune import run as finetuning
from jaxcl.finetune import trained
from jaxcl.finetune.config import config_of
from jaxcl.finetune.measure import Measurement
from jaxcl.finetune.method import dtype_of
from jaxcl.finetune.report import write_page
from jaxcl.interop import load_adapter, load_pretrained, save_pretrained
from jaxcl.models import decoder, generate
from jaxcl.report.statistics import change_interval
from jaxcl.runs import learned
from jaxcl.signals import Terminated
from tests.test_finetune.conftest import COUNT, TESTED, WORDS, words_of, write


@pytest.fixture(scope="module")
def run(home):
    """A run of I-LoRA over two tasks, with general ability."""
    out = home / "ilora"
    more = "--method", "ilora", "--general", str(home / "general.jsonl")
    assert main(words_of(home, out, *more)) == 0
    return out


def lines_at(run, name):
    return read_lines(run / "answers" / f"{name}.jsonl")


def test_a_run_leaves_answers_learners_and_a_page(run):
    """Oracle: the list of files; both learners after each task, the model itself before."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*.jsonl")}
    learners = ("slow", "fast")
    wanted = {"metrics.jsonl", "general/000-general-slow.jsonl"}
    wanted |= {f"answers/000-{task}-slow.jsonl" for task in WORDS}
    for learner in learners:
        wanted |= {f"general/002-general-{learner}.jsonl"}
        for ended in (1, 2):
            wanted |= {f"answers/00{ended}-{task}-{learner}.jsonl" for task in WORDS}
    assert names == wanted
    held = sorted(path.name for path in (run / "learners").iterdir())
    assert held == ["001-fast", "001-slow", "002-fast", "002-slow"]
    page = (run / "report.html").read_text()
    for part in ("Answers before and after", "General ability", "just learned"):
        assert part in page


def test_rows_kept_for_testing_are_not_learned(home, run):
    """Oracle: the lines of the file, each in one of the two sets."""
    config = config_of(run)
    job = finetuning.load(config)
    for one, name in zip(job.files, WORDS, strict=True):
        lines = read_lines(home / f"{name}.jsonl")
        tested = [lines[row] for row in one.tested.numbers]
        rest = [lines[row] for row in one.tested.rest]
        assert len(tested) == one.task.test.count == TESTED
        assert len(rest) == one.task.train.count == COUNT - TESTED
        assert sorted(one.tested.labels) == sorted({line["answer"] for line in rest})
        asked = lines_at(run, f"002-{name}-slow")
        assert [line["answer"] for line in asked] == [line["answer"] for line in tested]
        for line, held in zip(asked, tested, strict=True):
            assert held["prompt"] in line["prompt"]


def test_answers_and_choices_are_those_of_the_saved_adapter(home, run):
    """Oracle: greedy generation and log-likelihoods of full passes, with the adapter read
    from its folder."""
    config, base = load_pretrained(home / "model")
    params = load_adapter(run / "learners" / "002-fast", base)
    tokenizer = load_tokenizer(home / "model")
    apply = decoder(config).apply

    def likelihood(prompt, answer):
        tokens = [*prompt, *answer]
        logits = apply(params, jnp.array([tokens]))[0]
        scores = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
        return float(sum(scores[i, token] for i, token in enumerate(answer)))

    for line in lines_at(run, "002-colours-fast"):
        encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        prompt, end = encode(line["prompt"]), tokenizer.eos_token_id
        stop = [end, *encode("<|im_end|>")]
        new = generate(
            jax.random.key(1), config, params, [prompt], max_new_tokens=3, stop=stop
        )[0]
        said = tokenizer.decode(new.tolist(), skip_special_tokens=True).strip()
        assert line["output"] == said
        assert line["exact_match"] == float(said == line["answer"])
        scores = {
            word: likelihood(prompt, [*encode(word), *encode("<|im_end|>")])
            for word in WORDS["colours"]
        }
        assert line["choice"] == max(scores, key=lambda word: scores[word])
        assert line["choice_accuracy"] == float(line["choice"] == line["answer"])


def test_the_table_of_the_page_has_the_means_of_the_files(run):
    """Oracle: means by hand."""
    rows = (run / "tables" / "tasks.csv").read_text().splitlines()
    head = rows[0].split(",")
    found = {
        tuple(row.split(",")[:3]): dict(zip(head, row.split(","), strict=True))
        for row in rows[1:]
    }
    mean = lambda ended, name: np.mean(
        [line["exact_match"] for line in lines_at(run, f"{ended}-{name}-fast")]
    )
    row = found["exact_match", "fast", "animals"]
    assert float(row["just learned"]) == pytest.approx(mean("001", "animals"), abs=1e-3)
    assert float(row["at the end"]) == pytest.approx(mean("002", "animals"), abs=1e-3)
    before = [line["exact_match"] for line in lines_at(run, "000-animals-slow")]
    assert float(row["before"]) == pytest.approx(np.mean(before), abs=1e-3)


def test_changes_on_the_page_are_of_the_same_rows(run):
    """Oracle: rows that became right or wrong, by hand; general ability is compared with
    the model before, which is tested once for both learners."""
    right = lambda path, metric: np.array([line[metric] for line in read_lines(path)])
    for table, columns, metric, own in (
        ("tasks", ("metric", "learner", "task"), "exact_match", "animals"),
        ("general", ("set", "metric", "learner"), "choice_accuracy", "general"),
    ):
        kind = {"tasks": "answers"}.get(table, table)
        begin = {"answers": "001-animals-fast", "general": "000-general-slow"}[kind]
        pair = [run / kind / f"{name}.jsonl" for name in (begin, f"002-{own}-fast")]
        wanted = change_interval(*(right(path, metric) for path in pair))
        text = (run / "tables" / f"{table}.csv").read_text()
        rows = csv.DictReader(text.splitlines())
        asked = {own, metric, "fast"}
        (row,) = [
            row
            for row in rows
            if {row[name] for name in columns} == asked
            and row.get("after tasks", "2") == "2"
        ]
        found = [float(row[name]) for name in ("change low", "change high")]
        np.testing.assert_allclose(found, wanted)


def test_a_page_says_what_is_missing_and_what_was_used(run, tmp_path, capsys):
    """Oracle: the page of a run whose last tests are gone, and of one without any."""
    page = (run / "report.html").read_text()
    assert "Not tested" not in page
    shown = html.unescape(re.sub("<[^>]*>", " ", page))
    assert re.search(r"strength\W+1\b", shown)  # not as it was given: null
    cut = shutil.copytree(run, tmp_path / "cut")
    for path in cut.glob("answers/002-*"):
        path.unlink()
    text = write_page(cut).read_text()
    assert "Not tested after task 2; the same command does it." in text
    none = tmp_path / "none"
    none.mkdir()
    shutil.copy(run / "finetune.json", none)
    assert main(["report", str(none)]) == 2
    assert "nothing was measured in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "ends", "claim", "how"),
    [
        (
            "one",
            (1, 2),
            "animals, colours, each by itself",
            "each task by its own model",
        ),
        ("mtl", (1, 1), "animals, colours together", "learned together"),
    ],
)
def test_the_page_of_what_cannot_be_forgotten(home, tmp_path, method, ends, claim, how):
    """Oracle: the answers of each task by the model that learned it, and words."""
    out = tmp_path / "run"
    more = "--general", str(home / "general.jsonl"), "--steps", "1"
    assert main(words_of(home, out, "--method", method, *more)) == 0
    if method == "one":  # what the last model says of the first task does not count
        path = out / "answers" / "002-animals-params.jsonl"
        others = [{**line, "choice_accuracy": 0.9} for line in read_lines(path)]
        write(path, others)
        write_page(out)
    page = (out / "report.html").read_text()
    names = [f"{n:03d}-{name}-params" for n, name in zip(ends, WORDS, strict=True)]
    tests = [lines_at(out, name) for name in names]
    means = [np.mean([line["choice_accuracy"] for line in lines]) for lines in tests]
    assert claim in page
    assert f"Average choice_accuracy {np.mean(means):.3g}, {how}." in page
    for word in (", forgetting", "Not finished", "Nothing was measured"):
        assert word not in page
    rows = csv.DictReader((out / "tables" / "tasks.csv").read_text().splitlines())
    column = {"one": "just learned", "mtl": "at the end"}[method]
    found = [float(row[column]) for row in rows if row["metric"] == "choice_accuracy"]
    np.testing.assert_allclose(found, means)
    assert ("change since learned" in page) == (method == "mtl")


def test_exports_compute_what_the_learner_does(home, run, tmp_path, capsys):
    """Oracle: the adapter over its base; the answers of the run."""
    peft, merged = tmp_path / "peft", tmp_path / "merged"
    assert main(["export", str(run), "--out", str(peft)]) == 0
    words = ["export", str(run), "--out", str(merged), "--to", "merged"]
    assert main([*words, "--learner", "slow", "--after", "2"]) == 0
    config, base = load_pretrained(home / "model")
    params = load_adapter(peft, base)
    tokens = jnp.array([[5, 6, 7, 8]])
    apply = decoder(config).apply
    wanted = apply(params, tokens)
    found = apply(load_pretrained(merged)[1], tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - apply(base, tokens)).max() > 1e-3  # control
    capsys.readouterr()
    lines = lines_at(run, "002-animals-slow")
    asked = [row["prompt"] for row in read_lines(home / "animals.jsonl")]
    output, prompt = next(
        (line["output"], prompt)
        for line, prompt in itertools.product(lines, asked)
        if f"user\n{prompt}<" in line["prompt"]
    )
    for source in (run, merged):
        more = "--prompt", prompt, "--max-new-tokens", "3"
        assert main(["generate", str(source), *more]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [output, output]
    assert main(words) == 2  # nothing is overwritten
    assert "exists" in capsys.readouterr().err


def test_evaluate_says_what_the_run_measured(run, capsys, tmp_path):
    """Oracle: the files of the run, line by line."""
    out = tmp_path / "tests"
    assert main(["evaluate", str(run), "--learner", "fast", "--out", str(out)]) == 0
    for name in WORDS:
        own = read_lines(out / "answers" / f"{name}.jsonl")
        assert own == lines_at(run, f"002-{name}-fast")
    general = read_lines(run / "general" / "002-general-fast.jsonl")
    assert read_lines(out / "general" / "general.jsonl") == general
    assert "exact_match" in capsys.readouterr().out


def test_the_ends_of_an_interpolation_are_the_model_before_and_the_learner(run):
    """Oracle: the answers of the run."""
    words = ["interpolate", str(run), "--alphas", "0", "0.5", "1", "--learner", "fast"]
    assert main(words) == 0
    home = run / "interpolation" / "002-fast"
    for name in WORDS:
        for alpha, own in {"0": f"000-{name}-slow", "1": f"002-{name}-fast"}.items():
            path = home / "answers" / f"{alpha}-{name}.jsonl"
            assert read_lines(path) == lines_at(run, own)
    assert (home / "answers" / "0.5-animals.jsonl").exists()
    general = read_lines(run / "general" / "002-general-fast.jsonl")
    assert read_lines(home / "general" / "1-general.jsonl") == general
    assert "Between before and after" in (run / "report.html").read_text()


def test_commands_that_are_cut_say_what_is_kept(run, capsys, tmp_path, monkeypatch):
    """Oracle: the exit codes, the messages, and the files. A folder of the name with a dot
    before it stays."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    def end(folder, *_, **__):
        write(folder / "config.json", [])
        raise Terminated

    first = Measurement("answers", "first", 1, lambda *_, **__: [{"exact_match": 1.0}])
    tests = [first, first._replace(name="second", measure=stop)]
    write(tmp_path / ".x" / "kept.jsonl", [])
    out = "--out", str(tmp_path / "x")
    monkeypatch.setattr(evaluation, "own_tests", lambda *_: tests)
    monkeypatch.setattr(interpolation, "own_tests", stop)
    monkeypatch.setattr(trained, "save_pretrained", end)
    for words, code, message in (
        (("evaluate", *out), 130, "interrupted; nothing was kept"),
        (("export", *out, "--to", "merged"), 0, "terminated; nothing was kept"),
        (("interpolate",), 130, "interrupted; the same command goes on from here: "),
    ):
        assert main([words[0], str(run), *words[1:]]) == code
        assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.rglob("*")] == [".x", "kept.jsonl"]


def test_a_finished_run_keeps_its_files_and_a_longer_one_goes_on(home, run, capsys):
    """Oracle: the bits of the files and of the adapter. A task that is added is tested
    before it is learned: here one of the same rows as the first. Its plan: by hand."""
    grown = home / "grown"
    shutil.copytree(run, grown)
    more = "--method", "ilora", "--general", str(home / "general.jsonl")
    before = {
        path: path.read_bytes()
        for folder in ("answers", "general", "learners")
        for path in (grown / folder).rglob("*")
        if path.is_file()
    }
    assert main(words_of(home, grown, *more)) == 0
    assert "is finished; making its page again" in capsys.readouterr().out
    assert main(words_of(home, grown, *more, "--dry-run")) == 0
    assert "is finished; nothing is left to learn" in capsys.readouterr().out
    shutil.copy(home / "animals.jsonl", home / "again.jsonl")
    tasks = "animals", "colours", "again"
    assert main(words_of(home, grown, *more, tasks=tasks)) == 0
    assert "9 of 2 rows, 3 of them left\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert (grown / "answers" / "003-again-fast.jsonl").exists()
    first = (f"000-{name}-slow.jsonl" for name in ("again", "animals"))
    again, animals = ((grown / "answers" / name).read_bytes() for name in first)
    assert again == animals  # by the model itself, of the same rows
    assert learned.read(grown).ended == 3


def test_a_run_that_is_cut_ends_as_one_left_alone(home, run, tmp_path, monkeypatch):
    """Oracle: the run left alone, its adapters and tests bit by bit."""
    cut, write, count = tmp_path / "cut", finetuning.write_lines, []
    more = "--method", "ilora", "--general", str(home / "general.jsonl")

    def stop(path, lines):
        count.append(path)
        if len(count) in (2, 5):
            raise KeyboardInterrupt
        write(path, lines)

    monkeypatch.setattr(finetuning, "write_lines", stop)
    codes = [main(words_of(home, cut, *more)) for _ in range(3)]
    assert codes == [130, 130, 0]
    for folder in ("answers", "general", "learners"):
        for path in (run / folder).rglob("*"):
            if path.is_file():
                other = cut / path.relative_to(run)
                assert other.read_bytes() == path.read_bytes(), path.name


def test_a_run_goes_on_on_another_kind_of_device(home, tmp_path, monkeypatch):
    """Oracle: frozen weights stay in the dtype of the run's start; alone they are not."""
    model = shutil.copytree(home / "model", tmp_path / "model")
    config, params = load_pretrained(model)
    shutil.rmtree(model)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    save_pretrained(model, config, half, source=home / "model")
    words = words_of(home, tmp_path / "run", tasks=("animals",))
    words[words.index("--model") + 1] = str(model)
    assert main(words) == 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = config_of(tmp_path / "run")
    assert dtype_of(asked) == "float32"
    assert dtype_of(dataclasses.replace(asked, out=tmp_path / "other")) is None
    place = words.index("--tasks") + 2
    more = [*words[:place], str(home / "colours.jsonl"), *words[place:]]
    frozen = jax.tree.leaves(finetuning.load(parse(more[1:])).setup.frozen)
    assert {str(leaf.dtype) for leaf in frozen} == {"float32"}
