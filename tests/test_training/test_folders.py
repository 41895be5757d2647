"""Folders of runs of the host loop: what is there is kept, and nothing else used."""

import builtins
import errno
import io
import json
import os
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.errors import InputError, WriteError
from jaxcl.training import checkpoint
from tests.test_training.test_host import (
    OPTIONS,
    assert_same_bits,
    run,
    stream,
    tasks,
)

__all__ = ["stream", "tasks"]  # fixtures
SHORT = OPTIONS._replace(num_steps=3, save_every=1e9)


def lines_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def finished(tasks, tmp_path_factory):
    """A finished run of two tasks."""
    folder = tmp_path_factory.mktemp("finished")
    return run(folder, tasks[:2], SHORT), folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of its folder, for a test to change."""
    shutil.copytree(finished[1], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("way", ["gone", "empty", "foreign", "file"])
def test_a_run_without_its_checkpoints_is_refused(copy, tasks, way):
    """Oracle: its metrics, which a run that begins would remove."""
    held, place = (copy / "metrics.jsonl").read_text(), copy / "checkpoints"
    shutil.rmtree(place)
    if way == "empty":
        place.mkdir()
    elif way == "foreign":
        checkpoint.save(place, 3, {"x": jnp.ones(1)})
        (place / "3.json").unlink()
        (place / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    elif way == "file":
        place.write_text("")
    with pytest.raises(InputError, match=r"are not in|be read|missing 3.json") as e:
        run(copy, tasks[:2], SHORT)
    assert "\n" not in str(e.value)
    assert (copy / "metrics.jsonl").read_text() == held
    assert way != "foreign" or (place / "3").exists()


def test_checkpoints_that_may_not_be_listed_are_refused(copy, tasks, monkeypatch):
    """Oracle: the folder as it was; the system refuses, as after `chmod 000`."""
    held, listdir = lines_of(copy), os.listdir

    def refuse(path):
        if path == copy / "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        run(copy, tasks[:2], SHORT)
    assert lines_of(copy) == held


def test_a_run_that_was_cut_before_its_first_checkpoint_begins_again(tasks, tmp_path):
    """Oracle: the run left alone."""

    def stop(line):
        if line.get("step"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tasks[:1], SHORT, on_report=stop)
    assert lines_of(tmp_path / "cut")
    cut = run(tmp_path / "cut", tasks[:1], SHORT)
    alone = run(tmp_path / "alone", tasks[:1], SHORT)
    assert_same_bits(cut.run_state, alone.run_state)


def test_a_relative_folder_is_that_of_the_start(tasks, tmp_path, monkeypatch):
    """Oracle: the checkpoints in the first working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    leave = lambda *given: os.chdir(tmp_path / "elsewhere")
    run("rel", tasks[:1], SHORT, on_progress=leave)
    assert checkpoint.steps(tmp_path / "rel" / "checkpoints") == [4]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_loss_and_seconds_are_those_of_all_steps(finished, copy, tasks):
    """Oracle: the lines of the metrics; they are the same after they were removed."""
    result, folder = finished
    steps = [line for line in map(json.loads, lines_of(folder)) if "loss" in line]
    for task in range(2):
        two, last = [line["loss"] for line in steps if line["task"] == task]
        wanted = (2 * two + last) / 3  # lines of two steps and of one
        np.testing.assert_allclose(result.loss[task], wanted, rtol=1e-12)
    seconds = sum(line["seconds"] for line in steps)
    np.testing.assert_allclose(result.seconds, seconds, atol=1e-5)
    (copy / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="had finished|lines up to"):
        again = run(copy, tasks[:2], SHORT)
    np.testing.assert_array_equal(again.loss, result.loss)
    assert again.seconds == result.seconds


