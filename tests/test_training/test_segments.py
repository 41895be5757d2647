"""Walks in segments: same bits as one walk, also after a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.training import device, in_segments, segment_size
from jaxcl.training.checkpoint import steps


@jax.jit
def wander(state, tasks):
    """A random walk whose every step depends on all before it, for two runs."""

    def body(state, task):
        key, place = state
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, task)))(key)
        place = jnp.sin(3 * place) + noise
        return (key, place), {"place": place, "task": jnp.full(2, task)}

    state, record = jax.lax.scan(body, state, tasks)
    return state, jax.tree.map(lambda leaf: leaf.T, record)  # [runs, tasks]


def start():
    return jax.random.split(jax.random.key(0), 2), jnp.zeros(2)


def test_segments_equal_one_walk(tmp_path):
    """Oracle: the compiled stream, not cut."""
    (_, place), want = wander(start(), jnp.arange(6))
    heard = []
    walked = in_segments(
        wander,
        start(),
        num_tasks=6,
        size=2,
        folder=tmp_path,
        task_axis=1,
        note=heard.append,
    )
    np.testing.assert_array_equal(walked.state[1], place)
    jax.tree.map(np.testing.assert_array_equal, walked.record, want)
    assert heard == [0, 2, 4]
    assert walked.seconds > 0
    assert not steps(tmp_path)  # a short walk needs no checkpoint


def test_a_walk_killed_after_a_checkpoint_goes_on_from_it(tmp_path, monkeypatch):
    """Oracle: the walk left alone. Only the tasks that were lost are walked again."""
    options = {"num_tasks": 6, "size": 2, "save_every": 0.0, "task_axis": 1}
    whole = in_segments(wander, start(), folder=tmp_path / "whole", **options)
    save, heard = device.save, []

    def save_and_die(folder, step, tree):
        save(folder, step, tree)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(device, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        in_segments(wander, start(), folder=tmp_path / "cut", **options)
    monkeypatch.setattr(device, "save", save)
    options["note"] = heard.append
    resumed = in_segments(wander, start(), folder=tmp_path / "cut", **options)
    assert heard == [4]
    np.testing.assert_array_equal(resumed.state[1], whole.state[1])
    jax.tree.map(np.testing.assert_array_equal, resumed.record, whole.record)


def test_segments_are_equal_parts_of_the_stream(tmp_path):
    """Oracle: arithmetic; and a part that leaves a rest is refused before any step."""
    assert [segment_size(n, 10) for n in (100, 45, 7, 4)] == [10, 9, 7, 4]
    with pytest.raises(ValueError, match="wanted must be an int of at least 1"):
        segment_size(6, 0)
    with pytest.raises(ValueError, match=r"size must divide the 6 tasks, got 4"):
        in_segments(wander, start(), num_tasks=6, size=4, folder=tmp_path)


def test_a_checkpoint_between_other_segments_is_refused(tmp_path, monkeypatch):
    """Oracle: arithmetic; two tasks are done, and segments of three were asked for."""
    save = device.save

    def save_and_die(folder, step, tree):
        save(folder, step, tree)
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "save", save_and_die)
    options = {"num_tasks": 6, "save_every": 0.0, "task_axis": 1, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        in_segments(wander, start(), size=2, **options)
    monkeypatch.setattr(device, "save", save)
    with pytest.raises(ValueError, match="stands at task 2, where no segment of 3"):
        in_segments(wander, start(), size=3, **options)
