"""Networks as pure functions of a nested dict of arrays."""

from jaxcl.models.decoder import DecoderConfig, decoder
from jaxcl.models.encoder import EncoderConfig, encoder, mean_pooled, pooled
from jaxcl.models.from_flax import from_flax, init_kernels, init_like_torch
from jaxcl.models.generate import Sampling, generate
from jaxcl.models.heads import (
    sentence_encoder,
    sequence_classifier,
    token_classifier,
)
from jaxcl.models.layers import Rope
from jaxcl.models.lstm import lstm
from jaxcl.models.mlp import Activation, crelu, mlp
from jaxcl.models.precision import cast_compute
from jaxcl.models.resnet import resnet
from jaxcl.models.score import answer_scores
from jaxcl.models.text_cnn import text_cnn

__all__ = [
    "Activation",
    "DecoderConfig",
    "EncoderConfig",
    "Rope",
    "Sampling",
    "answer_scores",
    "cast_compute",
    "crelu",
    "decoder",
    "encoder",
    "from_flax",
    "generate",
    "init_kernels",
    "init_like_torch",
    "lstm",
    "mean_pooled",
    "mlp",
    "pooled",
    "resnet",
    "sentence_encoder",
    "sequence_classifier",
    "text_cnn",
    "token_classifier",
]
