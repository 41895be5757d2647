"""The host loop: what it learns, and that no end it may find changes that."""

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.curvature import exact_fisher
from jaxcl.data import Dataset, Task, digits, permuted, stream_tasks, subset
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric
from jaxcl.models import mlp
from jaxcl.regularizers import ewc
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh, replicated, shardings
from jaxcl.training import accuracy_row, first_example, loop, run_stream
from jaxcl.training.checkpoint import restore
from jaxcl.training.compiled import shard
from jaxcl.training.host import Options, learn
from jaxcl.training.run_state import on_devices
from jaxcl.transforms import sam

OPTIONS = Options(
    num_steps=6,
    batch_size=8,
    report_every=2,
    eval_batch_size=32,
    eval_start=False,
    save_every=0.0,
)
MODEL = mlp((64, 8, 10))
LOGITS = single_head(MODEL.apply)


def build(frozen):
    """A method with every part; the frozen number is its learning rate."""
    return make_method(
        cross_entropy(LOGITS),
        optax.sgd(frozen, momentum=0.9),
        gradient=sam(0.05),
        regularizer=ewc(exact_fisher(LOGITS), 10.0),
        memory=reservoir(16, sample_size=4),
    )


@RowMetric
def METRIC(params, frozen, batch):
    """Whether a row is answered rightly."""
    del frozen
    return {"accuracy": jnp.argmax(LOGITS(params, batch), axis=-1) == batch.y}


def matrix_of(result):
    """Accuracies after each task."""
    return result.results["accuracy"]["params"][1:]


@pytest.fixture(scope="module")
def stream():
    images = subset(digits(), key=jax.random.key(5), num_train=60, num_test=50)
    return permuted(jax.random.key(1), images, num_tasks=3)


@pytest.fixture(scope="module")
def tasks(stream):
    return stream_tasks(stream)


def run(folder, tasks, options=OPTIONS, **others):
    params = MODEL.init(jax.random.key(2))
    given = {"frozen": jnp.float32(0.1), "metrics": METRIC, "quiet": True, **others}
    method = given.pop("build", build)
    return learn(
        jax.random.key(3), method, params, tasks, options, folder=folder, **given
    )


