"""Networks as pure functions of a nested dict of arrays."""

from jaxcl.models.from_flax import from_flax, init_kernels, init_like_torch
from jaxcl.models.llama import LlamaConfig, llama
from jaxcl.models.mlp import Activation, crelu, mlp
from jaxcl.models.precision import cast_compute
from jaxcl.models.resnet import resnet

__all__ = [
    "Activation",
    "LlamaConfig",
    "cast_compute",
    "crelu",
    "from_flax",
    "init_kernels",
    "init_like_torch",
    "llama",
    "mlp",
    "resnet",
]
