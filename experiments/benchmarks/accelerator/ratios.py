"""What costs how many times something plainer: SAM's step, the host loop, a Fisher."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.accelerator.schedule import Fact, compiled
from experiments.benchmarks.host.config import PRESETS, Config
from experiments.benchmarks.host.run import both_loops, both_steps
from experiments.benchmarks.rounds import in_turn, timed
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import cross_entropy, mean_loss, single_head, token_cross_entropy
from jaxcl.models import DecoderConfig, decoder, mlp, resnet
from jaxcl.tree import as_batch
from jaxcl.typing import Batch, Loss, Params


def two_loops(
    pair: Callable[[Config], Mapping[str, Callable]], small: bool, _folder: Path
) -> Iterator[Fact]:
    """A step by each of two loops of the host benchmark, taking turns, and their ratio."""
    config = PRESETS["smoke" if small else "accelerator"]
    works, cost = timed(lambda: pair(config))
    what = "both once, compilation included"
    yield {"what": what, "compile_and_run_seconds": cost.wall}
    for number in range(config.rounds):
        costs = in_turn(works, number).items()
        took = {f"{name}_seconds": cost.wall / config.num_steps for name, cost in costs}
        base, other = took.values()
        what = f"a step, round {number}"
        yield {"what": what, **took, "ratio": other / base, "steps": config.num_steps}


sam_step = partial(two_loops, both_steps)
host_loop = partial(two_loops, both_loops)


def fishers(small: bool, _folder: Path) -> Iterator[Fact]:
    """Seconds of one Fisher over all examples, and of one gradient over the same."""
    for name, loss, params, batch in cases(small):
        mean = partial(mean_loss, loss)
        gradient = lambda key, *of, mean=mean: jax.grad(mean)(*of, key)
        args, rows, took = (jax.random.key(1), params, batch), len(batch.weight), {}
        functions = {"gradient": gradient, "Fisher": empirical_fisher(loss)}
        for what, function in functions.items():
            program, costs = compiled(function, *args)
            times = [timed(partial(program, *args))[1].wall for _ in range(4)]
            took[what] = min(times[1:])
            yield {
                "what": f"{name}: {what}",
                **costs,
                "run_seconds": took[what],
                "examples": rows,
                "examples_per_second": rows / took[what],
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            }
        ratio = took["Fisher"] / took["gradient"]
        yield {"what": f"{name}: Fisher against gradient", "ratio": ratio}


def cases(small: bool) -> Iterator[tuple[str, Loss, Params, Batch]]:
    """A fully connected network, a decoder, a ResNet; one at a time in memory."""
    key, rng = jax.random.key(0), np.random.default_rng(0)
    numbers = lambda *shape: rng.normal(size=shape).astype(np.float32)
    count, wide = (64, 16) if small else (10_000, 100)
    model = mlp((784, wide, wide, 10))
    batch = as_batch(numbers(count, 784), rng.integers(10, size=count))
    loss = cross_entropy(single_head(model.apply))
    yield f"mlp 784-{wide}-{wide}-10", loss, model.init(key), batch

    count, length, hidden, layers = (4, 16, 16, 1) if small else (64, 256, 512, 8)
    sizes = DecoderConfig(256, hidden, 8 * hidden // 3, layers, max(2, hidden // 64))
    model = decoder(sizes)
    text = rng.integers(256, size=(count, length + 1), dtype=np.int32)
    batch = as_batch(text[:, :-1], text[:, 1:])
    loss = token_cross_entropy(single_head(model.apply))
    name = f"llama, {layers} x {hidden}, length {length}"
    yield name, loss, model.init(key), batch

    count, width, blocks = (8, 4, (1, 1)) if small else (512, 64, (2, 2, 2, 2))
    model = resnet(10, width=width, blocks=blocks)
    batch = as_batch(numbers(count, 32, 32, 3), rng.integers(10, size=count))
    loss = cross_entropy(single_head(model.apply))
    yield f"resnet, width {width}, {blocks}", loss, model.init(key), batch
