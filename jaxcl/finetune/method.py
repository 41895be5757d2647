"""The model, what of it is trained, and the method, as the settings ask for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcl import adapters, averages, losses, memory, methods, transforms
from jaxcl.adapters.paths import leaves_by_path, path_of
from jaxcl.curvature import empirical_fisher
from jaxcl.errors import require
from jaxcl.finetune.answer_loss import answer_loss, hidden_states
from jaxcl.finetune.config import Config, as_adapter, read_settings, replayed, room_of
from jaxcl.finetune.pool import asked_query
from jaxcl.interop import load_pretrained
from jaxcl.method import make_method
from jaxcl.models import DecoderConfig, decoder
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh
from jaxcl.tree import copied
from jaxcl.typing import Average, Key, Loss, Method, Model, Outputs, Params

#: Strengths where none is given, by method.
STRENGTHS = {
    "ewc": 1e3,
    "lwf": 1.0,
    "der++": 0.01,
    "olora": 0.5,
    "l2p": 0.5,
    "ilora": 1.0,
}


class Setup(NamedTuple):
    """A model that is ready to be trained."""

    config: DecoderConfig
    trainable: Params
    frozen: Params
    build: Callable[[Params], Method]
    outputs: Callable[[Params], Outputs]  # of the frozen weights
    sharding: ShardingPlan | None


def set_up(config: Config, key: Key, most: int | None = None) -> Setup:
    """Load the model, and make the method over it, of rows with at most so many labels."""
    sharding = _sharding(config)
    model_config, params = load_pretrained(
        config.model, sharding=sharding, dtype=dtype_of(config)
    )
    _check_finite(config, params)
    size, kept = model_config.vocab_size, config.numbers.num_logits
    few = f"expected at most the {size} tokens of the vocabulary, got {kept}"
    require(config.method != "der++" or kept <= size, "--num-logits", few)
    trainable, frozen = _parts(config, key, params)
    model = decoder(model_config, checkpoint=config.training.recompute)

    def outputs(frozen):
        apply = adapters.with_frozen(model.apply, frozen)
        if config.method != "l2p":
            return losses.single_head(apply)
        hidden = adapters.with_frozen(model.hidden, frozen)
        chosen = config.numbers.num_selected

        def with_pool(params, batch, keys=None):
            query = asked_query(hidden, batch)
            found = adapters.l2p_outputs(apply, query, num_selected=chosen)
            return found(params, batch, keys)

        return with_pool

    def build(frozen):
        return make(config, model, frozen, most)

    return Setup(model_config, trainable, frozen, build, outputs, sharding)


def _check_finite(config: Config, params: Params) -> None:
    """Refuse weights that are not numbers: each loss would be none, too."""
    finite = jax.jit(lambda leaf: jnp.all(jnp.isfinite(leaf)))
    for entries, leaf in leaves_by_path(params).items():
        bad = f"{config.model} holds weights that are not finite, in {path_of(entries)}"
        require(finite(leaf), "--model", f"{bad}; copy or download it again")


def dtype_of(config: Config) -> str | None:
    """The dtype in which weights are loaded; None for that of the files.

    A run keeps that with which it began, also where it goes on on another kind of device.
    """
    given, held = config.training.dtype, read_settings(config.out)
    if as_adapter(config) == "full":
        return "float32"
    if given != "auto":
        return given
    return held["frozen"] if held and "frozen" in held else dtype_here()


def dtype_here() -> str | None:
    """The dtype of weights that are not trained: on a CPU narrow ones would be slower."""
    return "float32" if jax.default_backend() == "cpu" else None


def _sharding(config: Config) -> ShardingPlan | None:
    """Weights and rows over the devices that can share a batch, if there are several."""
    there, asked = jax.device_count(), config.training.devices
    size = config.training.batch_size
    known = f"there are {there}, got {asked}"
    require(asked is None or asked <= there, "--devices", known)
    uneven = f"{asked} devices cannot share a batch of {size} rows evenly"
    remedy = "give a multiple of them as --batch-size"
    require(asked is None or size % asked == 0, "--devices", f"{uneven}; {remedy}")
    number = asked or max(n for n in range(1, there + 1) if size % n == 0)
    if number == 1 and jax.process_count() == 1:
        return None
    return ShardingPlan(make_mesh(devices=jax.devices()[:number]), fsdp())


def _parts(config: Config, key: Key, params: Params) -> tuple[Params, Params]:
    """What is trained, and the rest."""
    kind, lora, numbers = as_adapter(config), config.lora, config.numbers
    if kind == "full":
        return params, {}
    if kind == "prompts":
        params = adapters.add_prompt_pool(
            key, params, num_prompts=numbers.prompts, length=numbers.prompt_length
        )
        return adapters.partition(params, "pool")
    slots = room_of(config) if config.method == "olora" else 1
    slots = slots or 1
    targets = "all-linear" if lora.targets == ("all-linear",) else lora.targets
    params = adapters.add_lora(
        key,
        params,
        rank=slots * lora.rank,
        alpha=slots * lora.alpha,
        targets=targets,
        dropout=lora.dropout,
    )
    return adapters.partition(params, adapters.lora_rule)


# ------------------------------------------------------------------------------ method


def make(
    config: Config, model: Model, frozen: Params, most: int | None = None
) -> Method:
    """The method, of a model over its frozen weights."""
    outputs = losses.single_head(adapters.with_frozen(model.apply, frozen))
    loss = answer_loss(model, frozen, most)
    parts: dict[str, Any] = {
        "optimizer": _optimizer(config),
        "gradient": _gradient(config),
        "reset_gradient": config.gradient == "looksam",  # its direction is of one task
        "chunk_size": config.training.chunk_size,
    }
    match config.method:
        case "seq" | "mtl":
            return methods.plain(loss, **parts)
        case "er" | "der++" | "agem" | "gem":
            return _replaying(config, loss, outputs, parts)
        case "ewc" | "lwf" | "olora":
            return _penalised(config, loss, outputs, parts)
        case "l2p":
            return methods.plain(_l2p_loss(config, model, frozen), **parts)
        case "ilora":
            last = config.numbers.hidden == "last"
            states = hidden_states(model, frozen, most, last=last)
            return _ilora(config, loss, states, parts)
        case _:  # one, wise-ft
            return _averaged(config, loss, parts)


def strength_of(config: Config) -> float:
    """That of the penalty: of the settings, or the default of the method."""
    given = config.numbers.strength
    return STRENGTHS[config.method] if given is None else given


def _replaying(config: Config, loss: Loss, outputs: Outputs, parts) -> Method:
    """ER, DER++, A-GEM and GEM."""
    numbers, drawn = config.numbers, replayed(config)
    rows: dict[str, Any] = {"capacity": numbers.memory, "sample_size": drawn}
    match config.method:
        case "er":
            return methods.experience_replay(loss, **rows, **parts)
        case "agem":
            past = memory.reservoir(**rows, past_only=True)
            return methods.agem(loss, memory=past, **parts)
        case "gem":
            rows = {"capacity_per_task": numbers.memory, "sample_size": drawn}
            return methods.gem(loss, num_tasks=room_of(config) or 1, **rows, **parts)
        case _:  # der++
            return methods.dark_experience_replay(
                outputs,
                alpha=strength_of(config),
                beta=numbers.beta,
                num_logits=numbers.num_logits,
                **rows,
                **parts,
            )


def _penalised(config: Config, loss: Loss, outputs: Outputs, parts) -> Method:
    """EWC, LwF and O-LoRA."""
    numbers, strength = config.numbers, strength_of(config)
    match config.method:
        case "ewc":
            size = {"num_examples": numbers.fisher_rows}
            fisher = empirical_fisher(loss, **size, chunk_size=parts["chunk_size"])
            return methods.ewc(loss, strength=strength, fisher=fisher, **parts)
        case "lwf":
            given = {"strength": strength, "temperature": numbers.temperature}
            return methods.learning_without_forgetting(
                outputs, kept=outputs, **given, **parts
            )
        case _:  # olora
            room, slots = room_of(config) or 1, adapters.lora_slots
            own = adapters.in_current_slot(slots, room, parts["gradient"])
            apart = adapters.olora(strength, num_tasks=room)
            return make_method(loss, regularizer=apart, **parts | {"gradient": own})


def _averaged(config: Config, loss: Loss, parts) -> Method:
    """Each task by itself, and WiSE-FT."""
    if config.method == "one":
        last = lambda state: {"params": state.average[1]}
        return make_method(loss, average=from_the_start(), learners=last, **parts)
    between = _between(config)
    both = lambda state: {
        "interpolated": between.read(state.average, state.params),
        "params": state.params,
    }
    return make_method(loss, average=between, learners=both, **parts)


def _l2p_loss(config: Config, model: Model, frozen: Params) -> Loss:
    """That of rows behind the prompts that are nearest to them."""
    apply = adapters.with_frozen(model.apply, frozen)
    hidden = adapters.with_frozen(model.hidden, frozen)
    numbers, strength = config.numbers, strength_of(config)

    def pooled(params, batch, keys):
        loss = adapters.l2p_loss(
            losses.token_cross_entropy,
            apply,
            asked_query(hidden, batch),
            num_selected=numbers.num_selected,
            strength=strength,
        )
        return loss(params, batch, keys)

    return pooled


def _ilora(config: Config, loss: Loss, states: tuple, parts) -> Method:
    """I-LoRA: a fast and a slow learner, with the switches that its paper leaves open."""
    numbers = config.numbers
    hidden, with_hidden = states
    return methods.slow_learner(
        loss,
        hidden=hidden,
        decay=numbers.decay,
        strength=strength_of(config),
        capacity=numbers.memory,
        sample_size=replayed(config),
        start_after=numbers.start_after,
        of_products=numbers.average == "products",
        with_hidden=with_hidden,
        **parts,
    )


def _gradient(config: Config) -> optax.GradientTransformation | None:
    numbers = config.numbers
    match config.gradient:
        case "plain":
            return None
        case "sam":
            return transforms.sam(numbers.rho)
        case "asam":
            return transforms.sam(numbers.rho, adaptive=True)
        case "gnp":
            return transforms.gnp(numbers.rho, penalty=numbers.penalty)
        case "gsam":
            return transforms.gsam(numbers.rho, numbers.gsam_alpha)
        case "looksam":
            return transforms.looksam(numbers.rho)
        case "c-flat":
            return transforms.c_flat(numbers.rho)


def learning_rate(config: Config) -> float:
    """That of the settings, or the default of what is trained."""
    small = as_adapter(config) == "full"
    return config.training.learning_rate or (2e-5 if small else 2e-4)


def _optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW, with a warm-up and a decay within each task."""
    training = config.training
    return optax.chain(
        optax.clip_by_global_norm(training.clip),
        optax.adamw(learning_rate(config), weight_decay=training.weight_decay),
        transforms.scale_by_progress(rate_factor(config)),
    )


