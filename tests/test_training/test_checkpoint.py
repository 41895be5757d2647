"""Checkpoints: bits come back, damage is noticed, differences are shown."""

import resource
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.training import checkpoint


class Carry(NamedTuple):
    params: dict
    empty: tuple
    memory: jax.Array
    count: jax.Array
    key: jax.Array


def carry(seed=0):
    key = jax.random.key(seed)
    weights = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    weights[0, 0], weights[0, 1] = np.nan, -0.0
    return Carry(
        params={"w": jnp.asarray(weights), "half": jnp.asarray(weights, jnp.bfloat16)},
        empty=((), None),
        memory=jnp.zeros((0, 4)),
        count=jnp.int32(7 + seed),
        key=jax.random.split(key, 2),
    )


def bits(tree):
    """Oracle: the bytes of every leaf, with its dtype and shape."""
    raw = lambda a: jax.random.key_data(a) if a.dtype == jax.random.key(0).dtype else a
    return [
        (str(a.dtype), a.shape, np.asarray(raw(a)).tobytes())
        for a in jax.tree.leaves(tree)
    ]


def data_files(path):
    return [f for f in path.rglob("*") if f.is_file() and f.parent.name == "d"]


def test_a_restored_carry_has_the_same_bits_and_structure(tmp_path):
    """Oracle: bytes of each leaf (NaN, -0, bfloat16, keys, zero rows, scalars)."""
    saved = carry()
    checkpoint.save(tmp_path, 3, saved)
    for like in (saved, jax.eval_shape(lambda: saved)):
        step, tree, _ = checkpoint.restore(tmp_path, like)
        assert step == 3
        assert bits(tree) == bits(saved)
        assert jax.tree.structure(tree) == jax.tree.structure(saved)
    assert bits(carry(1)) != bits(saved)


def test_restored_keys_go_on_where_the_saved_ones_stopped(tmp_path):
    """Oracle: the same draw from the key that was never written."""
    saved = {"key": jax.random.key(5, impl="rbg")}
    checkpoint.save(tmp_path, 0, saved)
    tree = checkpoint.restore(tmp_path, saved).tree
    draw = lambda key: np.asarray(jax.random.normal(key, (4,)))
    np.testing.assert_array_equal(draw(tree["key"]), draw(saved["key"]))


def test_only_the_latest_are_kept_and_the_latest_is_read(tmp_path):
    """Oracle: counting by hand."""
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"x": jnp.full(2, step)})
    (tmp_path / "11.new").mkdir()  # as a kill leaves it
    (tmp_path / "11.new" / "orbax.checkpoint").touch()
    assert checkpoint.steps(tmp_path) == [2, 10]
    restored = checkpoint.restore(tmp_path, {"x": jnp.zeros(2, jnp.int32)})
    assert restored.step == 10
    assert restored.tree["x"].tolist() == [10, 10]
    checkpoint.save(tmp_path, 12, {"x": jnp.full(2, 12)}, keep=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["12", "12.json"]


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "metadata"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    """Oracle: the tree saved one step earlier."""
    checkpoint.save(tmp_path, 1, carry(1))
    latest = checkpoint.save(tmp_path, 2, carry(2))
    files = data_files(latest)
    assert files
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 255])
        if damage == "cut":
            file.write_bytes(content[:middle])
        elif damage == "flip":
            file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        elif damage == "remove":
            file.unlink()
    if damage == "metadata":
        latest.with_suffix(".json").write_text("{")
    with pytest.warns(UserWarning, match="went back to 1"):
        step, tree, _ = checkpoint.restore(tmp_path, carry())
    assert step == 1
    assert bits(tree) == bits(carry(1))


def test_what_was_damaged_takes_no_place_after_a_fall_back(tmp_path):
    """Oracle: with two kept, the newest may be damaged again and one sound one is left."""
    value = lambda step: {"x": jnp.full(2, step)}
    for step in (10, 20):
        checkpoint.save(tmp_path, step, value(step))
    data_files(tmp_path / "20")[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="went back to 10"):
        assert checkpoint.restore(tmp_path, value(0)).step == 10
    for step in (12, 14):
        checkpoint.save(tmp_path, step, value(step))
    assert checkpoint.steps(tmp_path) == [12, 14]
    data_files(tmp_path / "14")[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="went back to 12"):
        assert checkpoint.restore(tmp_path, value(0)).step == 12


def test_without_a_sound_checkpoint_there_is_an_error(tmp_path):
    """Oracle: one flipped bit in the only checkpoint; flipped back, it is read."""
    path = checkpoint.save(tmp_path, 0, {"x": jnp.ones(2)})
    file = max(data_files(path), key=lambda file: file.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ValueError, match=r"every checkpoint .* damaged: 0 \(changed"):
        checkpoint.restore(tmp_path, {"x": jnp.ones(2)})
    file.write_bytes(content)
    assert checkpoint.restore(tmp_path, {"x": jnp.zeros(2)}).tree["x"].tolist() == [
        1,
        1,
    ]


