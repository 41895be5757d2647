"""Examples and commands of the READMEs, each as a reader would copy it."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from jaxcl.data import instruct_prompts
from jaxcl.runs.batch import experiment_of, read_words, words_for_run
from jaxcl.runs.experiment import parse
from tests.tiny_tokenizers import byte_level

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.S | re.M)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs_alone_and_prints_what_it_shows(number, tmp_path, monkeypatch):
    """Oracle: doctest, with no names of other blocks and a new working directory.

    Dots stand for digits that depend on the processor.
    """
    monkeypatch.chdir(tmp_path)
    parsed = doctest.DocTestParser().get_doctest(
        BLOCKS[number], {"__name__": "__main__"}, f"block {number}", README.name, 0
    )
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    result = runner.run(parsed, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


def test_there_are_blocks():
    """Oracle: the fences, counted in another way; none is left out by the pattern."""
    assert len(BLOCKS) == README.read_text().count("```python") >= 4


def test_rows_that_are_shown_are_read_as_prompts_and_answers(tmp_path):
    """Oracle: the answers in the lines themselves."""
    (block,) = re.findall(r"^```json\n(.*?)^```$", README.read_text(), re.S | re.M)
    tokenizer, answers = byte_level(), []
    for number, line in enumerate(block.splitlines()):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(line)
        prompts = instruct_prompts(path, tokenizer, chat=True)
        assert "2 + 2" in line or "2 and 2" in tokenizer.decode(prompts.tokens[0])
        answers += [answer.strip() for answer in prompts.answers]
    assert answers == ["4"] * 3


def test_the_readme_says_what_each_part_is():
    """Oracle: the modules and packages of the library."""
    listed = (
        README.read_text().partition("## How it is built")[2].partition("\n```\n")[0]
    )
    named = set(re.findall(r"[\w.]+", listed))
    found = [*(README.parent / "jaxcl").iterdir()]
    own = lambda path: path.suffix in ("", ".py") and not path.name.startswith("_")
    parts = {path.name for path in found if own(path)}
    assert len(parts) > 20
    assert parts <= named


COMMANDS = [
    line.split("#")[0]
    for path in [README, *sorted(README.parent.glob("experiments/**/README.md"))]
    for block in re.findall(r"^```\w*\n(.*?)^```$", path.read_text(), re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("python -m experiments", "jaxcl batch"))
    and " accelerator" not in line  # it has a parser of its own
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_its_module_takes(command, tmp_path, monkeypatch):
    """Oracle: the parsers of experiments and batches; a misspelt field is refused."""
    monkeypatch.chdir(tmp_path)
    Path("settings.jsonl").write_text('{"rho": 0.1}\n')
    words = shlex.split(command)
    if words[0] == "jaxcl":
        batch = read_words(words[2:])
        experiment = experiment_of(batch.module)
        lines = [words_for_run(batch, one) for one in batch.each]
    else:
        module = words[2]
        experiment, lines = (
            experiment_of(module),
            [words[3:]],
        )  # refuses unknown modules
    for line in lines if experiment else ():
        if "--help" not in line:
            parse(experiment, line)
            with pytest.raises(SystemExit):
                parse(experiment, [*line, "--misspelt", "1"])
