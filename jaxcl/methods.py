"""Named methods, composed of parts as in their papers.

They are also examples of :func:`~jaxcl.method.make_method`, which composes any others.
All take a loss and an optimizer; ``**options`` are passed to ``make_method``: anything
that a method does not set itself can be added, such as ``gradient=sam(rho)`` (which A-GEM
and GEM then project). For a second regularizer or memory, call ``make_method``, with
``sum_of`` the two regularizers.
"""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import ScalarLike

from jaxcl import averages, regularizers, transforms
from jaxcl.curvature import Fisher, empirical_fisher, output_sensitivity
from jaxcl.errors import check_size, require
from jaxcl.learners import from_memory_alone
from jaxcl.losses import (
    FromAverage,
    cross_entropy,
    dark_experience_loss,
    largest_logits,
)
from jaxcl.losses.supervised import label_cross_entropy
from jaxcl.memory import Select, episodic, greedy_balanced, random_examples, reservoir
from jaxcl.method import make_method
from jaxcl.regularizers.feature_distillation import feature_gap
from jaxcl.typing import Key, Loss, Memory, Method, Outputs, Params

Optimizer = optax.GradientTransformation


def plain(loss: Loss, optimizer: Optimizer, **options) -> Method:
    """The optimizer alone (fine-tuning): the baseline of every other method."""
    return make_method(loss, optimizer, **options)


def _method(loss: Loss, optimizer: Optimizer, options: Any, **own: Any) -> Method:
    """The method of its own parts and the user's options."""
    twice = ", ".join(own.keys() & options.keys())
    remedy = "call make_method, with sum_of(...) for two regularizers"
    set_by = f"{twice} is set by the method itself, got another; {remedy}"
    require(not twice, "methods", set_by)
    return make_method(loss, optimizer, **own, **options)


def sam(
    loss: Loss, optimizer: Optimizer, *, rho: ScalarLike = 0.05, **options
) -> Method:
    """Sharpness-aware minimisation (arXiv:2010.01412)."""
    return _method(loss, optimizer, options, gradient=transforms.sam(rho))


def gnp(
    loss: Loss,
    optimizer: Optimizer,
    *,
    r: ScalarLike = 0.125,
    penalty: ScalarLike = 0.1,
    **options,
) -> Method:
    """Gradient norm penalty: ``L + penalty * |grad L|`` (arXiv:2202.03599)."""
    return _method(
        loss, optimizer, options, gradient=transforms.gnp(r, penalty=penalty)
    )


def l2_init(
    loss: Loss, optimizer: Optimizer, *, strength: ScalarLike, **options
) -> Method:
    """L2 penalty towards the initial parameters, for plasticity (arXiv:2308.11958)."""
    return _method(loss, optimizer, options, regularizer=regularizers.l2_init(strength))


def ewc(
    loss: Loss,
    optimizer: Optimizer,
    *,
    strength: ScalarLike,
    decay: ScalarLike | None = None,
    running_mean: bool = False,
    fisher: Fisher | None = None,
    **options,
) -> Method:
    """Elastic weight consolidation (arXiv:1612.00796); online with ``decay``.

    Args:
      loss: a negative log-likelihood.
      optimizer: keep ``learning_rate * strength * max(Fisher) < 2``.
      strength: in the unit of :mod:`jaxcl.regularizers.ewc`.
      decay: fraction of the old Fisher kept per task; separate anchors if absent.
      running_mean: one anchor and the mean of the tasks' Fishers.
      fisher: the empirical one on all of the task's rows if absent.
      **options: for :func:`~jaxcl.method.make_method`.
    """
    fisher = fisher or empirical_fisher(loss)
    regularizer = regularizers.ewc(
        fisher, strength, decay=decay, running_mean=running_mean
    )
    return _method(loss, optimizer, options, regularizer=regularizer)


def create_and_find(
    loss: Loss,
    optimizer: Optimizer,
    *,
    rho: ScalarLike = 0.65,
    strength: ScalarLike = 5e4,
    decay: ScalarLike = 0.95,
    num_examples: int = 128,
    **options,
) -> Method:
    """C&F: adaptive SAM, an EWC penalty, and a box around the last solution.

    The gradient of the penalty is taken at the unperturbed parameters, and after each step
    every parameter is clipped to ``rho * |anchor|`` around its anchor (arXiv:2309.11305).
    The defaults are the authors' for text classification with BERT; tune them elsewhere.
    """
    fisher = empirical_fisher(loss, num_examples=num_examples)
    return _method(
        loss,
        optimizer,
        options,
        gradient=transforms.sam(rho, adaptive=True, eta=0.0),
        regularizer=regularizers.boxed(
            regularizers.ewc(fisher, strength, decay=decay), rho
        ),
        perturb_penalty=False,
    )


def experience_replay(
    loss: Loss, optimizer: Optimizer, *, capacity: int, sample_size: int, **options
) -> Method:
    """ER: each step also trains on rows of a reservoir (arXiv:1902.10486)."""
    return _method(loss, optimizer, options, memory=reservoir(capacity, sample_size))


