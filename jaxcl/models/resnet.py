"""A small residual network with GroupNorm, for 32 x 32 colour images."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcl.errors import check_size, require
from jaxcl.models.from_flax import from_flax
from jaxcl.typing import Model, Units


class _Conv(nnx.Module):
    """A convolution ``[b, h, w, d] -> [b, h / stride, w / stride, k]`` without bias."""

    def __init__(self, num_in, num_out, *, size=3, stride=1):
        self.kernel = nnx.Param(jnp.zeros((size, size, num_in, num_out), jnp.float32))
        self.stride = stride

    def __call__(self, x):
        kernel = self.kernel[...]
        dtype = jnp.result_type(x, kernel)  # a convolution wants both in one
        # XLA's CPU convolution is about twenty times slower inside a loop than outside
        # (measured, jax 0.10.2), and training is a loop; one matrix product is not.
        ways = {"cpu": _convolve_by_product, "default": _convolve}
        ways = {name: partial(way, stride=self.stride) for name, way in ways.items()}
        both = x.astype(dtype), kernel.astype(dtype)
        return jax.lax.platform_dependent(*both, **ways)


def _convolve(x, kernel, *, stride):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=layout
    )


def _convolve_by_product(x, kernel, *, stride):
    """The same by im2col: gather the inputs of every output position, then one product."""
    size, shape = kernel.shape[0], x.shape[1:3]
    pads = jax.lax.padtype_to_pads(shape, (size, size), (stride, stride), "SAME")
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    # Row i of the kernel reads every stride-th input from i on: ceil(n / stride) of them.
    spans = [(-(-n // stride) - 1) * stride + 1 for n in shape]
    taps = [[slice(i, i + span, stride) for i in range(size)] for span in spans]
    patches = [padded[:, i, j] for i in taps[0] for j in taps[1]]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class _Block(nnx.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``; ``x`` projected if shapes differ."""

    def __init__(self, num_in, num_out, stride, groups, *, rngs):
        norm = partial(nnx.GroupNorm, num_out, num_groups=groups, rngs=rngs)
        self.conv_0, self.norm_0 = _Conv(num_in, num_out, stride=stride), norm()
        self.conv_1, self.norm_1 = _Conv(num_out, num_out), norm()
        self.projects = stride != 1 or num_in != num_out
        if self.projects:
            self.conv_skip = _Conv(num_in, num_out, size=1, stride=stride)
            self.norm_skip = norm()

    def __call__(self, x):
        inner = nnx.relu(self.norm_0(self.conv_0(x)))
        skip = self.norm_skip(self.conv_skip(x)) if self.projects else x
        return inner, nnx.relu(skip + self.norm_1(self.conv_1(inner)))


class _ResNet(nnx.Module):
    """Stem, stages of blocks that halve the image and double the channels, mean, linear."""

    def __init__(self, channels, width, blocks, groups, stride, num_classes, *, rngs):
        self.stem = _Conv(channels, width, stride=stride)
        self.norm = nnx.GroupNorm(width, num_groups=groups, rngs=rngs)
        self.channels, self.names = channels, tuple(_block_widths(width, blocks))
        num_in = width
        for name, num_out in _block_widths(width, blocks).items():
            step = 2 if num_out > num_in else 1  # a later stage halves the image
            setattr(self, name, _Block(num_in, num_out, step, groups, rngs=rngs))
            num_in = num_out
        self.out = nnx.Linear(num_in, num_classes, rngs=rngs)

    def forward(self, x):
        """Hidden activations and outputs, each ``[b, ...]``."""
        wanted = f"[b, height, width, {self.channels}], got {x.shape}"
        fits = x.ndim == 4 and x.shape[-1] == self.channels
        require(fits, "resnet", f"x must be {wanted}")
        h = nnx.relu(self.norm(self.stem(x)))
        hidden = []
        for name in self.names:
            inner, h = getattr(self, name)(h)
            hidden.append(inner)
        pooled = jnp.mean(h, axis=(1, 2))
        return (*hidden, pooled), self.out(pooled)

    def __call__(self, x):
        return self.forward(x)[1]


def _block_widths(width, blocks):
    """The channels of each block, by its name."""
    stages = enumerate(blocks)
    return {f"block_{s}_{k}": width * 2**s for s, count in stages for k in range(count)}


def resnet(
    num_classes: int,
    *,
    width: int = 16,
    blocks: Sequence[int] = (1, 1, 1),
    groups: int = 4,
    stem_stride: int = 1,
    channels: int = 3,
) -> Model:
    """A residual network like ResNet-18, with GroupNorm and fewer channels.

    A 3 x 3 stem, then ``blocks[k]`` blocks with ``width * 2**k`` channels; each stage
    after the first halves the image; the mean over positions; a linear layer. GroupNorm
    keeps no running statistics, so each row depends on its own image only.
    ``blocks=(2, 2, 2, 2), width=64`` has the layout of ResNet-18 with its CIFAR stem.

    Args:
      num_classes: number of outputs.
      width: channels of the first stage.
      blocks: residual blocks per stage.
      groups: of each GroupNorm; must divide ``width``.
      stem_stride: 2 halves the image in the stem, for about a quarter of the time.
      channels: of the image.

    Returns:
      A model of ``x [b, height, width, channels]``. ``hidden`` are the activations inside
      each block, whose channels ``units`` describes, and last the mean ``[b, channels]``.

    References: He et al. 2016, arXiv:1512.03385; Wu and He 2018, arXiv:1803.08494.
    """
    blocks = tuple(blocks)
    check_size("resnet", num_classes=num_classes, width=width, groups=groups)
    smallest: Any = {"the smallest of blocks": min(blocks, default=0)}
    check_size("resnet", stem_stride=stem_stride, channels=channels, **smallest)
    message = f"groups must divide width, got {groups} and {width}"
    require(width % groups == 0, "resnet", message)
    sizes = channels, width, blocks, groups, stem_stride, num_classes
    build = lambda rngs: _ResNet(*sizes, rngs=rngs)

    units = tuple(
        Units(
            incoming=(name, "conv_0", "kernel"),
            vectors=((name, "norm_0", "scale"), (name, "norm_0", "bias")),
            outgoing=(name, "conv_1", "kernel"),
            shift=None,
            width=channels_of_block,
            copies=1,
        )
        for name, channels_of_block in _block_widths(width, blocks).items()
    )
    gain = lambda path: 1.0 if path[0] == "out" else math.sqrt(2.0)
    hidden = lambda module, x: module.forward(x)[0]
    return from_flax(build, hidden=hidden, units=units, gain=gain)
