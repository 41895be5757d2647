"""The example scripts run, stay short, and show what they say."""

import json
import os
import runpy
import signal
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.examples import (
    finetune,
    growing,
    own_loop,
    own_network,
    sharpness,
    sweep,
)
from jaxcl.interop import load_adapter, load_pretrained, save_pretrained
from jaxcl.models import DecoderConfig, decoder
from tests.tiny_tokenizers import byte_level

FOLDER = Path(__file__).parents[2] / "experiments" / "examples"
SCRIPTS = sorted(FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_at_most_60_lines_and_listed(path):
    """Oracle: its lines, the README beside it, and its own docstring."""
    text = path.read_text()
    command = f"experiments.examples.{path.stem}"
    assert len(text.splitlines()) <= 60
    assert f"[`{command}`]({path.name})" in (FOLDER / "README.md").read_text()
    assert f"python -m {command}\n" in text


def test_ewc_keeps_the_first_task_in_a_loop_of_ones_own():
    """Oracle: the same loop with a strength of zero, whose first task is forgotten."""
    kept, forgotten = own_loop.main(num_steps=120), own_loop.main(0.0, num_steps=120)
    assert kept[0] > forgotten[0] + 0.05
    assert min(kept[1], forgotten[1]) > 0.8


def test_a_network_of_ones_own_has_both_learners_evaluated():
    """Oracle: zero for classes not seen yet, and above chance for all at the end."""
    found = own_network.main(num_steps=60)
    assert {name: matrix.shape for name, matrix in found.items()} == {
        "params": (6, 5),
        "nearest_mean": (6, 5),
    }
    assert all(matrix[-1].mean() > 0.5 for matrix in found.values())
    assert all(matrix[1, 1:].max() < 0.1 for matrix in found.values())


def test_a_grown_stream_ends_where_the_full_one_does():
    """Oracle: all three tasks in one call, in another folder; the same bits."""
    two, three, at_once = growing.main(num_steps=20)
    np.testing.assert_array_equal(three[:2, :2], two)
    np.testing.assert_array_equal(three[2], at_once[2])


def test_a_sweep_has_every_run_and_names_what_diverged():
    """Oracle: its own first strength, zero, and EWC's bound of stability."""
    grid = np.asarray(sweep.main(num_seeds=2, num_steps=100))
    assert grid.shape == (4, 2)
    assert np.isnan(grid[-1]).all()
    assert (grid[2] > grid[0] + 0.02).all()


def test_sam_ends_at_a_flatter_point_and_the_script_prints_it(capsys):
    """Oracle: SGD from the same start on the same batches; the printed line is main's."""
    runpy.run_path(str(FOLDER / "sharpness.py"), run_name="__main__")
    found = sharpness.main()
    assert found["SAM"][0] < 0.9 * found["SGD"][0]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["SGD", "SAM"]
    assert f"top eigenvalue {found['SAM'][0]:.2f}" in lines[1]


def _decoder_and_files(tmp_path):
    """Folder of a small decoder, and two files of prompts and answers."""
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = DecoderConfig(len(tokenizer), 16, 32, 2, 2, initializer_range=0.2)
    params = decoder(sizes).init(jax.random.key(0))
    save_pretrained(tmp_path / "model", sizes, params)
    asked = {"first": ("Is {} odd?", "yes"), "second": ("Is {} even or not?", "no")}
    for name, (ask, answer) in asked.items():  # rows of two lengths
        rows = [{"prompt": ask.format(n), "answer": answer} for n in range(30)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    files = [str(tmp_path / f"{name}.jsonl") for name in ("first", "second")]
    return str(tmp_path / "model"), files


def test_a_decoder_is_fine_tuned_on_files_and_leaves_an_adapter(tmp_path):
    """Oracle: both losses fall; a run of one file goes on as one of both does."""
    model, files = _decoder_and_files(tmp_path)
    run = partial(finetune.main, model, num_steps=15, rank=4)
    wanted = run(str(tmp_path / "at once"), *files)
    run(str(tmp_path / "grown"), files[0])
    found = run(str(tmp_path / "grown"), *files)
    losses = found["loss"]["params"]
    np.testing.assert_array_equal(losses[2], wanted["loss"]["params"][2])
    assert losses[1, 0] < losses[0, 0] - 0.5
    assert losses[2, 1] < losses[1, 1] - 0.5
    config, base = load_pretrained(tmp_path / "model")
    tuned = load_adapter(tmp_path / "grown" / "adapter-2", base)
    tokens = np.arange(1, 9)[None]
    before, after = (decoder(config).apply(p, tokens) for p in (base, tuned))
    assert np.abs(after - before).max() > 0.1


def test_an_interrupted_fine_tuning_leaves_its_adapter_to_the_finished_one(
    tmp_path, monkeypatch
):
    """Oracle: the adapter of a run that no signal interrupted; the same bits."""
    model, files = _decoder_and_files(tmp_path)
    run = partial(finetune.main, model, num_steps=4, rank=4)
    run(str(tmp_path / "at once"), *files)
    signals = iter([signal.SIGTERM])
    interrupt = lambda steps, text: [os.kill(os.getpid(), each) for each in signals]
    learn = partial(finetune.learn, on_progress=interrupt)
    monkeypatch.setattr(finetune, "learn", learn)
    with pytest.raises(SystemExit, match="run is interrupted: no adapter"):
        run(str(tmp_path / "twice"), *files)
    assert not [*(tmp_path / "twice").glob("adapter-*")]
    run(str(tmp_path / "twice"), *files)
    name = "adapter-2/adapter_model.safetensors"
    wanted, found = (tmp_path / each / name for each in ("at once", "twice"))
    assert found.read_bytes() == wanted.read_bytes()
