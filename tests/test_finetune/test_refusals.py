"""Bad input to ``jaxcl finetune`` and its commands: one line, and nothing is lost."""

import errno
import json
import re
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcl.cli import main
from jaxcl.cli.finetune import parse, with_demo_files
from jaxcl.finetune import config as settings
from jaxcl.finetune import demo, trained
from jaxcl.finetune import run as finetuning
from jaxcl.finetune.checks import check
from jaxcl.finetune.interpolate import own_tests
from tests.test_finetune.conftest import words_of, write

#: What is wrong with the file of a task, and what is said of it.
FILES = {
    "missing": (None, r"nothing at .*task\.jsonl"),
    "empty": (b"", r"task\.jsonl is empty"),
    "blank": (b"\n\n", r"task\.jsonl is empty"),
    "binary": (bytes(range(256)), r"line 1: holds binary data"),
    "text": (b"hello\n", r"line 1"),
    "number": (b"3\n", r"line 1"),
    "one row": (b'{"prompt": "a", "answer": "b"}\n', r"has a single row"),
    "other fields": (
        b'{"text": "a", "label": "b"}\n' * 3,
        r"^error: --tasks: .*'prompt' is missing.* another by --prompt, or fix",
    ),
    "two formats": (
        b'{"prompt": "a", "answer": "b"}\n' * 3
        + b'{"messages": [{"role": "user", "content": "a"}]}\n',
        r"line 4.*'prompt' is missing",
    ),
    "an empty answer": (
        b'{"prompt": "a", "answer": "b"}\n' * 3 + b'{"prompt": "a", "answer": ""}\n',
        r"line 4",
    ),
}


