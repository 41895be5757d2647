"""What a run noted of itself is what the commands on it do."""

import json
import shlex
import shutil
from dataclasses import fields, replace
from typing import get_args

import jax
import numpy as np
import pytest

from jaxcl.cli import main
from jaxcl.cli.finetune import parse
from jaxcl.data import choose_widths, load_tokenizer
from jaxcl.files import read_lines
from jaxcl.finetune import run as finetuning
from jaxcl.finetune.config import Gradient, Method, Numbers, config_of
from jaxcl.finetune.curve import read_curve
from jaxcl.finetune.interpolate import between
from jaxcl.finetune.method import make
from jaxcl.finetune.report import write_page
from jaxcl.finetune.tasks import few_labels, kept_apart, most_widths, read_tests
from jaxcl.finetune.trained import load
from jaxcl.finetune.words import command_of, matters, without_effect
from jaxcl.interop import load_pretrained, save_pretrained
from jaxcl.models import decoder
from tests.test_finetune.conftest import words_of, write


def test_commands_test_a_run_as_it_tested_itself(home, tmp_path, capsys):
    """Oracle: the answers that the run wrote: of its own format, length of answers, number
    of questions and of labels, which differ from the defaults. The set of questions has
    the name of the task."""
    lines = [
        {"number": str(n), "name": name}
        for n, name in enumerate(["cat", "dog", "red panda"] * 8)
    ]
    write(tmp_path / "pets.jsonl", lines)
    out, held = tmp_path / "run", str(tmp_path / "pets.jsonl")
    words = words_of(home, out, tasks=())
    place = words.index("--tasks") + 1
    words[words.index("--max-new-tokens") + 1] = "40"
    form = "--template", "{number} pet:", "--answer", "name", "--join", " "
    more = "--general", f"pets={home / 'general.jsonl'}", "--general-rows", "2"
    more += (
        "--general-every",
        "1",
        "--chunk-size",
        "1",
        "--max-labels",
        "2",
    )  # which may change later on
    asked = [*words[:place], held, *words[place:], *form, "--chat", "False", *more]
    assert main(asked) == 0
    config, given = config_of(out), parse(asked[1:])
    for part in ("training", "text", "lora", "numbers", "testing"):
        assert getattr(config, part) == getattr(given, part)
    assert main(["evaluate", str(out), "--out", str(tmp_path / "own")]) == 0
    own = read_lines(out / "answers" / "001-pets-params.jsonl")
    assert read_lines(tmp_path / "own" / "answers" / "pets.jsonl") == own
    general = read_lines(out / "general" / "001-pets-params.jsonl")
    assert read_lines(tmp_path / "own" / "general" / "pets.jsonl") == general
    assert len(general) == 2
    table = (tmp_path / "own" / "results.csv").read_text()
    assert "pets (answers),exact_match," in table
    assert "pets (general),choice_accuracy," in table
    fewer = "--rows", "1", "--max-new-tokens", "2", "--out", str(tmp_path / "fewer")
    assert main(["evaluate", str(out), *fewer]) == 0
    (first,) = read_lines(tmp_path / "fewer" / "answers" / "pets.jsonl")
    (same,) = [line for line in own if line["prompt"] == first["prompt"]]
    assert same["output"].startswith(first["output"])
    assert first["output"] != same["output"]
    (first,) = read_lines(tmp_path / "fewer" / "general" / "pets.jsonl")
    assert first in general
    # The same rows as another file, without words of their format, and by hand.
    longest = "--max-new-tokens", "40"
    given = ["--tasks", held, *longest, "--out", str(tmp_path / "other")]
    assert main(["evaluate", str(out), *given]) == 0
    other = {
        line["prompt"]: line
        for line in read_lines(tmp_path / "other/answers/pets.jsonl")
    }
    assert all(other[line["prompt"]] == line for line in own)
    assert "choice" not in own[0]  # there are three labels
    # The model itself, in the same format, is the model before the first task.
    asked = ["evaluate", str(home / "model"), *given[:-1], str(tmp_path / "before")]
    assert main([*asked, *form, "--chat", "False"]) == 0
    other = {
        line["prompt"]: line
        for line in read_lines(tmp_path / "before/answers/pets.jsonl")
    }
    before = read_lines(out / "answers" / "000-pets-params.jsonl")
    own_of = lambda line: {name: line[name] for name in before[0]}  # not the choices
    assert all(own_of(other[line["prompt"]]) == line for line in before)
    assert {line["choice"] for line in other.values()} <= {"cat", "dog", "red panda"}
    asked = ["evaluate", str(out), "--tasks", held, "--prompt", "prompt"]
    assert main(asked) == 2  # in place of the template, although it is the default
    said = capsys.readouterr().err
    assert "error: --tasks: " in said
    assert "'prompt' is missing, " in said
    assert "another by --prompt, " in said
    assert main([*asked, *form]) == 2
    assert "--prompt: --template makes prompts, too" in capsys.readouterr().err
    assert main(["evaluate", str(home / "model")]) == 2
    assert "a model has no tests of its own" in capsys.readouterr().err
    assert main(["evaluate", str(home / "model"), *form]) == 2
    assert "--answer --template --join needs files" in capsys.readouterr().err
    capsys.readouterr()
    text = own[0]["prompt"]
    assert main(["generate", str(out), "--prompt", text, *longest, "--as-json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"prompt": text, "output": own[0]["output"]}


def test_the_page_shows_the_answers_of_the_task_itself(home, tmp_path):
    """Oracle: the files of answers. The name of one task begins that of the other, which
    is a folder. Of that ``evaluate`` says what the run measured, choices among labels that
    only its train.jsonl has, too."""
    shutil.copy(home / "animals.jsonl", tmp_path / "pets.jsonl")
    lines = read_lines(home / "colours.jsonl")
    write(tmp_path / "pets-more" / "train.jsonl", lines[4:])
    write(tmp_path / "pets-more" / "test.jsonl", lines[:2])
    out = tmp_path / "run"
    words = words_of(home, out, "--steps", "1", tasks=())
    place = words.index("--tasks") + 1
    files = [str(tmp_path / name) for name in ("pets.jsonl", "pets-more")]
    assert main([*words[:place], *files, *words[place:]]) == 0
    asked = ["evaluate", str(out), "--tasks", files[1], "--out", str(tmp_path / "own")]
    assert main(asked) == 0
    own = read_lines(tmp_path / "own" / "answers" / "pets-more.jsonl")
    assert own == read_lines(out / "answers" / "002-pets-more-params.jsonl")
    assert "choice" in own[0]
    for name in ("pets", "pets-more"):
        path = out / "answers" / f"000-{name}-params.jsonl"
        lines = [{**line, "output": f"said of {name}"} for line in read_lines(path)]
        write(path, lines)
    write(out / "interpolation" / "002-params" / "0-pets.jsonl", lines)  # not by kind
    write_page(out)
    assert "Between before and after" not in (out / "report.html").read_text()
    for name in ("pets", "pets-more"):
        table = (out / "tables" / f"answers-{name}-params.csv").read_text()
        rows = table.splitlines()[1:]
        assert rows
        assert all(f",said of {name}," in row for row in rows)


def test_one_row_is_learned_whatever_the_fraction(home, tmp_path):
    """Oracle: counts by hand."""
    words = words_of(home, tmp_path / "run", "--test-fraction", "0.99")
    config = parse(words[1:])
    kept = lambda count: kept_apart(config, tmp_path, count).tolist()
    assert [len(kept(count)) for count in (2, 10)] == [1, 9]


def test_test_rows_that_are_learned_too_are_counted(home, tmp_path):
    """Oracle: the lines of the file, some of which are there twice; of a folder, by hand.
    A warning where no row comes twice would be an error."""
    lines = [{"prompt": f"{n}?", "answer": "cat"} for n in range(20)]
    write(tmp_path / "pets.jsonl", [*lines, *lines[:10]])
    write(tmp_path / "folder" / "train.jsonl", lines[:5])
    write(tmp_path / "folder" / "test.jsonl", lines[4:8])
    config = parse(words_of(home, tmp_path / "run", tasks=())[1:])
    tokenizer = load_tokenizer(home / "model")
    kept = kept_apart(config, tmp_path, 30).tolist()
    twins = [(number + 20 if number < 10 else number - 20) for number in kept]
    known = sum(0 <= twin < 30 and twin not in kept for twin in twins)
    assert known
    for name, count in {"pets.jsonl": f"{known} of 8", "folder": "1 of 4"}.items():
        asked = replace(config, tasks=(str(tmp_path / name),))
        with pytest.warns(UserWarning, match=f"{count} test rows of .* are among"):
            read_tests(asked, tokenizer)
    read_tests(replace(config, tasks=(str(home / "animals.jsonl"),)), tokenizer)


def test_weights_of_a_run_are_read_as_it_computed(home, tmp_path, monkeypatch):
    """Oracle: the dtypes of the run and of the files; both ends of an interpolation. A
    model alone is read as a run would, too."""
    config, params = load_pretrained(home / "model")
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(home / "model", model)
    save_pretrained(tmp_path / "narrow", config, params, dtype="bfloat16")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "narrow" / name, model / name)
    words = words_of(home, out, "--adapter", "full", "--no-answers")
    words[words.index("--model") + 1] = str(model)
    assert main(words) == 0
    trained = load(out)
    kind = lambda params: {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    assert kind(trained.params) == {"float32"}
    assert kind(load(out, as_files=True).params) == {"bfloat16"}
    assert kind(load(model).params) == {"float32"}
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert kind(load(model).params) == {"bfloat16"}
    before = load_pretrained(model, dtype="float32")[1]
    half = between(trained, 0.5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, before, trained.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), half, mean)
    # Nothing was tested so far; questions that come later are asked of the model itself.
    assert main([*words, "--general", str(home / "general.jsonl")]) == 0
    found = sorted(path.name for path in (out / "general").iterdir())
    assert found == ["000-general-params.jsonl", "002-general-params.jsonl"]


def test_the_curve_reads_small_alphas(tmp_path):
    """Oracle: names as ``jaxcl interpolate`` gives them. A set of the name of a task has
    a curve of its own, by the same metric."""
    for alpha in (0.5, 1e-5, 0.0):
        place = tmp_path / "answers" / f"{alpha:g}-2-pets.jsonl"
        write(place, [{"exact_match": alpha, "choice_accuracy": 0.0}])
    assert {*read_curve(tmp_path)["exact_match"]} == {"2-pets"}
    write(tmp_path / "general" / "0-2-pets.jsonl", [{"choice_accuracy": 1.0}])
    alphas = [0.0, 1e-5, 0.5]
    assert read_curve(tmp_path) == {
        "exact_match": {"2-pets (answers)": (alphas, alphas)},
        "choice_accuracy": {
            "2-pets (answers)": (alphas, [0.0] * 3),
            "2-pets (general)": ([0.0], [1.0]),
        },
    }


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--method", "ilora", "--hidden", "all", "--chat", "False", "--no-answers"),
        ("--recompute", "--targets", "q_proj", "v_proj", "--prompt", "a b"),
    ],
)
def test_the_command_of_settings_is_read_as_these_settings(home, tmp_path, more):
    """Oracle: the parser."""
    config = parse(words_of(home, tmp_path / "run", *more)[1:])
    words = shlex.split(command_of(config))
    assert words[:2] == ["jaxcl", "finetune"]
    assert parse(words[2:]) == config


