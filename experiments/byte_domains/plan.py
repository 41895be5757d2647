"""What a step needs at full size, from XLA's own analysis: nothing is computed.

    python -m experiments.byte_domains.plan          # all of it, minutes on two cores

lowers and compiles the steps of several methods on a decoder of Llama-2-7B's sizes for
meshes of pretend devices, without weights, and writes ``results/plan/``. Memory is that of
the whole program. XLA counts the body of a loop once, so work and traffic are those of
programs with two and four unrolled layers, continued along the line through them.
"""

import itertools
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcl.adapters import add_lora, lora_rule, partition, with_frozen
from jaxcl.files import write_json, write_text
from jaxcl.losses import single_head, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.methods import slow_learner
from jaxcl.models import DecoderConfig, cast_compute, decoder
from jaxcl.report.tables import Column, Table, to_csv, to_markdown
from jaxcl.runs.environment import describe_environment
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.readme import fill
from jaxcl.sharding import batch_sharding, replicated, shardings
from jaxcl.training import ShardingPlan, fsdp, make_mesh
from jaxcl.transforms import sam
from jaxcl.typing import Batch, Method, Model, Params

HERE = Path(__file__).parent

#: Llama-2-7B (Touvron et al. 2023, arXiv:2307.09288).
SEVEN_BILLION = DecoderConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
)
LENGTH = 2048  # tokens per row
DEPTHS = (2, 4)  # layers of the programs that work and traffic are read off
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
BYTES = {"f64": 8, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}


class Shape(NamedTuple):
    """How a step is spread: one row per device, large leaves over ``fsdp`` of them."""

    data: int
    fsdp: int


class Plan(NamedTuple):
    """What one device needs for one step."""

    method: str  # of METHODS
    devices: int
    data: int
    fsdp: int
    state: float  # bytes that stay: parameters, frozen ones too, moments, stored rows
    temporary: float  # bytes while a step is computed
    flops: float
    traffic: dict[str, float]  # bytes of results, by kind of collective


SHAPES = (Shape(1, 8), Shape(1, 64), Shape(8, 8))


# ----------------------------------------------------------------------------- methods


class Setting(NamedTuple):
    """A method over frozen weights, and the shapes of what it trains and of these."""

    build: Callable[[Params], Method]  # (frozen) -> method
    params: Params
    frozen: Params


def full(model: Model, rows: int) -> Setting:
    """SAM with AdamW on all weights: bfloat16 over float32 masters."""
    del rows
    narrow = partial(cast_compute, jnp.bfloat16)
    loss = token_cross_entropy(single_head(narrow(model.apply)))
    build = lambda frozen: make_method(loss, optax.adamw(1e-4), gradient=sam(0.05))
    return Setting(build, jax.eval_shape(model.init, jax.random.key(0)), {})


def low_rank(model: Model, rows: int) -> Setting:
    """SAM with AdamW on float32 factors of rank 8, over a base in bfloat16."""
    del rows

    def build(frozen):
        loss = token_cross_entropy(single_head(with_frozen(model.apply, frozen)))
        return make_method(loss, optax.adamw(1e-4), gradient=sam(0.05))

    return Setting(build, *factors_and_base(model))


def i_lora(model: Model, rows: int, *, every: bool = False) -> Setting:
    """I-LoRA with AdamW: as many replayed ``rows`` as new ones, and a slow learner.

    With ``every`` the states of all layers are distilled, instead of the last ones.
    """

    def build(frozen):
        hidden = with_frozen(model.hidden, frozen)
        return slow_learner(
            token_cross_entropy(single_head(with_frozen(model.apply, frozen))),
            optax.adamw(1e-4),
            hidden if every else lambda *given: hidden(*given)[-1],
            decay=0.99,
            strength=1.0,
            capacity=500,
            sample_size=rows,
        )

    return Setting(build, *factors_and_base(model))