def agem(
    loss: Loss,
    optimizer: Optimizer,
    *,
    num_tasks: int | None = None,
    capacity_per_task: int | None = None,
    sample_size: int | None = None,
    select: Select = random_examples,
    memory: Memory | None = None,
    gradient: optax.GradientTransformation | None = None,
    **options,
) -> Method:
    """A-GEM: project gradients that would raise the replay loss (arXiv:1812.00420).

    Its memory is ``episodic(num_tasks, capacity_per_task, sample_size, select=select)``,
    or any other: ``memory=reservoir(capacity, sample_size, past_only=True)``.
    """
    sizes: Any = {
        "num_tasks": num_tasks,
        "capacity_per_task": capacity_per_task,
        "sample_size": sample_size,
    }
    given = ", ".join(name for name, size in sizes.items() if size is not None)
    both = f"{given} is for its own memory, got memory= as well"
    require(memory is None or not given, "agem", both)
    if memory is None:
        check_size("agem", **sizes)
        memory = episodic(**sizes, select=select)
    return _method(
        loss,
        optimizer,
        options,
        gradient=optax.chain(gradient or optax.identity(), transforms.agem()),
        memory=memory,
        replay_weight=0,
    )


def gem(
    loss: Loss,
    optimizer: Optimizer,
    *,
    num_tasks: int,
    capacity_per_task: int,
    sample_size: int | None = None,
    margin: ScalarLike = 0.0,
    select: Select = random_examples,
    gradient: optax.GradientTransformation | None = None,
    **options,
) -> Method:
    """GEM: project gradients that would raise a past task's loss (arXiv:1706.08840).

    The loss of a past task is that of all its stored rows in every step, as in the paper,
    or of ``sample_size`` of them, drawn for each step.
    """
    return _method(
        loss,
        optimizer,
        options,
        gradient=optax.chain(gradient or optax.identity(), transforms.gem(margin)),
        memory=episodic(
            num_tasks, capacity_per_task, sample_size, grouped=True, select=select
        ),
        replay_weight=0,
    )


def memory_aware_synapses(
    outputs: Outputs,
    optimizer: Optimizer,
    *,
    strength: ScalarLike,
    num_examples: int | None = None,
    **options,
) -> Method:
    """MAS: importance by the outputs' sensitivity, without labels (arXiv:1711.09601).

    ``strength`` is in the unit of :mod:`jaxcl.regularizers.ewc`: twice the paper's lambda.
    """
    importance = output_sensitivity(outputs, num_examples=num_examples)
    regularizer = regularizers.ewc(importance, strength, decay=1.0)
    loss = cross_entropy(outputs)
    return _method(loss, optimizer, options, regularizer=regularizer)


def synaptic_intelligence(
    loss: Loss,
    optimizer: Optimizer,
    *,
    strength: ScalarLike,
    damping: ScalarLike = 0.1,
    **options,
) -> Method:
    """SI: path importance, without a pass at the end of a task (arXiv:1703.04200)."""
    regularizer = regularizers.synaptic_intelligence(strength, damping=damping)
    return _method(loss, optimizer, options, regularizer=regularizer)


def riemannian_walk(
    loss: Loss,
    optimizer: Optimizer,
    *,
    strength: ScalarLike,
    fisher_decay: ScalarLike = 0.9,
    interval: int = 10,
    damping: ScalarLike = 1e-12,
    **options,
) -> Method:
    """RWalk: a running Fisher plus path importance (arXiv:1801.10112)."""
    regularizer = regularizers.riemannian_walk(
        strength, fisher_decay=fisher_decay, interval=interval, damping=damping
    )
    return _method(loss, optimizer, options, regularizer=regularizer)


def dark_experience_replay(
    outputs: Outputs,
    optimizer: Optimizer,
    *,
    capacity: int,
    sample_size: int,
    alpha: ScalarLike,
    beta: ScalarLike = 0.0,
    num_logits: int | None = None,
    **options,
) -> Method:
    """DER, and DER++ with ``beta``: distil stored logits on replay (arXiv:2004.07211).

    New rows are learned by their cross-entropy, of tokens where labels are ``[b, n]``.

    Args:
      outputs: logits ``[b, c]``, or ``[b, n, v]`` of a language model.
      optimizer: from optax.
      capacity: rows in the reservoir.
      sample_size: replayed rows of a step.
      alpha: weight of a squared logit; see :func:`jaxcl.losses.dark_experience_loss`.
      beta: weight of the replayed rows' cross-entropy.
      num_logits: store the largest ones only, as many as this: those of a language model
        are too many (:func:`jaxcl.losses.largest_logits`). All if absent.
      **options: for :func:`~jaxcl.method.make_method`.
    """
    check_size("dark_experience_replay", optional=True, num_logits=num_logits)
    store = outputs if num_logits is None else largest_logits(outputs, num_logits)
    return _method(
        label_cross_entropy(outputs),
        optimizer,
        options,
        memory=reservoir(capacity, sample_size, store=store),
        replay_loss=dark_experience_loss(outputs, alpha, beta),
    )


