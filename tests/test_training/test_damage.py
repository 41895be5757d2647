"""Checkpoints in odd places, and with files that were changed, removed or replaced."""

import json
import os
import shutil
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

from jaxcl.errors import InputError
from jaxcl.training import checkpoint, checkpoint_files, restore, save

NAMES = ["b[1]", "lr=[0.1,0.2]", "back\\slash", "100% a*b?", os.fsdecode(b"no \xff")]
LIKE = {"a": jnp.zeros(3)}


def three(value):
    return {"a": jnp.full(3, float(value))}


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints; each test does something to the later one."""
    for step in (1, 2):
        save(tmp_path, step, three(step), metadata={"rate": 0.5})
    return tmp_path


def assert_falls_back(folder, reason, **given):
    """Oracle: the tree of the earlier checkpoint, and then one line if that goes too."""
    with pytest.warns(UserWarning, match=rf"damaged.*: 2 \({reason}.*went back to 1"):
        step, tree, _ = restore(folder, LIKE, **given)
    assert (step, tree["a"].tolist()) == (1, [1.0] * 3)
    shutil.rmtree(folder / "1")
    with pytest.raises(InputError, match=rf"every checkpoint .* 2 \({reason}") as error:
        restore(folder, LIKE, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_holds_checkpoints(tmp_path, name):
    """Oracle: the array that was saved."""
    save(tmp_path / name, 1, three(7), keep=1)
    save(tmp_path / name, 2, three(8), keep=1)
    assert restore(tmp_path / name, LIKE).tree["a"].tolist() == [8.0] * 3
    assert sorted(os.listdir(tmp_path / name)) == ["2", "2.json"]


def test_what_cannot_be_read_again_removes_nothing(tmp_path, monkeypatch):
    """Oracle: a store that loses its arrays, as that of a name with brackets does."""
    save(tmp_path, 1, three(1), keep=1)

    def lossy(path, data, **options):
        del data
        write(path, {"other": jnp.ones(1)}, **options)

    write = orbax.save
    monkeypatch.setattr(orbax, "save", lossy)
    with pytest.raises(OSError, match=r"checkpoint 2 .* cannot be read again; give a"):
        save(tmp_path, 2, three(2), keep=1)
    assert restore(tmp_path, LIKE).step == 1


def rewrite(note, without=None, **fields):
    """Another value of a field, and none of another one."""
    held = {**json.loads(note.read_text()), **fields}
    held.pop(without, None)
    note.write_text(json.dumps(held))


NOTES = {
    "text": lambda note: note.write_text("{"),
    "deep": lambda note: note.write_text("[" * 5000),
    "null": lambda note: note.write_text("null"),
    "folder": lambda note: (note.unlink(), note.mkdir()),
    "pipe": lambda note: (note.unlink(), os.mkfifo(note)),
    **{
        f"{field}={json.dumps(value)}": lambda note, field=field, value=value: rewrite(
            note, **{field: value}
        )
        for field, value in (
            ("checksums", 3),
            ("leaves", [1]),
            ("metadata", None),
            ("notes", {"results": 0}),
            ("metadata", {"rate": 0.25}),
            ("crc32", None),
        )
    },
    **{  # of earlier versions, which had no checksum
        f"bare {field}": lambda note, field=field: rewrite(
            note, "crc32", **{field: None}
        )
        for field in ("leaves", "metadata", "notes")
    },
}


@pytest.mark.parametrize("damage", NOTES.values(), ids=NOTES)
def test_a_damaged_note_gives_way_to_the_one_before(folder, damage):
    """Oracle: the earlier tree; never the refusal as another run's."""
    damage(folder / "2.json")
    assert_falls_back(folder, "unreadable 2.json", metadata={"rate": 0.5})


