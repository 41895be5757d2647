"""The experiment on text classification, on data of its form."""

import dataclasses
import gzip
import io
import itertools
import json
import re
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from experiments.finetune import trace
from experiments.finetune.config import EXPERIMENT, ORDERS
from experiments.finetune.report import (
    change_of,
    difference_table,
    task_table,
    verdict,
)
from experiments.finetune.run import line_of, plans, trials
from experiments.finetune.tasks import DOMAINS, GENERAL, write_tasks
from jaxcl.errors import InputError
from jaxcl.files import read_lines
from jaxcl.finetune.measure import file_of
from jaxcl.report.records import check
from jaxcl.runs.command import main
from jaxcl.runs.folder import read_records


def zipped(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a few rows of each data set."""
    place = tmp_path_factory.mktemp("data")
    for name, classes in {"dbpedia": "ab", "amazon": "12", "agnews": "xy"}.items():
        for split in ("train", "test"):
            rows = [
                {"text": f"{split} {n} {c}", "label_name": c}
                for n in range(9)
                for c in classes
            ]
            path = place / "text-cls" / name / f"{split}.jsonl.gz"
            zipped(path, map(json.dumps, rows))
    intents = {
        split: [[f"{split} {n}", name] for n, name in enumerate(("apr", "text") * 9)]
        for split in ("train", "test")
    }
    path = place / "text-cls" / "clinc150" / "data_full.json.gz"
    zipped(path, [json.dumps(intents)])
    piqa = {"goal": "open it", "sol1": "pull it ", "sol2": "push it"}
    zipped(place / "instruct" / "piqa_valid.jsonl.gz", [json.dumps(piqa)] * 5)
    zipped(place / "instruct" / "piqa_valid_labels.lst.gz", "01011")
    asked = "Please choose the correct answer to the question: Is it?\n\nAnswer1: yes "
    asked += "Answer2: no\n\nAnswer format: answer1/answer2"
    records = [{"instruction": asked, "answer": "answer2"}] * 5
    path = place / "instruct" / "llm_adapters_commonsense_math.tar.xz"
    names = "ARC-Easy", "openbookqa"
    packed(path, {f"./dataset/{name}/test.json": records for name in names})
    packed(place / "trace" / "trace-benchmark.tar.xz", of_trace())
    return place


def packed(path, files):
    """An archive of records."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for name, records in files.items():
            text = json.dumps(records).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))


def of_trace():
    """A few rows of three of TRACE's tasks: two of letters, one of lines of code."""
    answers = {"C-STANCE": "AB", "FOMC": "AC", "Py150": [f"x = {n}" for n in range(9)]}
    return {
        f"TRACE-Benchmark/LLM-CL-Benchmark_500/{name}/{split}.json": [
            {"prompt": f"{split} {number} <EOL>", "answer": answer}
            for number in range(4)
            for answer in known
        ]
        for name, known in answers.items()
        for split in ("test", "train")
    }


