"""What a run noted of itself is what the commands on it do."""

import json

from jaxcl.cli import main
from jaxcl.files import read_lines
from jaxcl.finetune.config import config_of
from tests.test_finetune.conftest import words_of, write


def test_commands_test_a_run_as_it_tested_itself(home, tmp_path, capsys):
    """Oracle: the answers that the run wrote: of its own format, length of answers, and
    number of questions, which differ from the defaults."""
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
    more = "--general", str(home / "general.jsonl"), "--general-rows", "2"
    asked = [*words[:place], held, *words[place:], *form, "--chat", "False", *more]
    assert main(asked) == 0
    config = config_of(out)
    assert (config.testing.max_new_tokens, config.testing.general_rows) == (40, 2)
    assert main(["evaluate", str(out), "--out", str(tmp_path / "own")]) == 0
    own = read_lines(out / "answers" / "001-pets-params.jsonl")
    assert read_lines(tmp_path / "own" / "pets.jsonl") == own
    general = read_lines(out / "general" / "001-general-params.jsonl")
    assert read_lines(tmp_path / "own" / "general.jsonl") == general
    assert len(general) == 2
    # The same rows as another file, and by hand.
    longest = "--max-new-tokens", "40"
    given = ["--tasks", held, *longest, "--out", str(tmp_path / "other")]
    assert main(["evaluate", str(out), *given]) == 0
    other = {line["prompt"]: line for line in read_lines(tmp_path / "other/pets.jsonl")}
    assert all(other[line["prompt"]]["output"] == line["output"] for line in own)
    capsys.readouterr()
    text = own[0]["prompt"]
    assert main(["generate", str(out), "--prompt", text, *longest, "--as-json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"prompt": text, "output": own[0]["output"]}