def test_numbers_matter_to_the_methods_that_read_them(home, tmp_path):
    """Oracle: the fields that are read while a method is made. Some are read where
    the model is made."""
    read = set()

    class Watched(Numbers):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    job = finetuning.load(parse(words_of(home, tmp_path / "run")[1:]))
    model, names = decoder(job.setup.config), {f.name for f in fields(Numbers)}
    other = {"max_tasks", "num_selected", "prompts", "prompt_length"}
    gradients = [("seq", gradient) for gradient in get_args(Gradient)]
    for method, gradient in [*((m, "plain") for m in get_args(Method)), *gradients]:
        config = replace(
            job.config, method=method, gradient=gradient, numbers=Watched()
        )
        read.clear()
        make(config, model, job.setup.frozen)
        own = {name for name in names if matters(config, name)}
        assert (read & names) - other == own - other, (method, gradient)


def test_rows_beyond_the_context_are_warned_of(home, tmp_path):
    """Oracle: the message, for an answer of more tokens than the model's 128. Control: the
    other tests, in which a warning is an error."""
    lines = [{"prompt": "a", "answer": "b" * 200}, {"prompt": "a", "answer": "b"}] * 6
    write(
        tmp_path / "long.jsonl", [{**line, "n": str(n)} for n, line in enumerate(lines)]
    )
    words = words_of(home, tmp_path / "run", "--max-length", "300", tasks=())
    place = words.index("--tasks") + 1
    asked = [*words[:place], str(tmp_path / "long.jsonl"), *words[place:]]
    config = parse([*asked[1:], "--template", "{n} {prompt}"])
    with pytest.warns(UserWarning, match="--max-length: texts of up to 2.. tokens"):
        finetuning.load(config)