def test_a_line_has_the_means_of_the_answers_of_its_run(home, data, tmp_path):
    """Oracle: the files of the runs, and the settings; a second call does nothing."""
    out = tmp_path / "smoke"
    words = ["smoke", "--data", str(data), "--model", str(home / "model")]
    words += ["--out", str(out), "--num-steps", "2", "--batch-size", "2"]
    assert main(EXPERIMENT, words) == 0
    lines = {line["arm"]: line for line in read_records(out)}
    assert [*lines] == ["wise-ft", "seq", "er"]
    learners = {"seq": "params", "wise-ft": "interpolated", "er": "params"}
    for arm, learner in learners.items():
        run = out / "runs" / ("er-first-0" if arm == "er" else "wise-ft-first-0")
        line = lines[arm]
        assert line["tasks"] == ["dbpedia", "amazon"]
        for ended in (1, 2):
            for place, name in enumerate(line["tasks"][:ended]):
                path = run / "answers" / f"{ended:03d}-{name}-{learner}.jsonl"
                mean = np.mean([held["exact_match"] for held in read_lines(path)])
                assert line["matrix"][ended - 1][place] == pytest.approx(mean, abs=1e-4)
        assert line["matrix"][0][1] is None
        path = run / "general" / f"002-piqa-{learner}.jsonl"
        right = [held["choice_accuracy"] for held in read_lines(path)]
        assert line["general"]["piqa"][1] == pytest.approx(np.mean(right), abs=1e-4)
        assert [*map(float, line["general_right"]["piqa"][1])] == right
        assert (
            line["general_right"]["piqa"][0] == lines["er"]["general_right"]["piqa"][0]
        )
    results = out / "results.jsonl"
    before = results.read_bytes()
    assert main(EXPERIMENT, words) == 0
    assert results.read_bytes() == before
    # A line that is lost comes again from its folder, in which the run is finished.
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]))
    with pytest.warns(UserWarning, match="er-first-0 had finished"):
        assert main(EXPERIMENT, words) == 0
    (*_, again) = read_records(out)
    own = ("seconds", "commit")
    assert {**again, **{name: lines["er"][name] for name in own}} == lines["er"]
    for split in ("train", "test"):
        prompts = read_lines(out / "data" / "dbpedia" / f"{split}.jsonl")
        assert prompts[0]["prompt"].startswith(split)
        assert prompts[0]["prompt"].endswith(
            "\n\nWhat kind of thing is described?\nAnswer:"
        )
        assert {line["answer"] for line in prompts} <= {"a", "b"}
    asked = read_lines(out / "data" / "arc-easy.jsonl")
    assert asked[0] == {"question": "Is it?", "choices": ["yes", "no"], "answer": 1}
    assert (out / "tables" / "tasks.md").exists()


def test_the_domains_are_ten_of_fifteen_intents():
    """Oracle: the data set's paper."""
    counts = {name: len(words.split()) for name, words in DOMAINS.items()}
    assert len(counts) == 10
    assert {*counts.values()} == {15}
    assert len({i for words in DOMAINS.values() for i in words.split()}) == 150


def line_from(config, values, home):
    """The line of the first run that is planned, all of whose tests had these values."""
    planned = next(iter(plans(config, home)))
    ((trial, learner),) = trials(config, planned)
    num_ends = 1 if planned.arm == "mtl" else config.num_tasks
    names = {"answers": ORDERS[planned.order].tasks, "general": GENERAL}
    for kind, ended in itertools.product(names, range(num_ends + 1)):
        for name in names[kind]:
            path = file_of(planned.out, kind, ended, name, learner)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values) + "\n")
    loss = np.arange(num_ends, dtype=np.float32)
    result = SimpleNamespace(status="done", seconds=1.0, loss=loss)
    return line_of(config, trial, learner, planned, result)


def test_joint_training_fills_a_line_as_long_as_the_others(tmp_path):
    """Oracle: by hand, and the check with which a report begins."""
    smoke = EXPERIMENT.presets["smoke"]
    values = {"exact_match": 0.5, "choice_accuracy": 0.75}
    config = dataclasses.replace(smoke, arms=("mtl",))
    line = line_from(config, values, tmp_path)
    check([line])
    assert line["matrix"] == [[0.5, 0.5]] * 2
    assert line["loss"] == [0.0, 0.0]
    table = task_table([line])  # what is lost is left out: zero would be a finding
    cells = dict(
        zip([column.name for column in table.columns], *table.rows, strict=True)
    )
    assert cells["choice at the end, %"].mean == 0.75
    assert cells["choice lost, points"] is cells["exact match lost, points"] is None


def test_a_run_that_diverged_has_a_line_for_each_learner(tmp_path):
    """Oracle: by hand; before the first task only one learner is tested."""
    config = dataclasses.replace(EXPERIMENT.presets["smoke"], arms=("wise-ft",))
    (planned,) = plans(config, tmp_path)
    for name in GENERAL:
        path = file_of(planned.out, "general", 0, name, "interpolated")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"choice_accuracy": 0.5}) + "\n")
    state = SimpleNamespace(task=np.int32(0))
    loss = np.full(config.num_tasks, np.nan)
    result = SimpleNamespace(status="diverged", seconds=1.0, loss=loss, run_state=state)
    lines = [
        line_of(config, trial, learner, planned, result)
        for trial, learner in trials(config, planned)
    ]
    check(lines)
    assert [line["arm"] for line in lines] == ["wise-ft", "seq"]
    assert {line["status"] for line in lines} == {"diverged"}
    assert lines[0]["general"]["piqa"][0] == 0.5


