"""What is trained: networks as pure functions of a nested dict of arrays."""

from jaxcl.models.llama import LanguageModel, LlamaConfig, llama
from jaxcl.models.mlp import Activation, crelu, mlp
from jaxcl.models.precision import computed_in
from jaxcl.models.pure import draw_kernels, purify
from jaxcl.models.resnet import resnet

__all__ = [
    "Activation",
    "LanguageModel",
    "LlamaConfig",
    "computed_in",
    "crelu",
    "draw_kernels",
    "llama",
    "mlp",
    "purify",
    "resnet",
]