def rate_factor(config: Config) -> Callable:
    """The learning rate at a fraction of a task, relative to the highest."""
    training = config.training

    def factor(done):
        # The first step counts a little, and the last one, too.
        rise = jnp.minimum(1.0, (done + 1e-3) / max(training.warmup, 1e-3))
        left = jnp.minimum((1 - done) / (1 - training.warmup), 1.0)
        decay = {
            "constant": lambda: 1.0,
            "linear": lambda: left,
            "cosine": lambda: 0.5 * (1 - jnp.cos(jnp.pi * left)),
        }
        return rise * decay[training.schedule]()

    return factor


# ---------------------------------------------------------------------------- averages


def from_the_start() -> Average:
    """Each task begins with the initial parameters; evaluated are those of the last.

    State: the initial parameters, and those with which the last task ended. Within a task
    these are not read: learners are evaluated at the ends of tasks.
    """

    def init(params, example):
        del example
        return copied(params), copied(params)

    def end_task(key, state, params, data):
        del key, data
        return (state[0], params), copied(state[0])

    return Average(init, lambda state, params: state[1], end_task=end_task)


def _between(config: Config) -> Average:
    """WiSE-FT: between the weights before the first task and those now.

    The product of an adapter is zero before. So it is scaled, by one of its factors:
    ``(1 - a) W + a (W + B A) = W + (a B) A``.
    """
    mix = config.numbers.mix
    if as_adapter(config) != "lora":
        return averages.wise_ft(mix)

    def read(state, params):
        del state
        return scale_adapter(params, mix)

    return Average(read=read)


def scale_adapter(params: Params, factor: Any) -> Params:
    """An adapter whose products are ``factor`` times as large."""

    def scaled(path, leaf):
        is_b = getattr(path[-1], "key", "") == "lora_b"
        return (factor * leaf).astype(leaf.dtype) if is_b else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)