def factors_and_base(model: Model) -> tuple[Params, Params]:
    """The shapes of the trained factors, and of a frozen base in bfloat16."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    base = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16), params)
    added = jax.eval_shape(add_lora, jax.random.key(0), base)
    return partition(added, lora_rule)


METHODS: dict[str, Callable[[Model, int], Setting]] = {
    "SAM": full,
    "SAM, LoRA": low_rank,
    "I-LoRA": i_lora,
    "I-LoRA, all states": partial(i_lora, every=True),
}

#: What is planned: the variant of I-LoRA for one mesh only.
PLANNED = (
    *itertools.product(("SAM", "SAM, LoRA", "I-LoRA"), SHAPES),
    ("I-LoRA, all states", Shape(8, 8)),
)


# ---------------------------------------------------------------------------- programs


def plan(method: str, config: DecoderConfig, length: int, shape: Shape) -> Plan:
    """Compile a method's step for a mesh and read off what it needs."""
    memory = compiled(method, config, length, shape, scan=True).memory_analysis()
    shallow = [config._replace(num_hidden_layers=depth) for depth in DEPTHS]
    few = [
        measured(compiled(method, one, length, shape, scan=False)) for one in shallow
    ]
    (flops_0, traffic_0), (flops_1, traffic_1) = few
    kinds = sorted({*traffic_0, *traffic_1})
    share = (config.num_hidden_layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    line = lambda low, high: low + share * (high - low)
    return Plan(
        method,
        shape.data * shape.fsdp,
        *shape,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        line(flops_0, flops_1),
        {kind: line(traffic_0.get(kind, 0), traffic_1.get(kind, 0)) for kind in kinds},
    )


def compiled(
    method: str, config: DecoderConfig, length: int, shape: Shape, *, scan: bool
) -> Any:
    """The program of a step, of which frozen weights are an argument as in ``learn``."""
    count = shape.data * shape.fsdp
    devices = jax.devices()[:count]
    sharding = ShardingPlan(make_mesh(**shape._asdict(), devices=devices), fsdp())
    model = decoder(config, scan=scan, checkpoint=True)
    build, params, frozen = METHODS[method](model, count)
    batch = one_row_each(count, length)
    start = lambda params, frozen, batch: build(frozen).init(params, batch)
    state = jax.eval_shape(start, params, frozen, batch)
    places, same = shardings(sharding, state), replicated(sharding)
    base = shardings(sharding, frozen, prefix="frozen/")

    def take(key, state, frozen, batch):
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            return build(frozen).step(key, state, batch)

    step = jax.jit(
        take,
        in_shardings=(same, places, base, batch_sharding(sharding)),
        out_shardings=(places, same),
        donate_argnums=1,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(key, state, frozen, batch).compile()


def one_row_each(count: int, length: int) -> Batch:
    """The shapes of a batch with one row of tokens for each device."""
    tokens = jax.ShapeDtypeStruct((count, length), jnp.int32)
    numbers = jax.ShapeDtypeStruct((count,), jnp.int32)
    return Batch(tokens, tokens, numbers.update(dtype=jnp.float32), numbers)


def measured(program: Any) -> tuple[float, dict[str, float]]:
    """Floating-point operations of one device, and bytes it gets from the others."""
    return program.cost_analysis()["flops"], traffic(program.as_text())


def traffic(text: str) -> dict[str, float]:
    """Bytes of what collectives return, by kind, from the text of a program."""
    found: dict[str, float] = {}
    pattern = rf" = (.*?) ({COLLECTIVES})(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        for dtype, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes):
            entries = math.prod(int(size) for size in sizes.split(",") if size)
            size = float(entries * BYTES.get(dtype, 4))
            found[kind] = found.get(kind, 0.0) + size
    return found


def to_table(plans: list[Plan]) -> Table:
    """A row per method and mesh, per device."""
    gigabytes = lambda name: Column(f"{name}, GB", 1, 1e-9)
    columns = (
        *(Column("method"), Column("devices", 0), Column("data x fsdp")),
        *map(gigabytes, ("state", "temporary")),
        Column("PFLOP a step", 2, 1e-15),
        *map(gigabytes, ("gathered", "reduced", "other")),
    )
    rows = []
    for made in plans:
        gathered = made.traffic.get("all-gather", 0.0)
        reduced = made.traffic.get("all-reduce", 0.0)
        reduced += made.traffic.get("reduce-scatter", 0.0)
        other = sum(made.traffic.values()) - gathered - reduced
        shape, moved = f"{made.data} x {made.fsdp}", (gathered, reduced, other)
        kept = (made.state, made.temporary, made.flops)
        rows.append((made.method, made.devices, shape, *kept, *moved))
    notes = (
        f"Per device and step with AdamW: a row of {LENGTH} tokens on each device, blocks "
        "recomputed for the gradient. SAM trains all weights, in bfloat16 over float32 "
        "masters; the others float32 factors of rank 8 on queries and values, over a "
        "frozen base in bfloat16 that is part of the state. I-LoRA is without SAM and has "
        "a replayed row for each new one. All states: those of all layers are distilled "
        "instead of the last ones. XLA's analysis for pretend CPU devices: an "
        "accelerator's compiler places temporaries and combines collectives in its own "
        "way.",
    )
    return Table(columns, tuple(rows), notes)


def main(say: Callable[[str], None] = print) -> None:
    """Plan all methods for their meshes, and write down what was found."""
    plans = []
    for method, shape in PLANNED:
        say(f"compiling {method} for {shape.data} x {shape.fsdp} devices")
        plans.append(plan(method, SEVEN_BILLION, LENGTH, shape))
    folder, table = HERE / "results" / "plan", to_table(plans)
    words, text = "python -m experiments.byte_domains.plan", to_markdown(table)
    write_json(folder / "environment.json", describe_environment(words))
    write_json(folder / "plan.json", [made._asdict() for made in plans])
    write_text(folder / "plan.md", text)
    write_text(folder / "plan.csv", to_csv(table))
    fill(HERE / "README.md", text, "plan")
    say(text)


if __name__ == "__main__":
    expect_no_words(__doc__)
    most = max(shape.data * shape.fsdp for shape in SHAPES)
    jax.config.update("jax_num_cpu_devices", most)  # read when JAX first looks
    main()