@pytest.fixture(scope="module")
def whole(tasks, tmp_path_factory):
    """A run left alone, without checkpoints inside tasks."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, tasks, OPTIONS._replace(save_every=1e9)), folder


def assert_same_bits(left, right):
    def plain(leaf):
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(plain(a), plain(b)), left, right
    )


def test_the_host_loop_ends_where_the_compiled_stream_ends(whole, stream):
    """Oracle: the device loop on the same stream and key; states and accuracies."""
    result, _ = whole

    @jax.jit
    def compiled(rate):
        method = build(rate)
        state = method.init(MODEL.init(jax.random.key(2)), first_example(stream))
        look = accuracy_row(LOGITS, stream)
        return run_stream(
            jax.random.key(3),
            method,
            stream,
            state,
            num_steps=6,
            batch_size=8,
            after=look,
        )

    state, record = compiled(jnp.float32(0.1))
    assert result.status == "done"
    np.testing.assert_allclose(matrix_of(result), record.after, atol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(result.run_state.state), jax.tree.leaves(state), strict=True
    ):
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_mesh_of_devices_learns_what_one_device_learns(whole, tasks, tmp_path):
    """Oracle: one device. Eight pretend ones: rows over all, large leaves over two."""
    mesh = make_mesh(data=4, fsdp=2)
    sharding = ShardingPlan(mesh, fsdp(at_least=256))
    options = OPTIONS._replace(save_every=1e9)
    result = run(tmp_path, tasks, options, sharding=sharding)
    kernels = [
        leaf
        for leaf in jax.tree.leaves(result.run_state.state)
        if leaf.shape == (64, 8) and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert len(kernels) >= 4  # parameters, momentum, Fisher, anchor
    for leaf in kernels:
        assert leaf.addressable_shards[0].data.shape == (32, 8)
        assert len(leaf.sharding.device_set) == 8
    np.testing.assert_allclose(matrix_of(result), matrix_of(whole[0]), atol=0.021)
    for ours, theirs in zip(
        jax.tree.leaves(result.run_state.state),
        jax.tree.leaves(whole[0].run_state.state),
        strict=True,
    ):
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with pytest.warns(UserWarning, match="had finished"):  # it is only read back
        again = run(tmp_path, tasks, options, sharding=sharding)
    assert_same_bits(again.run_state, result.run_state)


def test_metrics_tell_every_step_once_and_every_score(whole):
    """Oracle: counting, and the matrix that was returned."""
    result, folder = whole
    lines = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    reports = [line for line in lines if "loss" in line]
    assert [line["step"] for line in reports] == [2, 4, 6] * 3
    ends = [line["results"]["accuracy"]["params"] for line in lines if "ended" in line]
    np.testing.assert_allclose(ends, matrix_of(result))
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


@pytest.mark.parametrize("cut", [1, 7, 18])
def test_a_run_that_ends_anywhere_goes_on_with_the_same_bits(
    whole, tasks, tmp_path, cut
):
    """Oracle: the run left alone. The end comes as an error while rows are read."""
    count = 0

    def breaking(rows: Dataset) -> Dataset:
        def read(numbers):
            nonlocal count
            count += len(numbers) == OPTIONS.batch_size
            if count == cut:
                count += 1
                raise KeyboardInterrupt
            return rows.read(numbers)

        return Dataset(rows.count, read)

    broken = [Task(task.name, breaking(task.train), task.test) for task in tasks]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, broken)
    result = run(tmp_path, tasks)
    assert result.status == "done"
    assert_same_bits(result.run_state, whole[0].run_state)


def test_sigterm_ends_a_run_with_a_checkpoint(whole, tasks, tmp_path):
    """Oracle: the run left alone, after going on."""
    calls = []

    def signalling(rows):
        def read(numbers):
            calls.extend([1] * (len(numbers) > 1))  # not the looks at one row
            if len(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return rows.read(numbers)

        return Dataset(rows.count, read)

    asked = [Task(task.name, signalling(task.train), task.test) for task in tasks]
    options = OPTIONS._replace(save_every=1e9)
    result = run(tmp_path, asked, options)
    assert result.status == "interrupted"
    assert 0 < int(result.run_state.step) <= 6
    assert int(result.run_state.task) == 0
    again = run(tmp_path, tasks, options)
    assert again.status == "done"
    assert_same_bits(again.run_state, whole[0].run_state)


@pytest.mark.parametrize("index", [0, 2])
def test_sigterm_during_tests_ends_a_run_that_then_tests_again(
    whole, tasks, tmp_path, index
):
    """Oracle: the run left alone. The signal comes while the first of three tasks is
    tested at the end of a task, once the last one; only that one is tested to its end."""
    tested = []

    def watched(number, task):
        def read(rows):
            if len(rows) > 1:
                tested.append(number)
            if tested == [0, 1, 2] * index + [0]:
                os.kill(os.getpid(), signal.SIGTERM)
            return task.test.read(rows)

        return Task(task.name, task.train, Dataset(task.test.count, read))

    options = OPTIONS._replace(save_every=1e9, eval_batch_size=50)
    result = run(tmp_path, [watched(*pair) for pair in enumerate(tasks)], options)
    assert result.status == "interrupted"
    assert tested == [0, 1, 2] * index + [0]
    run_state = result.run_state
    assert (run_state.task, run_state.step) == (index + 1, 0)
    assert np.isnan(matrix_of(result)[index]).all()
    for again in (False, True):
        warned = pytest.warns(UserWarning, match="had finished")
        with warned if again else nullcontext():
            result = run(tmp_path, tasks, options)
        assert result.status == "done"
        assert_same_bits(result[1:-1], whole[0][1:-1])  # seconds differ
    scores = [
        [line["results"] for line in lines_of(folder) if "results" in line]
        for folder in (tmp_path, whole[1])
    ]
    assert scores[0] == scores[1]


def lines_of(folder):
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("policy", ["stop", "skip", "continue"])
def test_a_step_that_is_not_finite_stops_is_skipped_or_is_counted(
    tasks, tmp_path, policy
):
    """Oracle: one batch of NaN in the second task, and the parameters after it."""
    calls = []

    def poisoned(rows):
        def read(numbers):
            batch = rows.read(numbers)
            calls.extend([1] * (len(numbers) > 1))  # not the looks at one row
            bad = np.full_like(batch.x, np.nan) if len(calls) == 2 else batch.x
            return batch._replace(x=bad)

        return Dataset(rows.count, read)

    second = Task("poisoned", poisoned(tasks[1].train), tasks[1].test)
    given = [tasks[0], second, tasks[2]]
    options = OPTIONS._replace(on_non_finite=policy, end_task_examples=8)
    plain = lambda rate: make_method(cross_entropy(LOGITS), optax.sgd(rate))
    params = MODEL.init(jax.random.key(2))
    became = {
        "stop": "not finite, the last by step 2 of 'poisoned'; the run was stopped",
        "skip": "1 steps were not finite; these were skipped",
        "continue": "steps were not finite; the run went on all the same",
    }
    with pytest.warns(UserWarning, match=became[policy]):
        result = learn(
            jax.random.key(3),
            plain,
            params,
            given,
            options,
            folder=tmp_path,
            frozen=jnp.float32(0.1),
            metrics=METRIC,
            quiet=True,
        )
    finite = all(
        bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result.params)
    )
    assert result.status == ("diverged" if policy == "stop" else "done")
    assert finite == (policy == "skip")
    assert int(result.run_state.num_bad) >= 1
    if policy == "skip":
        assert int(result.run_state.num_bad) == 1
    if policy == "stop":
        kept = restore(tmp_path / "checkpoints", on_devices(result.run_state, None))
        leaves = jax.tree.leaves(kept.tree.state.params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


def test_labels_beyond_the_outputs_are_named_among_the_causes(tasks, tmp_path):
    """Oracle: the warning; the network has ten outputs."""

    def beyond(numbers):
        batch = tasks[0].train.read(numbers)
        return batch._replace(y=batch.y + 10)

    given = [tasks[0]._replace(train=Dataset(tasks[0].train.count, beyond))]
    with pytest.warns(UserWarning, match="not finite.* labels or tasks beyond the out"):
        assert run(tmp_path, given).status == "diverged"


def test_a_score_that_is_not_finite_is_told(tasks, tmp_path):
    """Oracle: a score that is NaN in the second task. Control: all other runs here."""
    odd = lambda params, frozen, batch: {
        "odd": jnp.where(batch.task == 1, jnp.nan, 1.0)
    }
    wanted = f"measured on the test rows of {tasks[1].name!r} was not finite"
    with pytest.warns(UserWarning, match=wanted):
        result = run(
            tmp_path, tasks, OPTIONS._replace(num_steps=1), metrics=RowMetric(odd)
        )
    assert result.status == "done"
    found = result.results["odd"]["params"][1:]
    assert np.isnan(found).tolist() == [[False, True, False]] * 3


@pytest.mark.parametrize(
    ("policy", "when"), [("stop", 3), ("stop", 17), ("skip", 5), ("continue", 17)]
)
def test_an_update_that_overflows_is_seen_though_its_loss_was_finite(
    tasks, tmp_path, policy, when
):
    """Oracle: a learning rate that is infinite at one update: inside a task, at the end of
    one, and at the very last. No checkpoint may hold what came of it."""
    rate = lambda count: jnp.where(count == when, jnp.inf, 0.1)
    plain = lambda frozen: make_method(
        cross_entropy(LOGITS), optax.sgd(rate), reset_optimizer=False
    )
    options = OPTIONS._replace(on_non_finite=policy)
    with pytest.warns(UserWarning, match="steps were not finite"):
        result = run(tmp_path, tasks, options, build=plain)
    assert result.status == ("diverged" if policy == "stop" else "done")
    assert result.run_state.num_bad >= 1
    if policy == "skip":  # the count of updates is part of what is left as it was
        assert result.run_state.num_bad == 18 - when
    if policy != "continue":
        like = on_devices(result.run_state, None)
        kept = restore(tmp_path / "checkpoints", like).tree.state.params
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(kept))


def test_start_and_frozen_weights_may_lie_on_the_mesh_already(whole, tasks, tmp_path):
    """Oracle: one device, and the caller's own parameters, which stay as they are."""
    sharding = ShardingPlan(make_mesh(data=4, fsdp=2), fsdp(at_least=256))
    params = MODEL.init(jax.random.key(2))
    spread = jax.device_put(params, shardings(sharding, params, prefix="params/"))
    kernels = [leaf for leaf in jax.tree.leaves(spread) if leaf.shape == (64, 8)]
    assert kernels[0].addressable_shards[0].data.shape == (32, 8)
    frozen = jax.device_put(jnp.float32(0.1), replicated(sharding))
    result = learn(
        jax.random.key(3),
        build,
        spread,
        tasks,
        OPTIONS._replace(save_every=1e9),
        folder=tmp_path,
        frozen=frozen,
        metrics=METRIC,
        sharding=sharding,
    )
    for ours, theirs in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(whole[0].params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, spread, params)