def refused(capsys, words, message):
    """The command ends with code 2 and one line with the message."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.startswith("error: ")

    assert re.search(message, said), said


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_by_name_and_line(home, tmp_path, capsys, name):
    """Oracle: the table. No folder is made."""
    content, message = FILES[name]
    path = tmp_path / "task.jsonl"
    if content is not None:
        path.write_bytes(content)
    words = words_of(home, tmp_path / "run", tasks=())
    place = words.index("--tasks") + 1
    refused(capsys, [*words[:place], str(path), *words[place:]], message)
    assert not (tmp_path / "run").exists()


#: What is wrong with a file of questions, and what is said of it.
QUESTIONS = {
    "a field that is missing": (
        {"question": "a?", "options": ["b", "c"], "answer": 0},
        r"line 1: field 'choices' is missing, there are .*'answer'; fix the line\.$",
    ),
    "an answer that is none of them": (
        {"question": "a?", "choices": ["b", "c"], "answer": "A"},
        r"line 1: 'answer' must be .* got 'A'; fix it\.$",
    ),
    "a question that is not a text": (
        {"question": 3, "choices": ["b", "c"], "answer": 0},
        r"line 1: expected text in 'question', got 3; fix it\.$",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_bad_questions_are_refused_without_flags_of_tasks(home, tmp_path, capsys, name):
    """Oracle: the table; the fields of questions have no flags."""
    record, message = QUESTIONS[name]
    write(tmp_path / "questions.jsonl", [record])
    more = "--general", str(tmp_path / "questions.jsonl")
    words = words_of(home, tmp_path / "run", *more, tasks=("animals",))
    refused(capsys, words, rf"^error: --general: .*{message}")


SETTINGS = {
    "an adapter that a method cannot carry": (
        ("--method", "l2p", "--adapter", "lora"),
        r"--adapter: l2p trains prompts",
    ),
    "slots in all weights": (
        ("--method", "olora", "--adapter", "full"),
        r"olora has an adapter for each task",
    ),
    "products without factors": (
        ("--method", "ilora", "--average", "products", "--adapter", "full"),
        r"needs --adapter lora",
    ),
    "a rank of zero": (("--rank", "0"), r"^error: --rank: expected finite numbers abo"),
    "a rank above that of kernels": (
        ("--rank", "1000"),
        r"^error: --rank: rank must be at most 8 for .*, got 1000",
    ),
    "a rate that is not finite": (
        ("--learning-rate", "nan"),
        r"^error: --learning-rate: expected finite",
    ),
    "no rows to learn from": (("--batch-size", "0"), r"^error: --batch-size: "),
    **{
        f"fewer rows in memory than {method} replays": (
            ("--method", method, "--memory", "1"),
            r"--memory: expected at least the 2 rows .* got 1; raise it, or .*replay 1",
        )
        for method in ("er", "der++", "agem", "ilora")
    },
    "more rows to replay than are kept": (("--replay", "9"), r"at least the 9 rows"),
    "more prompts than there are": (
        ("--method", "l2p", "--num-selected", "11"),
        r"--num-selected: expected at most the 10 of --prompts, got 11",
    ),
    "more logits than tokens": (
        ("--method", "der++", "--num-logits", "9999"),
        r"--num-logits: expected at most the \d+ tokens of the vocabulary, got 9999",
    ),
    "more than one": (("--decay", "1.5"), r"--decay: expected a number up to 1"),
    "too little room": (("--max-tasks", "1", "--method", "gem"), r"--max-tasks"),
    "more devices than there are": (("--devices", "64"), r"--devices: there are 8"),
    "devices that do not divide": (("--devices", "3"), r"cannot share a batch of 2"),
    "a pool beyond the context": (
        ("--method", "l2p", "--prompt-length", "40"),
        r"--max-length: prompts of up to 1\d\d tokens, 120 of them learned by l2p, are "
        r"too long for a model of 128; give at most 8",
    ),
    "projections that are not there": (("--targets", "q_prj"), r"^error: --targets: "),
    "questions that are not there": (("--general", "no.jsonl"), r"--general: nothing"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_run_are_refused(home, tmp_path, capsys, name):
    """Oracle: the table. No folder is made."""
    more, message = SETTINGS[name]
    refused(capsys, words_of(home, tmp_path / "run", *more), message)
    assert not (tmp_path / "run").exists()


def test_a_command_without_files_names_what_it_needs(home, tmp_path, capsys):
    """Oracle: the message; each of the three flags alone."""
    refused(
        capsys, ["finetune"], r"got no --model and no --tasks and no --out; .*--demo"
    )
    words = words_of(home, tmp_path / "run")
    for flag in ("--model", "--out"):
        place = words.index(flag)
        short = [*words[:place], *words[place + 2 :]]
        refused(capsys, short, rf"^error: {flag}: .* got no {flag}; see --help")


def test_a_demonstration_brings_its_files(tmp_path, capsys, monkeypatch):
    """Oracle: the message; the words without "="; a folder beside that of the run."""
    own = r"^error: --demo: brings its own --model and --tasks; leave them out\.$"
    for flag in ("--model", "--tasks"):
        refused(capsys, ["finetune", "--demo", "small", flag, "a"], own)
    assert parse(["--demo=smollm2"]) == parse(["--demo", "smollm2"])
    made = SimpleNamespace(model=tmp_path, tasks=[], general=[])
    homes = []
    keep = lambda name, home, advance: homes.append(home) or made
    monkeypatch.setattr(demo, "demo_files", keep)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for out in (".", "../run"):
        with_demo_files(parse(["--demo", "--out", out]))
    assert homes == [tmp_path / "run-files"] * 2


def test_two_files_of_one_name_need_names(home, tmp_path, capsys):
    """Oracle: the message; with a name of its own the second one is taken."""
    other = tmp_path / "animals.jsonl"
    other.write_text((home / "animals.jsonl").read_text())
    words = words_of(home, tmp_path / "run", tasks=("animals",))
    place = words.index("--tasks") + 2
    twice = [*words[:place], str(other), *words[place:]]
    refused(capsys, twice, r"are both called 'animals'; give one as NAME=")
    named = [*words[:place], f"wild={other}", *words[place:]]
    check(parse(named[1:]))


def test_links_are_called_by_their_own_names(home, tmp_path, monkeypatch):
    """Oracle: the names of the links, both to one file, and of the folder one is in."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").symlink_to(home / "animals.jsonl")
    files = tuple(str(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    assert [one.name for one in settings.named("--tasks", files)] == ["one", "two"]
    inner = tmp_path / "inner"
    for part in ("train", "test"):
        write(inner / f"{part}.jsonl", [{"prompt": "a", "answer": "b"}])
    monkeypatch.chdir(inner)
    assert settings.named("--tasks", (".",))[0].name == "inner"


def test_a_model_that_is_none_is_refused(home, tmp_path, capsys):
    """Oracle: the message."""
    for command in ("evaluate", "generate"):
        words = [command, str(tmp_path), *(("--prompt", "a") * (command != "evaluate"))]
        refused(
            capsys, words, r"expected the folder of a Hugging Face model or of a run"
        )
    words = words_of(home, tmp_path / "run")
    words[words.index("--model") + 1] = str(tmp_path)
    refused(capsys, words, r"--model: .*without config.json")
    for command in ("export", "interpolate"):
        more = ("--out", str(tmp_path / "x")) if command == "export" else ()
        refused(
            capsys, [command, str(tmp_path), *more], r"expected the folder of a run"
        )


@pytest.fixture(scope="module")
def run(home):
    """A short run of one task."""
    out = home / "short"
    assert main(words_of(home, out, tasks=("animals",))) == 0
    return out


def test_the_folder_of_another_run_stays_as_it_is(home, run, capsys, tmp_path):
    """Oracle: the files before; each refusal names what differs."""
    held = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    one = ("animals",)
    for more, message in {
        ("--rank", "3"): r"holds a run with rank 2, not 3",
        ("--method", "seq"): r"method 'er', not 'seq'",
        ("--seed", "1"): r"seed 0, not 1",
        (
            "--max-new-tokens",
            "4",
        ): r"--max-new-tokens: .* at most 3 tokens, got 4; give 3",
    }.items():
        refused(capsys, words_of(home, run, *more, tasks=one), message)
    refused(
        capsys,
        words_of(home, run, tasks=("colours", "animals")),
        r"the tasks of a run stay, animals; .* got colours animals",
    )
    place = tmp_path / "some"
    write(place / "notes.txt", [])
    refused(capsys, words_of(home, place, tasks=one), r"holds other files")
    (tmp_path / "file").write_text("")
    refused(capsys, words_of(home, tmp_path / "file", tasks=one), r"is a file")
    assert {path: path.read_bytes() for path in held} == held
    assert sorted(place.iterdir()) == [place / "notes.txt"]
    bare = tmp_path / "bare"  # without answers, they may have any length
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("*.jsonl"))
    check(parse(words_of(home, bare, "--max-new-tokens", "4", tasks=one)[1:]))


def test_rows_that_changed_are_refused(home, run, capsys, tmp_path):
    """Oracle: the digest; the same rows elsewhere go on."""
    moved = tmp_path / "animals.jsonl"
    lines = (home / "animals.jsonl").read_text()
    moved.write_text(lines)
    words = words_of(tmp_path, run, tasks=("animals",))
    words[words.index("--model") + 1] = str(home / "model")
    assert main(words) == 0
    moved.write_text(lines.replace("cat", "ape"))
    refused(capsys, words, r"rows of animals are not those with which the run began")
    assert main(words_of(home, run, tasks=("animals",))) == 0  # as it was


def test_learners_that_are_not_there_are_named(run, capsys, tmp_path):
    """Oracle: those that are there; numbers that are refused as well, by their flags."""
    out = ("--out", str(tmp_path / "x"))
    refused(
        capsys,
        ["export", str(run), "--learner", "slow", *out],
        r"expected one of params",
    )
    refused(
        capsys, ["export", str(run), "--after", "7", *out], r"expected one of \[1\]"
    )
    refused(
        capsys,
        ["interpolate", str(run), "--alphas", "2"],
        r"expected numbers from 0 to 1",
    )
    assert not (tmp_path / "x").exists()
    for command, flag, value in (
        ("evaluate", "--rows", 0),
        ("evaluate", "--rows", -1),
        ("evaluate", "--max-new-tokens", 0),
        ("generate", "--max-new-tokens", 0),
    ):
        words = [command, str(run), f"{flag}={value}"]
        words += ["--prompt", "a"] * (command == "generate")
        refused(capsys, words, f"^error: {flag}: .* above 0, got {value}")


def filled(home, place, value):
    """The model with one number for all weights."""
    place.mkdir()
    for path in (home / "model").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    tensors = load_file(place / "model.safetensors")
    filled = {name: np.full_like(leaf, value) for name, leaf in tensors.items()}
    save_file(filled, place / "model.safetensors")
    return place


def test_weights_that_are_not_finite_are_refused(home, tmp_path, capsys):
    """Oracle: the message, which names one of them. Nothing is written."""
    words = words_of(home, tmp_path / "run", tasks=("animals",))
    model = filled(home, tmp_path / "model", np.nan)
    words[words.index("--model") + 1] = str(model)
    refused(capsys, words, r"--model: .* weights that are not finite, in .*; copy")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(home, tmp_path, capsys):
    """Oracle: weights whose products overflow; the exit code, and the name of the task."""
    model = filled(home, tmp_path / "model", 1e30)
    words = words_of(home, tmp_path / "run", "--method", "seq", tasks=("animals",))
    words[words.index("--model") + 1] = str(model)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(words) == 1
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.startswith("error: the loss was not finite by step 3 of animals")
    assert "--learning-rate" in said


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on(
    home, run, tmp_path, capsys, monkeypatch
):
    """Oracle: the run left alone."""
    full, one = tmp_path / "full", ("animals",)
    real = finetuning.save_adapter

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(finetuning, "save_adapter", refuse)
    refused(capsys, words_of(home, full, tasks=one), "No space left on device")
    monkeypatch.setattr(finetuning, "save_adapter", real)
    assert main(words_of(home, full, tasks=one)) == 0
    for path in (run / "learners").rglob("*.*"):
        other = full / path.relative_to(run)
        assert other.read_bytes() == path.read_bytes()


def test_another_model_or_other_questions_of_the_same_name(home, tmp_path, capsys):
    """Oracle: the messages. What the run noted of itself stays."""
    out, held = tmp_path / "run", tmp_path / "held.jsonl"
    lines = (home / "general.jsonl").read_text().splitlines(keepends=True)
    held.write_text("".join(lines))
    more = "--general", str(held), "--steps", "1", "--general-rows", "4"
    words = words_of(home, out, *more, tasks=("animals",))
    assert main(words) == 0
    noted = (out / "finetune.json").read_text()
    asked = parse(words_of(home, out, "--steps", "1", tasks=("animals",))[1:])
    finetuning.write_settings(finetuning.load(asked))  # without its --general
    now, before = json.loads((out / "finetune.json").read_text()), json.loads(noted)
    assert now["general"] == before["general"]
    (*_, own) = own_tests(settings.config_of(out), trained.load(out))
    assert (own.name, own.count) == ("held", 4)  # as many as the run asked, of 5
    held.write_text("".join(lines[1:]))
    refused(capsys, words, r"--general: .*other questions of held")
    held.write_text("".join(lines))
    refused(capsys, [*words, "--general-rows", "2"], r"give these 4 back")
    other = tmp_path / "other" / "model"
    shutil.copytree(home / "model", other)
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: 2 * leaf for name, leaf in weights.items()}, other / "model.safetensors"
    )
    words[words.index("--model") + 1] = str(other)
    refused(capsys, words, r"--model: the weights of .*other/model are not those")
    assert json.loads((out / "finetune.json").read_text()) == now