def test_a_cut_tail_of_the_metrics_is_noticed(copy, tasks):
    """Oracle: the number of lines that were removed."""
    lines = lines_of(copy)
    (copy / "metrics.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    with pytest.warns(UserWarning, match=rf"{len(lines) - 2} of {len(lines)} lines up"):
        run(copy, tasks, SHORT)


@pytest.mark.parametrize("name", [".lock", ".metrics.jsonl.tmp", "metrics.jsonl"])
def test_no_link_is_followed(copy, tasks, tmp_path, name):
    """Oracle: what it points to."""
    target = tmp_path / "precious"
    target.write_text("held")
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(target)
    refused = pytest.raises(InputError, match=r"is a link|must be a regular file")
    with nullcontext() if name.endswith("tmp") else refused:
        run(copy, tasks, SHORT)
    assert target.read_text() == "held"


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_pipe_is_refused(copy, tasks, name):
    """Oracle: the message; reading it would wait for ever."""
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(InputError, match=r"not a file|must be a regular file"):
        run(copy, tasks, SHORT)


@pytest.mark.parametrize("folder", ["", "a\0b"])
def test_what_is_not_a_path_is_refused(tasks, folder, tmp_path, monkeypatch):
    """Oracle: the message, and the working directory."""
    monkeypatch.chdir(tmp_path)
    like = {"x": jnp.ones(1)}
    for call in (
        lambda: run(folder, tasks[:1], SHORT),
        lambda: run("new", tasks[:1], SHORT, start=folder),
        lambda: checkpoint.save(folder, 1, like),
        lambda: checkpoint.restore(folder, like),
    ):
        with pytest.raises(InputError, match=r"(folder|start) must be a path, got"):
            call()
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_may_have_a_name_of_any_characters(tasks, tmp_path):
    """Oracle: the same run in a plain folder."""
    odd = tmp_path / os.fsdecode(b"lr=[0.1] back\\slash \xff")
    plain = run(tmp_path / "plain", tasks[:1], SHORT)
    assert_same_bits(run(odd, tasks[:1], SHORT).run_state, plain.run_state)
    with pytest.warns(UserWarning, match="had finished"):
        again = run(odd, tasks[:1], SHORT)
    assert_same_bits(again.run_state, plain.run_state)


def test_a_run_is_restored_by_its_folder_and_its_state(tasks, tmp_path):
    """Oracle: the state itself; a part of it is refused with what to give."""
    learned = run(tmp_path / "plain", tasks[:1], SHORT)
    found = checkpoint.restore(tmp_path / "plain", learned.run_state).tree
    assert_same_bits(found, learned.run_state)
    with pytest.raises(
        InputError, match=r"It is of a run: give the run_state of learn's"
    ):
        checkpoint.restore(tmp_path / "plain", learned.params)


@pytest.mark.parametrize("name", ["checkpoints", ".lock", "run", "below a file"])
def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(
    tasks, tmp_path, monkeypatch, name
):
    """Oracle: the documented kind: an OSError, and an InputError, of one line;
    a disk is full, or a file stands where a folder should be."""
    mkdir, low, full = Path.mkdir, os.open, "No space left on device"

    def refuse(real):
        def checked(path, *given, **options):
            if Path(path).name == name:
                raise OSError(errno.ENOSPC, full, str(path))
            return real(path, *given, **options)

        return checked

    monkeypatch.setattr(Path, "mkdir", refuse(mkdir))
    monkeypatch.setattr(os, "open", refuse(low))
    folder, below = tmp_path / "run", name == "below a file"
    if below:
        folder.write_text("")
    with pytest.raises(WriteError, match=r"learn: .* cannot be written to") as error:
        run(folder / "deeper" if below else folder, tasks[:1], SHORT)
    said = str(error.value)
    assert ("Not a directory" if below else full) in said
    assert "give another folder" in said
    assert "\n" not in said


def test_a_finished_run_on_a_read_only_disk_is_returned(
    finished, copy, tasks, monkeypatch
):
    """Oracle: the run; the system refuses to open anything there for writing."""
    opened, low = builtins.open, os.open

    def refuse(path, *given, **options):
        mode = given[0] if given else options.get("mode", "r")
        flags = mode if isinstance(mode, int) else os.O_RDWR * ("r" not in mode)
        writes = flags & (os.O_RDWR | os.O_CREAT)
        if str(path).startswith(str(copy)) and writes:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return (low if isinstance(mode, int) else opened)(path, *given, **options)

    for owner in (os, io, builtins):
        monkeypatch.setattr(owner, "open", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = run(copy, tasks[:2], SHORT)
    assert_same_bits(again.run_state, finished[0].run_state)
    with pytest.raises(OSError, match="could not be written"):
        run(copy, tasks, SHORT)