def test_frozen_weights_travel_to_the_device_once():
    """Oracle: JAX, which is told to refuse what travels unasked. Negative control: what
    was not placed."""
    (placed,) = jax.tree.leaves(shard(None, [np.ones(3, np.float32)], "frozen/"))
    assert isinstance(placed, jax.Array)
    double = jax.jit(lambda x: 2 * x)
    with jax.transfer_guard("disallow"):
        double(placed)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            double(np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("make", "spread"),
    [(jax.random.key, False), (jax.random.PRNGKey, False), (jax.random.key, True)],
)
def test_one_program_serves_all_tasks(tasks, tmp_path, spread, make):
    """Oracle: a counter in the traced code; the tasks differ in length. The rehearsal's
    traces are those that run, on one device and on eight, with keys of either form."""
    traces = []

    def counting(frozen):
        method = build(frozen)

        def step(key, state, batch):
            traces.append("step")
            return method.step(key, state, batch)

        def end_task(key, state, task):
            traces.append("end")
            return method.end_task(key, state, task)

        return method._replace(step=step, end_task=end_task)

    short = Dataset(20, tasks[1].train.read)
    given = [tasks[0], Task("short", short, tasks[1].test), tasks[2]]
    params = MODEL.init(jax.random.key(2))
    learn(
        make(3),
        counting,
        params,
        given,
        OPTIONS,
        folder=tmp_path,
        frozen=jnp.float32(0.1),
        sharding=ShardingPlan(make_mesh(), fsdp()) if spread else None,
    )
    assert sorted(traces) == ["end", "step"]
    jax.tree.map(np.asarray, params)  # the caller's parameters were not donated