def test_every_flipped_bit_of_a_note_is_noticed(folder):
    """Oracle: the earlier tree, or the same one where the bit means nothing (a space)."""
    note = folder / "2.json"
    text = note.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        place, bit = int(rng.integers(len(text))), 1 << int(rng.integers(8))
        note.write_bytes(text[:place] + bytes([text[place] ^ bit]) + text[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step, tree, _ = restore(folder, LIKE, metadata={"rate": 0.5})
        assert tree["a"].tolist() == [step] * 3


def test_a_note_of_an_earlier_version_is_read(folder):
    """Oracle: the note without its own checksum."""
    note = json.loads((folder / "2.json").read_text())
    del note["crc32"]
    (folder / "2.json").write_text(json.dumps(note))
    assert restore(folder, LIKE).step == 2


def test_removed_notes_are_named(folder):
    """Oracle: the earlier tree, and the warning; the next saves bring order."""
    (folder / "2.json").unlink()
    with pytest.warns(UserWarning, match=r"2 \(missing 2.json\); went back to 1"):
        assert restore(folder, LIKE).step == 1
    for step in (2, 3):
        save(folder, step, three(step))
    assert sorted(os.listdir(folder)) == ["2", "2.json", "3", "3.json"]


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("held", ["data", None])
def test_a_folder_in_place_of_a_note_is_kept_and_stops_no_save(folder, step, held):
    """Oracle: the tree saved last, without a warning, and what somebody has put there."""
    note = folder / "2.json"
    note.unlink()
    note.mkdir()
    if held:
        (note / "thesis.tex").write_text(held)
    for _ in range(2):
        save(folder, step, three(9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(folder, LIKE).tree["a"].tolist() == [9.0] * 3
    found = [file.read_text() for file in folder.glob("2.json*/thesis.tex")]
    assert found == [held] * len([*folder.glob("2.json.*")])
    assert bool(found) == bool(held)
    assert checkpoint_files.steps(folder) == [1, step]


def test_a_link_in_place_of_a_note_leaves_what_it_points_to(folder, tmp_path_factory):
    """Oracle: the folder behind it, and the tree saved last."""
    place = tmp_path_factory.mktemp("place")
    (place / "thesis.tex").write_text("data")
    (folder / "2.json").unlink()
    (folder / "2.json").symlink_to(place)
    save(folder, 2, three(9))
    assert restore(folder, LIKE).tree["a"].tolist() == [9.0] * 3
    assert (place / "thesis.tex").read_text() == "data"


@pytest.mark.parametrize(
    "name", ["2.json", "2/_CHECKPOINT_METADATA", "2/state/_METADATA"]
)
def test_what_may_not_be_read_gives_way_to_the_one_before(folder, name, monkeypatch):
    """Oracle: the earlier tree; the system refuses, as after `chmod 000`."""

    def refusing(read):
        def checked(path, *args, **options):
            if path == folder / name:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, *args, **options)

        return checked

    for reader in ("open", "read_bytes", "read_text"):
        owner = type(folder)
        monkeypatch.setattr(owner, reader, refusing(getattr(owner, reader)))
    assert_falls_back(folder, "unreadable")


REPLACED = {
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "dangling link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", REPLACED.values(), ids=REPLACED)
def test_a_file_that_was_replaced_gives_way_to_the_one_before(folder, damage):
    """Oracle: the earlier tree."""
    damage(folder / "2" / "state" / "manifest.ocdbt")
    assert_falls_back(folder, "missing")


def test_checkpoints_of_others_are_never_removed(tmp_path):
    """Oracle: an orbax checkpoint that somebody else put there, byte for byte."""
    orbax.save(str(tmp_path / "100000"), {"w": jnp.ones(2)})
    (tmp_path / "5.json").write_text("{}")
    files = lambda: {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    held = files()
    for step in range(4):
        save(tmp_path, step, three(step), keep=1)
    assert held.items() <= files().items()
    with pytest.raises(InputError, match="100000 was not written by jaxcl; move it"):
        save(tmp_path, 100000, three(1))
    assert held.items() <= files().items()


@pytest.mark.parametrize("moment", ["rename", "delete"])
def test_a_kill_inside_a_removal_leaves_nothing_for_ever(folder, monkeypatch, moment):
    """Oracle: the folder after the next save; between them the latest is read, silently."""
    gone, delete = folder / "1.removed", shutil.rmtree

    def killed(path, *args, **options):
        if path == gone and path.exists():
            if moment == "delete":
                (path / "orbax.checkpoint").unlink()
            raise KeyboardInterrupt
        delete(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 3, three(3))
    monkeypatch.undo()
    assert gone.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(folder, LIKE).step == 3
    save(folder, 4, three(4))
    assert sorted(os.listdir(folder)) == ["3", "3.json", "4", "4.json"]


def test_a_save_that_was_cut_short_is_passed_over_silently(folder, monkeypatch):
    """Oracle: the folder after the next save, and the tree before."""
    replace = os.replace

    def killed(old, new):
        if str(new).endswith("3.json"):
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 3, three(3))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(folder, LIKE).step == 2
    save(folder, 4, three(4))
    assert sorted(os.listdir(folder)) == ["2", "2.json", "4", "4.json"]


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(folder, monkeypatch):
    """Oracle: the warning, and the tree that was saved."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint_files, "remove", refuse)
    with pytest.warns(UserWarning, match="save: cannot remove .*1"):
        save(folder, 3, three(3))
    assert restore(folder, LIKE).step == 3


def test_a_step_that_is_saved_again_has_the_later_tree(folder):
    """Oracle: the tree that was saved last."""
    save(folder, 2, three(9))
    assert restore(folder, LIKE).tree["a"].tolist() == [9.0] * 3
    assert sorted(os.listdir(folder)) == ["1", "1.json", "2", "2.json"]


def test_the_folder_of_a_run_is_that_of_its_checkpoints(tmp_path):
    """Oracle: the tree beneath ``checkpoints/``."""
    save(tmp_path / "checkpoints", 4, three(4))
    assert restore(tmp_path, LIKE).step == 4


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    """Oracle: the working directory of the first call, after a change of it."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with checkpoint.saving("rel") as later:
        monkeypatch.chdir("elsewhere")
        later(1, three(1))
    assert restore(tmp_path / "rel", LIKE).step == 1


def test_metadata_may_have_paths_and_numpy_scalars(tmp_path):
    """Oracle: the same metadata as text and numbers."""
    odd = {"data": tmp_path / "x", "rate": np.float32(0.5), "n": [np.int64(3)]}
    save(tmp_path, 1, three(1), metadata=odd)
    same = {"data": str(tmp_path / "x"), "rate": 0.5, "n": [3]}
    for metadata in (odd, same):
        assert restore(tmp_path, LIKE, metadata=metadata).step == 1


def test_the_refusal_of_another_run_is_short(tmp_path):
    """Oracle: arithmetic; three differences of at most 40 characters a side."""
    long = {f"setting {i}": "x" * 300 for i in range(9)}
    save(tmp_path, 1, three(1), metadata=long)
    with pytest.raises(
        InputError, match=r"setting 0 'xxx.*\.\.\., not .* and 6 more"
    ) as e:
        restore(tmp_path, LIKE, metadata={})
    assert len(str(e.value)) < 500 + len(str(tmp_path))
