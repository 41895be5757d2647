"""The one-pass Fisher (squares of every example's gradient) against a plain gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.benchmarks.accelerator.schedule import Box, compiled, seconds_of
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import cross_entropy, mean_loss, single_head, token_cross_entropy
from jaxcl.models import LlamaConfig, llama, mlp, resnet
from jaxcl.tree import as_batch
from jaxcl.typing import Batch, Loss, Params


class Case(NamedTuple):
    """A network and its examples."""

    name: str
    loss: Loss
    params: Params
    batch: Batch


def fishers(box: Box) -> None:
    """Seconds of one Fisher over all examples, and of one gradient over the same."""
    for case in cases(small=box.small):
        fisher = empirical_fisher(case.loss)

        def gradient(key, params, batch, case=case):
            loss = lambda params: mean_loss(case.loss, params, batch, key)
            return jax.grad(loss)(params)

        took = {}
        for name, function in {"gradient": gradient, "Fisher": fisher}.items():
            args = jax.random.key(1), case.params, case.batch
            made = compiled(function, *args)
            call = lambda made=made, args=args: made.call(*args)
            seconds_of(call)
            took[name] = min(seconds_of(call)[1] for _ in range(3))
            rows = len(case.batch.weight)
            box.tell(
                f"{case.name}: {name}",
                **made.costs,
                run_seconds=took[name],
                examples=rows,
                examples_per_second=rows / took[name],
                parameters=sum(leaf.size for leaf in jax.tree.leaves(case.params)),
            )
        box.tell(
            f"{case.name}: Fisher against gradient",
            ratio=took["Fisher"] / took["gradient"],
        )


def cases(*, small: bool) -> Iterator[Case]:
    """A fully connected network, a decoder, a ResNet; one at a time in memory."""
    key, rng = jax.random.key(0), np.random.default_rng(0)
    numbers = lambda *shape: rng.normal(size=shape).astype(np.float32)
    count, wide = (64, 16) if small else (10_000, 100)
    model = mlp((784, wide, wide, 10))
    batch = as_batch(numbers(count, 784), rng.integers(10, size=count))
    loss = cross_entropy(single_head(model.apply))
    yield Case(f"mlp 784-{wide}-{wide}-10", loss, model.init(key), batch)

    count, length, hidden, layers = (4, 16, 16, 1) if small else (64, 256, 512, 8)
    sizes = LlamaConfig(256, hidden, 8 * hidden // 3, layers, max(2, hidden // 64))
    decoder = llama(sizes)
    text = rng.integers(256, size=(count, length + 1), dtype=np.int32)
    batch = as_batch(text[:, :-1], text[:, 1:])
    loss = token_cross_entropy(single_head(decoder.apply))
    name = f"llama, {layers} x {hidden}, length {length}"
    yield Case(name, loss, decoder.init(key), batch)

    count, width, blocks = (8, 4, (1, 1)) if small else (512, 64, (2, 2, 2, 2))
    model = resnet(10, width=width, blocks=blocks)
    batch = as_batch(numbers(count, 32, 32, 3), rng.integers(10, size=count))
    loss = cross_entropy(single_head(model.apply))
    yield Case(f"resnet, width {width}, {blocks}", loss, model.init(key), batch)