@pytest.mark.parametrize(
    "others", [{"eval_every": 3, "save_every": 1e9}, {"save_every": 0.0}]
)
def test_looking_and_saving_slow_no_training_down(tasks, tmp_path, monkeypatch, others):
    """Oracle: a clock that only evaluation and saving move, an hour each time."""
    clock = [0.0]

    def hour(function):
        def slow(*args, **options):
            clock[0] += 3600.0
            return function(*args, **options)

        return slow

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop, "measured_on", hour(loop.measured_on))
    monkeypatch.setattr(loop, "on_devices", hour(loop.on_devices))
    run(tmp_path, tasks, OPTIONS._replace(**others))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("examples_per_second") for line in lines]
    assert min(rate for rate in rates if rate is not None) > 1e6
    assert clock[0] > 3600 * 3  # control: inside tasks too, not only at their ends


@pytest.mark.parametrize("waits", [True, False])
def test_steps_take_until_the_device_is_through_with_them(
    tasks, tmp_path, monkeypatch, waits
):
    """Oracle: a clock that moves an hour a step, when the loop waits for the device, or
    when it hands the step over and that waits itself."""
    clock = [0.0]
    device_get, take_rows = jax.device_get, loop.take_rows

    def get(infos):
        clock[0] += 3600.0 * len(infos) if waits else 0.0
        return device_get(infos)

    def take(*args, **options):
        clock[0] += 0.0 if waits else 3600.0
        return take_rows(*args, **options)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop, "take_rows", take)
    monkeypatch.setattr(
        loop, "prefetch", lambda read, steps: (read(step) for step in steps)
    )
    monkeypatch.setattr(jax, "device_get", get)
    run(tmp_path, tasks, OPTIONS._replace(save_every=1e9))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["seconds"] for line in lines if "loss" in line] == [7200.0] * 9


