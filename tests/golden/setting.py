"""What the golden cases take from the library, and the tiny problems that they solve.

Everything that a case asks of the library's contracts stands in the first part, so that a
change of names or contracts changes this part and no case. Rows and weights are drawn by
NumPy: they are the same whatever becomes of the models and of JAX.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import losses
from jaxcl.method import default_learner, make_method
from jaxcl.models import DecoderConfig, crelu, decoder, mlp, resnet
from jaxcl.tree import at
from jaxcl.typing import Batch
from tests.steps import seen

# ------------------------------------------------------------ the library's contracts

batch_of = Batch  # (x, y, weight, task)


def loss_of(logits):
    """The training loss of a classifier."""
    return losses.cross_entropy(logits)


def mean_loss(loss, batch):
    """``(params) -> scalar``: the mean loss of the batch."""
    return lambda params: losses.mean_loss(loss, params, batch, jax.random.key(5))


def start(method, params, example):
    """The state before the first step; ``example`` is one row."""
    return method.init(params, example)


def step(method, key, state, batch):
    """``(state, info)`` after one step."""
    state, info = method.step(key, state, batch)
    return state, {"loss": info.loss, "finite": info.finite, **info.metrics}


def end_task(method, key, state, task):
    """The state after a task."""
    return method.end_task(key, state, task)


def parts_of(method, state):
    """What is held at the end of a run, by names of our own."""
    parts = {
        "params": state.params,
        "gradient": state.gradient,
        "optimizer": state.optimizer,
        "regularizer": state.regularizer,
        "memory": state.memory,
        "average": state.average,
        "reset": state.reset,
    }
    if jax.tree.leaves(state.average):
        parts["evaluated"] = default_learner(method, state)
    return parts


def composed(optimizer, *, logits=None, **parts):
    """``() -> method`` of the parts, on the single-headed loss by default."""
    return lambda: make_method(loss_of(logits or LOGITS), optimizer, **parts)


def remember(memory, params, batches, tasks, keys):
    """What a memory returns before each batch, and what it holds at the end.

    Args:
      memory: the record.
      params: for memories that choose rows by features.
      batches: leaves ``[T, s, b, ...]``.
      tasks: leaves ``[T, n, ...]``.
      keys: ``[T, s + 1]``.
    """

    def one_step(state, given):
        key, batch = given
        replay = memory.sample(key, state)
        return memory.observe(key, state, seen(batch, params), params), replay

    def one_task(state, given):
        keys, batches, task = given
        state, replays = jax.lax.scan(one_step, state, (keys[:-1], batches))
        return memory.end_task(keys[-1], state, params, task), replays

    state = memory.init(params, at((0, slice(1)), tasks))
    state, replays = jax.lax.scan(one_task, state, (keys, batches, tasks))
    return {"state": state, "replays": at((slice(None), slice(-2, None)), replays)}


# ------------------------------------------------------------------- models and rows

#: Nothing here runs long: a quarter of the time to compile, for slower programs.
QUICK: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version__.startswith("0.10."):  # later versions have no other way
    QUICK["xla_cpu_use_fusion_emitters"] = False
program = partial(jax.jit, compiler_options=QUICK)
KEY = jax.random.key(7)
MODEL = mlp((8, 16, 3))
MANY_HEADS = mlp((8, 16, 6))
NORMED = mlp((8, 12, 12, 3), activation=crelu, layer_norm=True)
RESNET = resnet(3, width=4, blocks=(1, 1), groups=2, channels=1)
LLAMA = decoder(
    DecoderConfig(
        vocab_size=7,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
)
LOGITS = losses.single_head(MODEL.apply)
OWN_HEAD = losses.heads(MANY_HEADS.apply, 3)
PAST_HEADS = losses.past_heads(MANY_HEADS.apply, 3)
LOSS = loss_of(LOGITS)

T, N, B, S = 2, 30, 10, 10  # tasks, rows of each, rows of a batch, steps of each task


def drawn(model, seed=0):
    """Weights of a model by NumPy: kernels of variance 2 / fan-in, the rest near it."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def draw(path, leaf):
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        if leaf.ndim > 1:
            return noise * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
        return np.float32(path[-1].key == "scale") + np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_tasks(num_tasks):
    """Rows with labels by a linear rule of each task's own, leaves ``[T, N, ...]``."""
    random = np.random.default_rng(1)
    x = random.standard_normal((num_tasks, N, 8)).astype(np.float32)
    rules = random.standard_normal((num_tasks, 8, 3))
    y = np.argmax(np.einsum("tni,tic->tnc", x.astype(np.float64), rules), -1)
    task = np.repeat(np.arange(num_tasks, dtype=np.int32)[:, None], N, axis=1)
    weight = np.ones((num_tasks, N), np.float32)
    return batch_of(x, y.astype(np.int32), weight, task)


def make_batches(tasks, num_steps=S):
    """Batches of consecutive rows, round and round, leaves ``[T, s, B, ...]``."""
    rows = np.arange(num_steps * B).reshape(num_steps, B) % N
    return jax.tree.map(lambda leaf: leaf[:, rows], tasks)


def padded(tasks):
    """The same with every fourth row a padding row."""
    weight = np.where(np.arange(N) % 4 == 3, 0, tasks.weight).astype(np.float32)
    return tasks._replace(weight=weight)


PARAMS, TASKS = drawn(MODEL), make_tasks(T)
ROWS = at(0, TASKS)


def run(build, *, params=PARAMS, tasks=TASKS, num_steps=S):
    """Learn the tasks one after another: every step's info, and the last state."""

    def one_step(method, state, given):
        return step(method, given[0], state, given[1])

    def one_task(method, state, given):
        keys, batches, task = given
        walk = partial(one_step, method)
        state, info = jax.lax.scan(walk, state, (keys[:-1], batches))
        return end_task(method, keys[-1], state, task), info

    @program
    def learn(params, tasks, batches, keys):
        method = build()
        state = start(method, params, at((0, slice(1)), tasks))
        walk = partial(one_task, method)
        state, info = jax.lax.scan(walk, state, (keys, batches, tasks))
        return {"info": info, **parts_of(method, state)}

    return learn(*map(device, inputs(params, tasks, num_steps)))


def walk_memory(memory, tasks=TASKS):
    """What a memory returns and holds on its way through the tasks."""
    walk = program(partial(remember, memory))
    return walk(*map(device, inputs(PARAMS, tasks, S, batches_first=True)))


def inputs(params, tasks, num_steps, *, batches_first=False):
    """Parameters, tasks, batches and the keys of all steps and ends."""
    batches = make_batches(tasks, num_steps)
    keys = jax.random.split(KEY, (len(tasks.weight), num_steps + 1))
    middle = (batches, tasks) if batches_first else (tasks, batches)
    return params, *middle, keys


def device(tree):
    """NumPy's arrays as JAX's."""
    return jax.tree.map(jnp.asarray, tree)