def test_preset_trace_scores_choices_and_texts(home, data, tmp_path):
    """Oracle: the files of the run, and what each task's answers are."""
    model, out = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(home / "model", model)
    held = json.loads((model / "config.json").read_text())
    # A rotation has no weights, so that the context may be any.
    held["max_position_embeddings"] = 2048
    (model / "config.json").write_text(json.dumps(held))
    words = ["trace", "--data", str(data), "--model", str(model), "--out", str(out)]
    words += ["--arms", "mtl", "--seeds", "1", "--num-tasks", "3", "--num-steps", "2"]
    words += ["--batch-size", "4", "--test-rows", "3"]
    assert main(EXPERIMENT, [*words, "--general-rows", "2"]) == 0
    (line,) = read_records(out)
    assert line["setting"] == "trace"
    assert line["tasks"] == ["c-stance", "fomc", "py150"]
    run = out / "runs" / "mtl-trace-0"
    scores = {"c-stance": "exact_match", "fomc": "exact_match", "py150": "rouge_l"}
    for place, (name, metric) in enumerate(scores.items()):
        rows = read_lines(run / "answers" / f"001-{name}-params.jsonl")
        mean = np.mean([row[metric] for row in rows])
        assert line["final"][place] == pytest.approx(mean, abs=1e-4)
        assert len(rows) == 3
    assert line["choice"][2][2] is None
    assert None not in line["choice"][2][:2]
    settings = json.loads((run / "finetune.json").read_text())
    assert settings["settings"]["max_length"] == 1024
    assert settings["max_new_tokens"] == 160
    assert "score at the end, %" in (out / "tables" / "tasks.md").read_text()


def test_the_score_of_texts_is_their_overlap(tmp_path):
    """Oracle: by hand."""
    values = {"exact_match": 0.25, "rouge_l": 0.5, "choice_accuracy": 0.75}
    config = dataclasses.replace(EXPERIMENT.presets["trace"], num_tasks=3, arms=("er",))
    line = line_from(config, values, tmp_path)
    assert line["matrix"] == [[0.25, 0.25, 0.5]] * 3
    assert line["before"] == line["final"] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    ("name", "asked", "wanted"),
    [
        ("py150", "<s> import os <EOL>", "os <EOL>"),
        (
            "20minuten",
            "Simplify.\n\nParagraph:\nEin Satz. Noch einer.\n\nSimplification:",
            "Simplify.\n\nParagraph:\nEin Satz.\n\nSimplification:",
        ),
        (
            "scienceqa",
            "Choose an answer and give your reasons.\n\nWhy? Because.\n\nAnswer:",
            "Choose an answer.\n\nWhy? Because.\n\nAnswer:",
        ),
        ("fomc", "What stance?\nText:\nRates rise.", None),
    ],
)
def test_a_long_text_keeps_its_question(name, asked, wanted):
    """Oracle: by hand; two words are kept of code and paragraphs alone."""
    row = {"prompt": asked, "answer": "B\nSince it is so."}
    cut = trace.prompt(name, row, 2)
    assert cut["prompt"] == (wanted or asked)
    assert cut["answer"] == ("B" if name == "scienceqa" else row["answer"])


