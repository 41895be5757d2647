"""A checksum of weights, in sixteen digits, independent of their sharding."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree, UInt


def fingerprint(tree: PyTree) -> str:
    """A checksum of every leaf's path, dtype, shape and bits.

    Each entry, as 32-bit words, is hashed with its position, and these are added modulo
    2^32, twice in different ways: sums of integers do not depend on the number of devices.
    It detects other weights; it is not cryptographic.

    Args:
      tree: arrays, including typed keys.

    Returns:
      16 hexadecimal digits.

    Cost: one pass over the weights, where they are.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for path, leaf in named:
        array = jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        sums = np.asarray(_sums(array)).tolist()
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype}{array.shape} {sums};".encode())
    return digest.hexdigest()[:16]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


@jax.jit
def _sums(array: Array) -> UInt[Array, " 2"]:
    totals = jnp.zeros(2, jnp.uint32)
    for part, words in enumerate(_words(array)):
        place = _positions(words.shape)
        for which, odd in enumerate((0x9E3779B1, 0x85EBCA77)):
            salt = jnp.uint32((odd + 2 * part) % 2**32)
            mixed = _mix(words ^ _mix(place * salt + salt))
            totals = totals.at[which].add(jnp.sum(mixed, dtype=jnp.uint32))
    return totals


def _words(array: Array) -> list[Array]:
    """Entries as unsigned words of 32 bits; narrow ones are widened, which is exact."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return _words(array.real) + _words(array.imag)
    bits = 8 * array.dtype.itemsize
    if jnp.issubdtype(array.dtype, jnp.floating):
        narrow = array.astype(jnp.float32) if bits < 32 else array
    else:
        narrow = array.astype(jnp.uint32) if bits < 32 else array
    words = lax.bitcast_convert_type(narrow, jnp.uint32)
    if bits <= 32:
        return [words]
    return [words[..., half] for half in range(bits // 32)]


def _positions(shape: tuple[int, ...]) -> Array:
    """The number of each entry in row-major order, modulo 2^32."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return place


def _mix(words: Array) -> Array:
    """A bijective hash of words in which every input bit affects all output bits."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


__all__ = ["fingerprint"]