def test_what_cannot_run_is_refused_before_anything_is_written(tasks, tmp_path):
    """Oracle: the contract, and the folder."""
    few = [Task("few", Dataset(0, tasks[0].train.read), tasks[0].test)]
    for given, options, words in (
        (few, OPTIONS, "task 'few' has no rows to learn from"),
        ([], OPTIONS, "at least one task"),
        (
            tasks,
            OPTIONS._replace(num_steps=0),
            "num_steps must be an int of at least 1",
        ),
        (tasks, OPTIONS._replace(on_non_finite="ignore"), "stop, skip, continue"),
        (tasks, OPTIONS._replace(save_every=None), "save_every must be a number"),
        (
            [tasks[0]._replace(test=Dataset(0, None))],
            OPTIONS,
            "no rows to be tested on",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "out", given, options)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_lost_their_notes_are_refused_and_stay(tasks, tmp_path):
    """Oracle: all that lies in the folder, before and after."""
    run(tmp_path, tasks[:2], OPTIONS._replace(save_every=1e9))
    for note in (tmp_path / "checkpoints").glob("*.json"):
        note.unlink()
    held = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    lost = (
        r"every checkpoint .* damaged: 14 \(missing 14.json\), 7 \(missing 7.json\); br"
    )
    with pytest.raises(ValueError, match=lost):
        run(tmp_path, tasks[:1])
    left = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert {path for path in set(left) ^ set(held) if path.suffix != ".lock"} == set()
    assert all(left[path] == held[path] for path in held)


def test_the_checkpoint_of_another_run_is_refused_with_the_difference(tasks, tmp_path):
    """Oracle: the setting that was changed."""
    options = OPTIONS._replace(num_steps=2)
    run(tmp_path, tasks[:1], options, metadata={"rate": 0.1, "base": "abc"})
    with pytest.raises(ValueError, match=r"rate 0\.1, not 0\.2"):
        run(tmp_path, tasks[:1], options, metadata={"rate": 0.2, "base": "abc"})
    seen = options._replace(eval_examples=3)
    with pytest.raises(ValueError, match=r"eval_examples None, not 3"):
        run(tmp_path, tasks[:1], seen, metadata={"rate": 0.1, "base": "abc"})
    other = [tasks[0]._replace(name="other")]
    with pytest.raises(ValueError, match=r"task 0 has name .*, got 'other'; the tasks"):
        run(tmp_path, other, options, metadata={"rate": 0.1, "base": "abc"})
    other = options._replace(batch_size=options.batch_size - 1)
    with pytest.raises(ValueError, match=r"batch_size"):
        run(tmp_path, tasks[:1], other, metadata={"rate": 0.1, "base": "abc"})
    kept = options._replace(keep=3)
    with pytest.warns(UserWarning, match="had finished"):
        run(tmp_path, tasks[:1], kept, metadata={"rate": 0.1, "base": "abc"})


def test_a_run_on_other_frozen_weights_is_refused(tasks, tmp_path):
    """Oracle: a number that was changed; the caller says nothing about it."""
    options = OPTIONS._replace(num_steps=2)
    run(tmp_path, tasks[:1], options)
    with pytest.raises(
        ValueError, match=r"is of another run: frozen '\w{16}', not '\w"
    ):
        run(tmp_path, tasks[:1], options, frozen=jnp.float32(0.1000001))


def test_a_folder_in_which_a_run_goes_on_is_refused(tasks, tmp_path):
    """Oracle: a second run from inside the first one, which ends all the same."""
    on_progress = []

    def meanwhile(_steps, words):
        if not on_progress:
            wanted = f"learn: .* is in use by process {os.getpid()} on"
            with pytest.raises(ValueError, match=wanted):
                run(tmp_path, tasks)
        on_progress.append(words)

    assert run(tmp_path, tasks, on_progress=meanwhile).status == "done"
    assert on_progress
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written to; give another"):
        run(tmp_path / "file", tasks)


def test_what_is_wrong_after_a_task_is_said_before_the_first_step(tasks, tmp_path):
    """Oracle: a count of the batches that were read, which stays at zero."""
    read = []

    def counted(rows):
        def numbers(index):
            read.append(len(index) > 1)
            return rows.read(index)

        return Dataset(rows.count, numbers)

    def narrow(rows):
        cut = lambda batch: batch._replace(x=batch.x[:, :63])
        return Dataset(rows.count, lambda numbers: cut(rows.read(numbers)))

    given = [Task(task.name, counted(task.train), task.test) for task in tasks]
    last = given[2]
    unlike = [*given[:2], last._replace(name="cut", train=narrow(last.train))]
    unseen = [*given[:2], last._replace(name="cut", test=narrow(last.test))]
    forgetful = lambda frozen: build(frozen)._replace(
        end_task=lambda key, state, task: state._replace(params=state.no_such)
    )
    mean = RowMetric(lambda *given: jax.tree.map(jnp.mean, METRIC.rows(*given)))
    two = RowMetric(lambda params, batch: {})
    for tasks, others, kind, words in (
        (unlike, {}, ValueError, r"train of task 'cut' has .*t32\[63\].*t32\[64\]"),
        (unseen, {}, ValueError, r"test of task 'cut' has .*t32\[63\].*t32\[64\]"),
        (given, {"metrics": mean}, ValueError, r"real numbers .*, got float32\[\] for"),
        (given, {"metrics": two}, TypeError, "takes 2 positional arguments but 3"),
        (given, {"build": forgetful}, AttributeError, "no_such"),
        (
            given,
            {"build": lambda frozen: OPTIONS},
            AttributeError,
            "no attribute 'init'",
        ),
    ):
        with pytest.raises(kind, match=words) as error:
            run(tmp_path / "out", tasks, **others)
        if "no_such" in words:  # the user's own: where it came up is a note
            said = (
                "in end_task, on x float32[64] and y int32[] in batches of 60, before"
            )
            assert said in "".join(error.value.__notes__)
    assert read
    assert not any(read)
    assert not (tmp_path / "out").exists()


def test_an_error_in_build_says_so_in_a_note(tasks, tmp_path):
    """Oracle: the note; the error is the user's own."""
    with pytest.raises(AttributeError, match="no_such") as error:
        run(tmp_path / "out", tasks, build=lambda frozen: frozen.no_such)
    said = (
        "learn: in build or the method's init, on x float32[64] and y int32[] in batches "
        "of 1, before"
    )
    assert said in "".join(error.value.__notes__)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ['{"loss": 1}', "not json", '[{"at": 1}]'])
