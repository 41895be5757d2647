"""Wrong calls of adapters."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcl.adapters import (
    LoRALinear,
    add_lora,
    add_progressive_prompts,
    add_prompt_pool,
    apply_lora,
    combine,
    in_current_slot,
    keep_slots,
    l2p_loss,
    l2p_outputs,
    lora_rule,
    lora_slots,
    merge_lora,
    olora,
    partition,
    unmerge_lora,
)
from jaxcl.losses import cross_entropy
from jaxcl.models import DecoderConfig, decoder
from tests.test_misuse.table import (
    BATCH,
    KEY,
    NAN,
    assert_refused,
    refused,
)

CONFIG = DecoderConfig(7, 8, 12, 2, 2)
PARAMS = jax.eval_shape(decoder(CONFIG).init, KEY)
PARAMS = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), PARAMS)
ADAPTED = add_lora(KEY, PARAMS, rank=2)
TRAINABLE, FROZEN = partition(ADAPTED, lora_rule)
QUANTIZED = {"q_proj": {"kernel": jnp.zeros((4, 4), jnp.int8)}, "v_proj": {}}
MIXED = QUANTIZED | {"v_proj": {"kernel": jnp.zeros((4, 4))}}
POOL = add_prompt_pool(KEY, PARAMS, num_prompts=2)
HEAD = {"out": {"kernel": jnp.ones((3, 2))}}


class Net(nnx.Module):
    def __init__(self):
        self.up = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))


def lora(params=PARAMS, **options):
    return add_lora(KEY, params, **options)


def flax_lora(module=None, **options):
    options = {"rank": 2, "rngs": nnx.Rngs(0), **options}
    return apply_lora(Net() if module is None else module, **options)


def selected(**options):
    outputs = l2p_outputs(None, lambda params, x: jnp.ones((4, 8)), **options)
    return outputs(POOL, BATCH)


PARTITIONS = [
    (lambda: partition(PARAMS, "q_porj"), "'q_porj' selects nothing; nearest: q_proj"),
    (lambda: partition(PARAMS, lora_rule), "the rule selects nothing; paths are embed"),
    (lambda: partition(PARAMS, ["out", "heads"]), "'heads' selects nothing"),
    (lambda: partition(PARAMS, "(out"), r"'\(out' must be a regular expression"),
    (lambda: partition(PARAMS, []), "must be a function of a path, .*got \\[\\]"),
    (lambda: partition(PARAMS, [3]), "a rule must be a function, .* got 3"),
    (lambda: partition({}, "out"), "'out' selects nothing; the tree has no leaves"),
    (lambda: combine({"a": 1.0}, {"a": {"b": 1.0}}), "differ at a, a dict in frozen"),
    (lambda: combine({"a": {"b": 1.0}}, {"a": 1.0}), "differ at a, an array in frozen"),
    (lambda: combine({"a": {2: 1.0}}, {"a": [1.0]}), "frozen has no place for a/2"),
]
LORA = [
    (lambda: lora(targets="q_porj"), "'q_porj' selects nothing; nearest: q_proj"),
    (lambda: lora(targets="c_attn"), "'c_attn' selects nothing; names are .*q_proj, "),
    (
        lambda: lora(targets=("q_proj", "values")),
        "'values' selects nothing; names are ",
    ),
    (lambda: lora(targets="embedding"), "got 'embedding' with embedding float32"),
    (lambda: lora(targets=["norm_0"]), "got 'norm_0' with layers/norm_0/scale float32"),
    (lambda: lora(targets=[]), "must be a function of a path, .* got \\[\\]"),
    (lambda: lora(targets=None), "must be a function of a path, .* got None"),
    (lambda: lora(targets={"q_proj"}), "must be a function of .* got {'q_proj'}"),
    (lambda: lora(rank_pattern=["q_proj"]), "rank_pattern must be of type Mapping, "),
    (lambda: lora(alpha_pattern="q_proj"), "alpha_pattern must be of type Mapping, "),
    (lambda: lora(HEAD, targets="all-linear"), "all projections are output layers"),
    (lambda: lora({"a": jnp.ones(3)}), "expected projections, .* got none"),
    (lambda: lora(QUANTIZED), "expected projections, kernels .* of floats, got none"),
    (lambda: lora(MIXED), "got 'q_proj' with q_proj/kernel int8"),
    (lambda: lora(rank=0), "rank must be an int of at least 1, .* got 0"),
    (lambda: lora(rank=2.0), "rank must be an int of at least 1, .* got 2.0"),
    (lambda: lora(rank=9), r"at most 8 for .*/q_proj, a kernel \[2, 8, 8\], got 9"),
    (lambda: lora(alpha=-1), "alpha must be a finite number above 0, got -1"),
    (lambda: lora(alpha=NAN), "alpha must be a finite number above 0, got nan"),
    (lambda: lora(dropout=1.0), "dropout must be below 1, got 1.0"),
    (lambda: lora(dropout=-0.1), "dropout must be a finite number of at least 0"),
    (
        lambda: lora(rank_pattern={"k_proj": 2}),
        "rank_pattern: 'k_proj' selects nothing",
    ),
    (lambda: lora(rank_pattern={"q_proj": 0}), "rank must be an int of at least 1"),
    (
        lambda: lora(alpha_pattern={"q_proj": 0}),
        "alpha must be a finite number above 0",
    ),
    (lambda: lora(extra="head"), "extra: 'head' selects nothing"),
    (
        lambda: lora(ADAPTED),
        "params have an adapter already, at layers/attention/q_proj",
    ),
    (lambda: add_lora(3, PARAMS), "key must be one JAX key, got 3"),
    (lambda: merge_lora(PARAMS), "expected an adapter, leaves lora_a, got none"),
    (lambda: merge_lora(TRAINABLE), "must have kernel, .*; combine both parts first"),
    (lambda: unmerge_lora(ADAPTED, ADAPTED), "params have an adapter already"),
    (lambda: unmerge_lora(PARAMS, PARAMS), "expected an adapter, .* got none"),
]
FLAX = [
    (lambda: flax_lora(targets="upp"), "'upp' selects nothing; nearest: up"),
    (lambda: flax_lora(targets="norm"), "got 'norm' with norm/bias float32"),
    (lambda: flax_lora(rank=4), r"at most 3 for up, a kernel \[3, 4\], got 4"),
    (lambda: flax_lora(flax_lora()), "the module has an adapter already, at up"),
    (lambda: flax_lora(Net), "module must be of type Module, got .*; give a built nnx"),
    (lambda: LoRALinear(3, 4, rank=5, rngs=nnx.Rngs(0)), "rank must be at most 3"),
    (lambda: LoRALinear(3, 4, rank=2, alpha=0, rngs=nnx.Rngs(0)), "alpha must be"),
]
TASKS = [
    (
        lambda: olora(-1.0, num_tasks=2),
        "strength must be a finite number of at least 0",
    ),
    (lambda: olora(1.0, num_tasks=0), "num_tasks must be an int of at least 1"),
    (lambda: keep_slots(lora_slots, 0), "num_tasks must be an int of at least 1"),
    (
        lambda: in_current_slot(lora_slots, 2.0),
        "num_tasks must be an int of at least 1",
    ),
    (
        lambda: olora(1.0, num_tasks=3).init(TRAINABLE, BATCH),
        "lora_a must have a multiple of 3 along axis -1, got 2",
    ),
    (
        lambda: olora(1.0, num_tasks=3).init(PARAMS, BATCH),
        "leaves with slots, got none",
    ),
]
PROMPTS = [
    (lambda: add_prompt_pool(KEY, PARAMS, num_prompts=0), "num_prompts must be an int"),
    (lambda: add_prompt_pool(KEY, POOL), "params must be a dict without 'pool'"),
    (lambda: add_prompt_pool(KEY, HEAD), "must have an embedding .*; give embedding="),
    (lambda: selected(num_selected=3), "at most the 2 prompts, got 3"),
    (lambda: l2p_outputs(None, None, num_selected=0), "num_selected must be an int"),
    (
        lambda: l2p_loss(cross_entropy, None, None, strength=NAN),
        "strength must be a finite number",
    ),
    (
        lambda: add_progressive_prompts(KEY, PARAMS, num_tasks=2, bottleneck=0),
        "bottleneck must be an int of at least 1",
    ),
    (
        lambda: add_progressive_prompts(KEY, PARAMS, num_tasks=0),
        "num_tasks must be an int of at least 1",
    ),
]


@refused([*PARTITIONS, *LORA, *FLAX, *TASKS, *PROMPTS])
def test_a_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the pattern of the message."""
    assert_refused(call, words)


def test_correct_calls_pass():
    """Control: the same calls with values in their ranges."""
    assert lora(rank=8, dropout=0.9, rank_pattern={"q_proj": 1}, extra="out")
    assert flax_lora(rank=3)
    assert olora(0.0, num_tasks=2).init(TRAINABLE, BATCH)
    assert combine(TRAINABLE, FROZEN).keys() == PARAMS.keys()
