"""The command ``jaxcl convert``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcl.cli import convert, main
from jaxcl.interop import gguf as module
from jaxcl.signals import Terminated
from tests import toy_gguf as toy

ROOT = Path(__file__).parent.parent.parent


def test_a_file_becomes_a_folder_once(tmp_path, capsys):
    """Oracle: the printed sizes by hand; the second time is refused in one line."""
    path, tensors = toy.toy(tmp_path / "a.gguf", kind="Q4_1")
    words = ["convert", str(path), str(tmp_path / "out")]
    assert main([*words, "--dtype", "float32", "--shard-size=60KB"]) == 0
    size = sum(array.size for array in tensors.values())
    said = capsys.readouterr()
    assert f"{size:,} parameters in float32, 0 MB: {tmp_path / 'out'}" in said.out
    assert "percent: 100/100" in said.err
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * size
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: convert: ")
    assert said.err.count("\n") == 1
    assert "exists, and nothing is overwritten" in said.err


@pytest.mark.parametrize("words", [[], ["--help"], ["a.gguf", "b", "-h"]])
def test_help_teaches(capsys, words):
    """Oracle: the options, an example, the extra, and where the folder is read."""
    assert convert.main(words) == 0
    said = capsys.readouterr().out
    needed = ["jaxcl convert FILE.gguf FOLDER", "--dtype bfloat16", "--shard-size 5GB"]
    needed += ["--split NAME", "llama-bpe", "pip install '.[gguf]'", "load_pretrained"]
    for text in needed:
        assert text in said
    assert main(["--help"]) == 0
    assert "jaxcl convert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.gguf"], "expected FILE.gguf FOLDER, got 1 words"),
        (["a.gguf", "b", "c"], "got 3 words"),
        (
            ["a.gguf", "b", "--dtyp", "x"],
            "expected one of --dtype, --shard-size, --split",
        ),
        (["a.gguf", "b", "--dtype"], "expected a value after --dtype"),
        (["a.gguf", "b", "--dtype", "int8"], "dtype must be one of bfloat16, float32"),
        (["a.gguf", "b", "--dtype=float32", "--dtype=float32"], "is given twice"),
        (["a.gguf", "b", "--shard-size", "5TB"], "expected such as 5GB or 500MB"),
        (["a.gguf", "b", "--shard-size", "0"], "expected such as 5GB or 500MB"),
        (["a.gguf", "b", "--split", "words"], "split must be one of gpt-2"),
        (["a\n.gguf", "b"], "expected a path, got 'a"),
        (["a.gguf", ""], "expected a path, got ''"),
        (["a.gguf", "b"], "expected a GGUF file at a.gguf, got nothing"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    tmp_path, monkeypatch, capsys, words, said
):
    """Oracle: the messages; nothing is created."""
    monkeypatch.chdir(tmp_path)
    assert convert.main(words) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: convert: ")
    assert line.count("\n") == 1
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("7", 7), ("2KB", 2000)],
)
def test_sizes_of_files_have_units(text, size):
    """Oracle: by hand."""
    _, _, options = convert.read_words(["a", "b", "--shard-size", text])
    assert options == {"shard_size": size}


def test_help_and_refusals_need_no_jax(tmp_path):
    """Oracle: the modules of a process that has refused a file of another family."""
    toy.toy(tmp_path / "a.gguf", architecture="bert")
    code = (
        "import sys\n"
        "from jaxcl.cli import main\n"
        "code = main(['convert', *sys.argv[1:]])\n"
        "assert not {'jax', 'pandas', 'transformers'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    for words, wanted in [(["--help"], 0), ([str(tmp_path / "a.gguf"), "b"], 2)]:
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "AssertionError" not in done.stderr
        assert done.returncode == wanted
    assert "architecture llama is supported, got 'bert'" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 0, "terminated")],
)
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, capsys, error, code, word):
    """Oracle: exit codes and words; the files."""
    path, _ = toy.toy(tmp_path / "a.gguf")

    def read_rows(*_):
        raise error

    monkeypatch.setattr(module, "read_rows", read_rows)
    assert main(["convert", str(path), str(tmp_path / "out")]) == code
    assert f"{word}; {tmp_path / 'out'} was not written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
