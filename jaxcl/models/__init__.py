"""What is trained: networks as pure functions of a nested dict of arrays."""

from jaxcl.models.mlp import Activation, crelu, mlp
from jaxcl.models.pure import draw_kernels, purify
from jaxcl.models.resnet import resnet

__all__ = ["Activation", "crelu", "draw_kernels", "mlp", "purify", "resnet"]