def test_a_task_of_few_answers_is_tested_by_choice():
    """Oracle: by hand. An answer of test rows alone is among those to choose from."""
    assert few_labels(3, ["a", "b"] * 3, ["c", "a"]) == ["a", "b", "c"]
    assert few_labels(2, ["a", "b"] * 3, ["c", "a"]) == []
    assert few_labels(9, ["a", "b", "c", "a", "b"], []) == []  # hardly any comes again
    assert few_labels(9, ["a"] * 9, []) == []


def test_flags_without_effect_are_named(home, tmp_path, capsys):
    """Oracle: by hand."""
    asked = "--mix", "0.3", "--rho", "0.1", "--decay", "0.9"
    words = words_of(home, tmp_path / "run", *asked)
    config = parse([*words[1:], "--gradient", "sam"])
    assert without_effect(config) == ["--mix (wise-ft)", "--decay (ilora)"]
    assert not without_effect(parse(words_of(home, tmp_path / "run")[1:]))
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "warning: without effect: --mix (wise-ft), --decay (ilora), --rho (" in said


def test_a_long_run_has_more_widths_and_less_padding(monkeypatch):
    """Oracle: by hand; the widths of rows that are mostly short."""
    count = lambda: [most_widths(steps) for steps in (1, 320, 512, 8192, 10**6)]
    assert count() == [4, 5, 8, 12, 12]
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert count() == [4, 4, 4, 8, 12]
    lengths = np.random.default_rng(0).lognormal(3.5, 1, 2000).astype(int).clip(2, 512)

    def padded(num_steps):
        widths = np.array(choose_widths(lengths, most=most_widths(num_steps)))
        return 1 - lengths.sum() / widths[np.searchsorted(widths, lengths)].sum()

    assert padded(800) < 0.15 < padded(200)
