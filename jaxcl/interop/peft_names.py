"""Which names the tensors of a model have in its files, by the leaves of its parameters."""

from collections.abc import Mapping
from typing import Any

from jaxcl.errors import require
from jaxcl.interop.decoders import NAMES as DECODER


def _dense(path: str, name: str) -> dict[str, str]:
    return {f"{path}/kernel": f"{name}.weight", f"{path}/bias": f"{name}.bias"}


def _norm(path: str, name: str) -> dict[str, str]:
    return {f"{path}/scale": f"{name}.weight", f"{path}/bias": f"{name}.bias"}


_LAYER = {
    **_dense("attention/query", "attention.self.query"),
    **_dense("attention/key", "attention.self.key"),
    **_dense("attention/value", "attention.self.value"),
    **_dense("attention/output/dense", "attention.output.dense"),
    **_norm("attention/output/norm", "attention.output.LayerNorm"),
    **_dense("intermediate/dense", "intermediate.dense"),
    **_dense("output/dense", "output.dense"),
    **_norm("output/norm", "output.LayerNorm"),
}
ENCODER = {
    "embeddings/word": "bert.embeddings.word_embeddings.weight",
    "embeddings/position": "bert.embeddings.position_embeddings.weight",
    "embeddings/type": "bert.embeddings.token_type_embeddings.weight",
    **_norm("embeddings/norm", "bert.embeddings.LayerNorm"),
    **{f"layers/{leaf}": f"bert.encoder.layer.{{}}.{n}" for leaf, n in _LAYER.items()},
    **_dense("pooler/dense", "bert.pooler.dense"),
    **_dense("classifier", "classifier"),
}


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