def test_the_metrics_of_another_program_are_refused_and_left_alone(
    tasks, tmp_path, line
):
    """Oracle: the file."""
    run(tmp_path, tasks[:1], OPTIONS._replace(num_steps=2))
    held = (tmp_path / "metrics.jsonl").read_text() + line + "\n"
    (tmp_path / "metrics.jsonl").write_text(held)
    refusal = "line 4, is damaged|has lines of another program"
    with pytest.raises(ValueError, match=rf"metrics.jsonl.* ({refusal}).*; take"):
        run(tmp_path, tasks[:1], OPTIONS._replace(num_steps=2))
    assert (tmp_path / "metrics.jsonl").read_text() == held


def test_a_log_hears_nothing_unless_it_is_asked_for(tasks, tmp_path, capsys):
    """Oracle: what was written to stderr, which is no terminal here."""
    options = OPTIONS._replace(num_steps=2)
    run(tmp_path / "a", tasks[:1], options, quiet=None)
    assert capsys.readouterr().err == ""
    run(tmp_path / "b", tasks[:1], options, quiet=False)
    assert "steps: 2/2" in capsys.readouterr().err


def test_a_run_that_had_finished_is_returned_and_says_so(whole, tasks):
    """Oracle: the run itself; other starting parameters change nothing any more."""
    result, folder = whole
    other = MODEL.init(jax.random.key(77))
    with pytest.warns(UserWarning, match="had finished; its result is returned"):
        again = learn(
            jax.random.key(3),
            build,
            other,
            tasks,
            OPTIONS._replace(save_every=1e9),
            folder=folder,
            frozen=jnp.float32(0.1),
            metrics=METRIC,
            quiet=True,
        )
    assert_same_bits(again.run_state, result.run_state)


def test_a_finished_run_says_what_is_compared_by_metadata_only(tmp_path, tasks):
    """Oracle: a rate that changed; without metadata it passes, with it it is refused."""
    for folder, named in {"bare": False, "named": True}.items():
        learned = lambda rate, folder=folder, named=named: learn(
            jax.random.key(3),
            lambda frozen: make_method(cross_entropy(LOGITS), optax.sgd(rate)),
            MODEL.init(jax.random.key(0)),
            tasks[:1],
            OPTIONS._replace(num_steps=2),
            folder=tmp_path / folder,
            metadata={"rate": rate} if named else None,
            quiet=True,
        )
        learned(0.05)
        with pytest.warns(UserWarning, match="had finished") as seen:
            learned(0.05 if named else 0.5)
        assert ("by metadata= only" in str(seen[0].message)) is not named
    with pytest.raises(ValueError, match=r"of another run: rate 0.05, not 0.5"):
        learned(0.5)
