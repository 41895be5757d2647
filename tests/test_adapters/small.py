"""A small decoder with an adapter, for the tests of this folder."""

import jax
import jax.numpy as jnp

from jaxcl.adapters import add_lora, combine, lora_rule, partition
from jaxcl.models import DecoderConfig, decoder
from jaxcl.tree import as_batch

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,  # large, so that every part matters
)
MODEL = decoder(CONFIG)
BASE = MODEL.init(jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (4, 6), 0, 11)
LABELS = jnp.concatenate([TOKENS[:, 1:], jnp.full((4, 1), -100)], axis=1)
BATCH = as_batch(TOKENS, LABELS)


def moved(tree, size=0.1, seed=5):
    """The tree plus normal noise, so that no factor is zero."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    keys = jax.tree.unflatten(structure, list(keys))
    draw = lambda leaf, key: jax.random.normal(key, leaf.shape, leaf.dtype)
    return jax.tree.map(lambda leaf, key: leaf + size * draw(leaf, key), tree, keys)


def adapted(base=BASE, rule=lora_rule, **options):
    """``(trainable, frozen)`` with an adapter that changes the outputs."""
    options = {"rank": 3, "alpha": 6, "targets": "all-linear", **options}
    params = add_lora(jax.random.key(2), base, **options)
    trainable, frozen = partition(params, rule)
    return moved(trainable), frozen


def trained(**options):
    """Both parts together."""
    return combine(*adapted(**options))