def gdumb(
    key: Key,
    init: Callable[[Key], Params],
    loss: Loss,
    optimizer: Optimizer,
    *,
    capacity: int,
    num_classes: int,
    num_epochs: int,
    batch_size: int,
    **options,
) -> Method:
    """GDumb: fill a balanced memory, and train on it at each evaluation (ECCV 2020).

    ``optimizer`` trains from memory; the stream itself only fills the memory.
    """
    train = from_memory_alone(
        key, init, loss, optimizer, num_epochs=num_epochs, batch_size=batch_size
    )
    return _method(
        loss,
        optax.set_to_zero(),
        options,
        memory=greedy_balanced(capacity, 1, num_classes=num_classes),
        replay_weight=0,
        learners=lambda state: {"from_memory": train(state)},
    )


def learning_without_forgetting(
    outputs: Outputs,
    optimizer: Optimizer,
    *,
    kept: Outputs,
    strength: ScalarLike = 0.25,
    temperature: ScalarLike = 2.0,
    chunk_size: int | None = None,
    **options,
) -> Method:
    """LwF: on new inputs, distil the outputs before the task (arXiv:1606.09282).

    ``kept`` are the outputs to keep: ``outputs`` again with one head for all tasks,
    ``past_heads(apply, num_classes)`` with one each. The default strength is the
    authors' ``lambda_o = 1`` at their temperature, ``strength * temperature**2``.
    """
    regularizer = regularizers.distill(
        kept, strength, temperature=temperature, chunk_size=chunk_size
    )
    parts = {"regularizer": regularizer, "chunk_size": chunk_size}
    return _method(label_cross_entropy(outputs), optimizer, options, **parts)


def slow_learner(
    loss: Loss,
    optimizer: Optimizer,
    hidden: Callable,
    *,
    decay: ScalarLike,
    strength: ScalarLike,
    capacity: int,
    sample_size: int,
    start_after: int = 0,
    of_products: bool = False,
    with_hidden: Callable | None = None,
    chunk_size: int | None = None,
    **options,
) -> Method:
    """Replay with feature distillation from an exponential moving average.

    The method of I-LoRA (arXiv:2402.18865), for any parameters: an EMA of them, the slow
    learner, is evaluated beside them, and on replayed inputs the features are kept close to
    those of the EMA. The paper leaves open which features (``hidden``: the last layer's or
    all), when the slow learner starts, and whether factors of an adapter are averaged or
    their products; each is a choice here. The learners are ``slow``, the default, and
    ``fast``, the trained parameters.

    Args:
      loss: of new and replayed rows alike.
      optimizer: from optax.
      hidden: see :func:`jaxcl.regularizers.feature_distillation`.
      decay: of the average.
      strength: of the distillation.
      capacity: rows in the reservoir.
      sample_size: replayed rows of a step.
      start_after: tasks after which the slow learner starts, as a copy of the fast one.
      of_products: average products of LoRA's factors instead of the factors.
      with_hidden: ``(params, batch, keys) -> (losses [b], features)``, both from one
        forward pass over a batch, of which ``features`` are those of ``hidden``. It saves
        a pass over replayed rows, forward and backward; the distillation is then a part
        of the loss that is reported, and is perturbed with it.
      chunk_size: rows computed at once by the distillation.
      **options: further arguments of :func:`jaxcl.method.make_method`.
    """
    average = (averages.ema_of_products if of_products else averages.ema)(decay)
    if start_after:
        average = averages.starting_after(start_after, average)

    def learners(state):
        slow = average.read(state.average, state.params)
        return {"slow": slow, "fast": state.params}

    if with_hidden is None:
        kept = regularizers.feature_distillation(
            hidden, strength, chunk_size=chunk_size
        )
        parts: dict[str, Any] = {"regularizer": kept}
    else:
        past = _distilled(with_hidden, hidden, strength)
        parts = {"replay_loss": past, "replay_weight": 1.0}
    return _method(
        loss,
        optimizer,
        {"learners": learners, **options},
        memory=reservoir(capacity, sample_size),
        average=average,
        chunk_size=chunk_size,
        **parts,
    )


def _distilled(with_hidden: Callable, hidden: Callable, strength) -> FromAverage:
    """The loss of replayed rows, and the distance of their features to the average's."""

    def build(average):
        def loss(params, batch, keys):
            losses, features = with_hidden(params, batch, keys)
            gaps = feature_gap(features, hidden(average, batch.x), batch.x)
            # Twice: this is one half of the mean over new and replayed rows.
            return losses + 2 * strength * gaps

        return loss

    return FromAverage(build)


def interpolation(
    loss: Loss, optimizer: Optimizer, *, alpha: ScalarLike, **options
) -> Method:
    """WiSE-FT after every task: interpolate its start and end (arXiv:2109.01903)."""
    return _method(loss, optimizer, options, average=averages.interpolate(alpha))