def test_another_structure_is_refused_with_the_differences(tmp_path):
    """Oracle: the three differences made on purpose, and only those."""
    checkpoint.save(
        tmp_path, 0, {"a": jnp.ones(2), "b": jnp.ones(3), "same": jnp.ones(1)}
    )
    like = {"a": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(3), "same": jnp.ones(1)}
    with pytest.raises(ValueError, match="another tree") as caught:
        checkpoint.restore(tmp_path, like)
    message = str(caught.value)
    assert "['a']: on disk float32[2], expected bfloat16[2]" in message
    assert "['b']: on disk float32[3], expected absent" in message
    assert "['c']: on disk absent, expected float32[3]" in message
    assert "same" not in message


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    """Oracle: the message."""
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.restore(tmp_path / "nowhere", {"x": jnp.ones(1)})


def test_a_tree_without_data_round_trips(tmp_path):
    """Oracle: the structure itself."""
    tree = {"none": (), "empty": jnp.zeros((0, 2))}
    checkpoint.save(tmp_path, 0, tree)
    restored = checkpoint.restore(tmp_path, tree).tree
    assert bits(restored) == bits(tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_what_is_held_stays_and_does_not_count(tmp_path):
    """Oracle: the list of steps, by hand."""
    for step in range(6):
        checkpoint.save(
            tmp_path, step, {"x": jnp.full(2, step)}, keep=2, preserve=step in (1, 3)
        )
    assert checkpoint.steps(tmp_path) == [1, 3, 4, 5]


def test_what_is_no_checkpoint_stays(tmp_path):
    """Oracle: what was put there; what a kill leaves of a save is the control."""
    (tmp_path / "1000").mkdir()
    others = [tmp_path / name for name in ("2024.csv", "1000/weights", "7")]
    left = [tmp_path / "3.new.orbax-checkpoint-tmp", tmp_path / ".3.new.json.tmp"]
    for path in [*others, *left]:
        path.write_text("kept")
    left[0].unlink()
    left[0].mkdir()
    for step in range(4):
        checkpoint.save(tmp_path, step, {"x": jnp.ones(2)}, keep=1)
    assert [path.read_text() for path in others] == ["kept"] * 3
    assert not any(path.exists() for path in left)
    assert checkpoint.steps(tmp_path) == [3]
    assert not (tmp_path / "2").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Oracle: the difference that was made. What was not said is not compared."""
    tree = {"x": jnp.ones(2)}
    checkpoint.save(tmp_path, 0, tree, metadata={"rate": 0.1, "sizes": (3, 4)})
    assert (
        checkpoint.restore(tmp_path, tree, metadata={"rate": 0.1, "sizes": (3, 4)}).step
        == 0
    )
    assert checkpoint.restore(tmp_path, tree).step == 0
    with pytest.raises(ValueError, match=r"rate 0\.1, not 0\.2; seed 'absent', not 1"):
        checkpoint.restore(
            tmp_path, tree, metadata={"rate": 0.2, "sizes": (3, 4), "seed": 1}
        )


def test_a_tree_may_be_donated_while_it_is_written(tmp_path):
    """Oracle: its values before. Two saves in a row are both on the disk."""
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    x = jnp.arange(100_000.0)
    with checkpoint.saving(tmp_path) as later:
        for step in range(2):
            later(step, {"x": x})
            x = double(x)
    want = np.arange(100_000.0)
    found = checkpoint.restore(tmp_path, {"x": x}).tree["x"]
    np.testing.assert_array_equal(found, 2 * want)
    assert checkpoint.steps(tmp_path) == [0, 1]


def test_a_disk_that_refuses_is_heard_of(tmp_path):
    """Oracle: a file where the folder should be, and what stands in it."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with (
        pytest.raises(OSError, match=r"save: checkpoint 0 of .* could not be written"),
        checkpoint.saving(blocked / "in") as later,
    ):
        later(0, {"x": jnp.ones(2)})


def test_an_error_of_the_disk_is_raised_once_and_later_saves_are_written(tmp_path):
    """Oracle: what is in the folder, once a file no longer stands in its place."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with checkpoint.saving(blocked / "in") as later:
        later(0, {"x": jnp.ones(2)})
        with pytest.raises(OSError, match="checkpoint 0"):
            later(1, {"x": jnp.ones(2)})
        blocked.unlink()
        later(2, {"x": jnp.full(2, 2.0)})
    assert checkpoint.restore(blocked / "in", {"x": jnp.zeros(2)}).step == 2


def save_later(folder, step, tree):
    with checkpoint.saving(folder) as later:
        later(step, tree)


@pytest.mark.parametrize("write", [checkpoint.save, save_later])
def test_a_full_disk_is_told_and_leaves_the_last_good_checkpoint(tmp_path, write):
    """Oracle: the system, which refuses files above a size; then it does not any more."""
    small, large = {"x": jnp.ones(2)}, {"x": jnp.arange(500_000.0)}
    checkpoint.save(tmp_path, 1, small)
    wanted = (
        rf"checkpoint 2 of .*{tmp_path.name} could not be .*last good one is 1; make"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=wanted):
            write(tmp_path, 2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.restore(tmp_path, small).step == 1
    checkpoint.save(tmp_path, 2, large)
    assert checkpoint.restore(tmp_path, large).step == 2
    assert not [entry for entry in tmp_path.iterdir() if "tmp" in entry.name]
