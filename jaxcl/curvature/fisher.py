r"""The diagonal of the Fisher information, as importance of the parameters.

A *Fisher* here is a function ``(key, params, task) -> tree like params``; the functions
of this module configure one. All are weighted means over single examples, so padding
is ignored, and all have one unit, nats per squared parameter and example:

==========================  ======================================================
:func:`empirical_fisher`    labels as given: ``mean_n (d log p(y_n | x_n))^2``
:func:`sampled_fisher`      labels drawn from the model: unbiased for the exact one
:func:`exact_fisher`        expectation over classes: ``mean_n sum_c p_c (d log p_c)^2``
:func:`most_likely_fisher`  the label that the model finds most likely
:func:`batched_fisher`      squared gradient of batch means: a common mistake
==========================  ======================================================

The square is inside the mean. If the gradient of a batch mean is squared instead, examples
cancel: near an optimum the result is smaller by up to the batch size, and depends on it.
The empirical and the exact Fisher differ where the model is uncertain of, or wrong about,
the given labels (Kunstner et al. 2019, arXiv:1905.12558).

Cost: about one forward and one backward pass (``exact``: one backward pass per class), as
dense layers need no per-example gradients (:mod:`jaxcl.curvature.per_example`). Rows are
processed in chunks whose sums are accumulated, so memory does not grow with the number of
examples.

``outputs(params, batch)`` are logits ``[b, c]``. ``num_examples`` is the size of a random
subset of the task's real rows, drawn without replacement; all rows if absent.
``chunk_size`` rows are processed at once, a number chosen by the size of the model if
absent; it need not divide the number of rows, and affects only speed and memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.curvature.per_example import read_program, sum_squared_gradients
from jaxcl.errors import check_key, check_size, require
from jaxcl.losses import example_losses, of_one
from jaxcl.losses.outputs import evaluated
from jaxcl.tree import at, num_rows, safe_divide, wide, wide_dtype
from jaxcl.typing import Batch, Key, Loss, Outputs, Params

#: ``(key, params, task) -> fisher``, a tree like ``params`` in float32 or better.
Fisher = Callable[[Key, Params, Batch], Params]

#: Rows processed at once, and entries of ordinary per-example gradients held at once,
#: when the chunk size is not given. XLA's batched outer products are slow on a CPU
#: (measured: 4 to 20 times slower than row by row), and an accelerator needs them.
_MOST_ROWS = 512
_MOST_ENTRIES = {"cpu": 2**18}
_MOST_ENTRIES_ELSEWHERE = 2**26


def example_gradients(key: Key, loss: Loss, params: Params, batch: Batch) -> Params:
    """The gradient of every row's loss, one by one, in leaves ``[b, ...]``.

    Row ``i``, as a batch of one, draws from ``fold_in(key, i)``; weights are ignored.
    """
    keys = _row_keys(key, jnp.arange(num_rows(batch)))
    return jax.vmap(jax.grad(of_one(loss)), in_axes=(None, 0, 0))(params, batch, keys)


def empirical_fisher(
    loss: Loss, *, num_examples: int | None = None, chunk_size: int | None = None
) -> Fisher:
    r"""Mean squared gradient of the loss at the labels as given.

    .. math:: F = \sum_n w_n (\partial \ell_n / \partial \theta)^2 \, / \sum_n w_n

    ``loss(params, batch, keys [b]) -> [b]`` is a negative log-likelihood if the result is
    to be a Fisher information; any other loss works too.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796; Create-and-Find's ``F_t``.
    """

    def values(params, example, key):
        value = of_one(loss)(params, example, key)
        return value[None], jnp.ones(1, value.dtype)

    return _mean_square(values, num_examples, chunk_size)


def sampled_fisher(
    outputs: Outputs,
    *,
    num_draws: int = 1,
    num_examples: int | None = None,
    chunk_size: int | None = None,
) -> Fisher:
    r"""Mean squared gradient of the log-likelihood of labels drawn from the model.

    .. math:: F = E_n E_{y \sim p(\cdot | x_n)} (\partial \log p(y | x_n))^2

    ``num_draws`` labels are drawn per example. Unbiased for :func:`exact_fisher`, at one
    backward pass per draw but at most one per class.

    Source: Martens 2020, arXiv:1412.1193, section 5.
    """
    check_size("sampled_fisher", num_draws=num_draws)

    def values(params, example, key):
        scores = _log_likelihoods("sampled_fisher", outputs, params, example)
        # y ~ p(y | x), each with weight 1 / num_draws.
        labels = jax.random.categorical(key, scores, shape=(num_draws,))
        shares = jnp.full(num_draws, 1 / num_draws, scores.dtype)
        # With more draws than classes: one gradient per class, weighted by its count.
        if num_draws < scores.size:
            return scores[labels], shares
        return scores, jnp.zeros_like(scores).at[labels].add(shares)

    return _mean_square(values, num_examples, chunk_size)


def exact_fisher(
    outputs: Outputs, *, num_examples: int | None = None, chunk_size: int | None = None
) -> Fisher:
    r"""Mean squared gradient of the log-likelihood, in expectation over all classes.

    .. math:: F = E_n \sum_c p(c | x_n) (\partial \log p(c | x_n))^2

    This is the diagonal of the Fisher information, and of the Gauss-Newton matrix of the
    cross-entropy. It costs one backward pass per class, and ``c`` gradients per example
    of the leaves that are not plain dense layers. The given labels are not used.

    Source: Martens 2020, arXiv:1412.1193, section 5.
    """

    def values(params, example, _):
        # sum_c p_c (d log p_c)^2: the values are log p_c, their weights p_c.
        scores = _log_likelihoods("exact_fisher", outputs, params, example)
        return scores, jnp.exp(scores)

    return _mean_square(values, num_examples, chunk_size)


def most_likely_fisher(
    outputs: Outputs, *, num_examples: int | None = None, chunk_size: int | None = None
) -> Fisher:
    r"""Mean squared gradient of the log-likelihood of the most likely label.

    .. math:: F = E_n (\partial \log \max_c p(c | x_n))^2

    Several implementations of EWC use it in place of an expectation over labels. It is near
    :func:`exact_fisher` where the model is confident, and smaller elsewhere.

    Source: van de Ven 2025, arXiv:2502.11756, on the variants in use.
    """

    def values(params, example, _):
        scores = _log_likelihoods("most_likely_fisher", outputs, params, example)
        best = scores[jnp.argmax(scores)]
        return best[None], jnp.ones(1, best.dtype)

    return _mean_square(values, num_examples, chunk_size)


def output_sensitivity(
    outputs: Outputs, *, num_examples: int | None = None, chunk_size: int | None = None
) -> Fisher:
    r"""The sensitivity of the outputs to each parameter, as in MAS. Not a Fisher.

    .. math:: \Omega = E_n \, | \partial \|f(x_n)\|_2^2 / \partial \theta |

    No labels are needed. ``ewc(output_sensitivity(outputs), 2 * strength, decay=1.0)`` is
    memory aware synapses, whose penalty has no 1/2.

    Source: Aljundi et al. 2018, arXiv:1711.09601, equations 2 and 3, for the squared norm
    of the outputs (section 4.1).
    """

    def values(params, example, _):
        given = evaluated(outputs, params, _as_batch(example))
        square = jnp.sum(jnp.square(given))
        return square[None], jnp.ones(1, square.dtype)

    return _mean_square(values, num_examples, chunk_size, of=jnp.abs)


def batched_fisher(
    loss: Loss, *, batch_size: int, num_examples: int | None = None
) -> Fisher:
    r"""Mean over batches of the squared gradient of the batch's mean loss. Not a Fisher.

    .. math:: F = E_B (\partial \, E_{n \in B} \ell_n)^2

    Several libraries use this for EWC. Its expectation is ``F / B + (1 - 1/B) g^2`` with
    the empirical Fisher ``F`` and the full gradient ``g``: it shrinks with the batch
    size ``B`` as ``g`` vanishes. Provided for comparison, and to reproduce their results.

    ``batch_size`` rows, in the order given, are a batch; the last one may be shorter.
    """
    check_size("batched_fisher", batch_size=batch_size)

    def fisher(key, params, task):
        key = check_key("batched_fisher", key)

        def squared(rows, weight, keys):
            def mean(params):
                losses = example_losses(loss, params, rows, keys)
                return safe_divide(jnp.sum(weight * losses), jnp.sum(weight))

            square = lambda grad: jnp.square(wide(grad))
            return jax.tree.map(square, jax.grad(mean)(params)), jnp.any(weight > 0)

        return _mean_over_chunks(squared, key, params, task, num_examples, batch_size)

    return fisher


def _mean_square(values, num_examples, chunk_size, *, of=jnp.square) -> Fisher:
    """The weighted mean over rows of weighted squared gradients of ``values``."""
    sizes = {"num_examples": num_examples, "chunk_size": chunk_size}
    check_size("fisher", optional=True, **sizes)

    def fisher(key, params, task):
        key = check_key("fisher", key)

        def weighted(params, row):
            example, key, weight = row
            scores, weights = values(params, example, key)
            return scores, weight * weights

        one = task, _row_keys(key, jnp.arange(1)), task.weight
        program = read_program(weighted, params, one)
        room = _MOST_ENTRIES.get(jax.default_backend(), _MOST_ENTRIES_ELSEWHERE)
        most = room // max(program.num_plain * program.num_values, 1)
        chunk = chunk_size or min(max(most, 1), _MOST_ROWS)

        def squared(rows, weight, keys):
            given = rows, keys, weight
            sums = sum_squared_gradients(program, params, given, of=of)
            return sums, jnp.sum(weight)

        return _mean_over_chunks(squared, key, params, task, num_examples, chunk)

    return fisher


def _mean_over_chunks(squared, key, params, task, num_examples, chunk_size):
    """``sum_i sums_i / sum_i total_i`` over chunks; one compiled body, constant memory.

    ``squared(rows, weight [b], keys [b]) -> (sums, total)`` is that of one chunk; the last
    one is filled up with rows of weight zero.
    """
    key_rows, key_order = jax.random.split(key)
    order = _row_order(key_order, task.weight, num_examples)
    chunk_size = min(chunk_size, len(order))

    def add(carry, start):
        position = start + jnp.arange(chunk_size)
        index = order[jnp.minimum(position, len(order) - 1)]
        rows = at(index, task)
        weight = jnp.where(position < len(order), rows.weight, 0)
        fresh = squared(rows, weight, _row_keys(key_rows, index))
        more = lambda total, part: total + part.astype(total.dtype)
        return jax.tree.map(more, carry, fresh), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide_dtype(leaf)), params)
    starts = jnp.arange(0, len(order), chunk_size)
    total = jnp.zeros((), task.weight.dtype)
    (sums, total), _ = jax.lax.scan(add, (zeros, total), starts)
    return jax.tree.map(lambda leaf: safe_divide(leaf, total), sums)


def _row_order(key, weight, num_examples):
    """Numbers of the rows to use: all, or a random subset of the real ones."""
    rows = weight.shape[0]
    if num_examples is None or num_examples >= rows:
        return jnp.arange(rows)
    lots = jnp.where(weight > 0, jax.random.uniform(key, (rows,), jnp.float32), -1)
    return jax.lax.top_k(lots, num_examples)[1]


def _row_keys(key, index):
    """A key per row that depends on the row alone, not on its chunk."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def _as_batch(example):
    """One example as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[None], example)


def _log_likelihoods(who, outputs, params, example):
    """``log p(c | x)`` of one example, [c]."""
    scores = evaluated(outputs, params, _as_batch(example))
    message = f"outputs must be logits [b, c], got {scores.shape} for one row"
    require(scores.ndim == 2 and scores.shape[0] == 1, who, message)
    return jax.nn.log_softmax(scores[0])