def test_methods_are_not_compared_on_the_rows_of_tuning(tmp_path):
    """Oracle: the rows, of which a data set has many more than are drawn."""
    rows = [json.dumps({"text": str(n), "label_name": "a"}) for n in range(10**4)]
    for split in ("train", "test"):
        zipped(tmp_path / "text-cls" / "dbpedia" / f"{split}.jsonl.gz", rows)
    found = {}
    for preset in ("tune", "orders", "long", "again"):
        few = {"data": str(tmp_path), "orders": ("first order",), "num_tasks": 1}
        config = dataclasses.replace(
            EXPERIMENT.presets[preset.replace("again", "long")], **few
        )
        place = write_tasks(config, tmp_path / preset)["dbpedia"]
        for split in ("test", "train"):
            lines = read_lines(place / f"{split}.jsonl")
            found[preset, split] = {line["prompt"] for line in lines}
    for split in ("test", "train"):
        tuned = found["tune", split]
        for preset in ("orders", "long"):
            assert len(tuned & found[preset, split]) < 0.1 * len(tuned)
        assert found["again", split] == found["long", split]  # drawn by the seed alone


def test_arms_are_compared_in_pairs_of_one_order_and_seed():
    """Oracle: scipy's paired test; pairs and the mean by hand. A pair is missing."""
    ends = {
        "seq": {"a0": 0.2, "a1": 0.3, "b0": 0.6, "b1": 0.5},
        "er": {"a0": 0.5, "a1": 0.5, "b0": 0.8, "b1": 0.9},
        "sam-er": {"a1": 0.6, "b0": 0.7, "b1": 0.95},
        "mtl": {"a0": 0.9, "a1": 0.8},
    }
    records = [
        {"arm": arm, "setting": key[0], "seed": int(key[1]), "status": "done"}
        | {"matrix": [[0.1, None], [end - 0.1, end + 0.1]], "tasks": ["x", "y"]}
        | {"choice": [[0.5, None], [0.5, 0.5]]}
        for arm, own in ends.items()
        for key, end in own.items()
    ]
    found = {row[:2]: row[2:] for row in difference_table(records).rows}
    # Joint training has no pairs, and what was compared is not compared the other way.
    assert [*found] == [("er", "seq"), ("sam-er", "seq"), ("sam-er", "er")]
    count, difference, p, choice = found["er", "seq"]
    mine, theirs = ([*ends[arm].values()] for arm in ("er", "seq"))
    assert count == 4
    assert choice.mean == pytest.approx(0.0)
    assert difference.mean == pytest.approx(0.275)
    test = stats.ttest_rel(mine, theirs)
    interval = test.confidence_interval()
    assert difference[1:3] == pytest.approx((interval.low, interval.high))
    assert p == pytest.approx(3 * test.pvalue)  # Holm's, the smallest of three
    assert found["sam-er", "er"][0] == 3
    said = verdict(records)
    shown = f"{3 * test.pvalue:.3f}"
    begin = "points over seq at the end (4 pairs, p "
    assert said[0].endswith(f"{begin}{shown} by Holm): better.")
    assert re.search(
        r"\(3 pairs, p 0\.\d+ by Holm\): no difference is shown\.$", said[2]
    )


def test_changes_of_general_ability_are_over_questions():
    """Oracle: scipy, over the means of two runs for each question, by hand."""
    right = [["0011", "1010"], ["0011", "1111"]]
    runs = [{"general_right": {"piqa": own}} for own in right]
    found = change_of(runs, "piqa")
    test = stats.ttest_1samp([1.0, 0.5, 0.0, -0.5], 0)
    interval = test.confidence_interval()
    assert found[:3] == pytest.approx((0.25, interval.low, interval.high))


def test_all_runs_of_the_comparison_are_planned(tmp_path):
    """Oracle: by hand: six arms in two orders, joint training in one, with two seeds."""
    config = EXPERIMENT.presets["orders"]
    planned = [*plans(config, tmp_path)]
    assert len({*planned}) == len(planned) == 2 * (2 * 5 + 1)
    lines = [trial.run for one in planned for trial, _ in trials(config, one)]
    assert len({*lines}) == 2 * (2 * 7 + 1)


def test_an_archive_that_is_not_that_of_trace_is_refused(tmp_path):
    """Oracle: the name of what it lacks."""
    packed(tmp_path / "trace" / "trace-benchmark.tar.xz", {"other.json": []})
    with pytest.raises(
        InputError, match=r"lacks .*FOMC/train\.json.*; give the archive"
    ):
        trace.rows(tmp_path, ["fomc"])
