"""Which names the tensors of a model have in its files, by the leaves of its parameters."""

from collections.abc import Mapping
from typing import Any

from jaxcl.errors import require
from jaxcl.interop.decoders import NAMES as DECODER
from jaxcl.interop.encoders import NAMES as ENCODER


def names_of(who: str, leaves: Mapping[str, Any]) -> Mapping[str, str]:
    """The names of a decoder or of an encoder, from the paths of its leaves."""
    if is_decoder(leaves):
        return DECODER
    encodes = "embeddings/word" in leaves
    wanted = "params must be those of a decoder or an encoder of jaxcl.models"
    came = ", ".join(list(leaves)[:3]) or "none"
    require(encodes, who, f"{wanted}, got {came}; give names for other models")
    if "classifier/kernel" in leaves:
        return ENCODER
    return {leaf: name.removeprefix("bert.") for leaf, name in ENCODER.items()}


def is_decoder(leaves: Mapping[str, Any]) -> bool:
    """Whether these are the paths of a decoder's leaves."""
    return "embedding" in leaves and "layers/attention/q_proj/kernel" in leaves
