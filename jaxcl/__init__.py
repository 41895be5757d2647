"""Flatness-aware continual learning in JAX: where to start reading.

=====================  ===============================================================
``make_method``        a learner composed of independent parts; ``methods`` names some
``transforms``         gradient transformations for optax: SAM, GNP, A-GEM, GEM, ...
``regularizers``       penalties and projections: EWC, box, distillation, L2
``memory``             examples that are kept and replayed
``interleave``         replay as steps of its own, between the others
``learners``           what is evaluated: class means, a network from memory alone
``averages``           slower copies of the parameters: EMA, WiSE-FT
``plasticity``         resets of units, and measures of what a network can still learn
``curvature``          Fisher diagonals, sharpness, the top eigenvalue of the Hessian
``losses, metrics``    what is minimised, and what is made of accuracies
``models``             MLP, ResNet, Llama, BERT, LSTM; ``from_flax`` for your modules
``adapters``           few trained weights over a frozen network: LoRA, O-LoRA, prompts
``data``               streams of tasks, and datasets of any size
``interop``            pretrained models of Hugging Face, adapters of PEFT, GGUF files
``training``           loops: on the device, and on the host with checkpoints
``sharding``           meshes, and the rules by which arrays are split over them
``report``             tables, statistics and figures
=====================  ===============================================================

A module or function is loaded when it is first used.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcl import (
        adapters,
        averages,
        curvature,
        data,
        interop,
        learners,
        losses,
        memory,
        methods,
        metrics,
        models,
        plasticity,
        regularizers,
        report,
        sharding,
        training,
        transforms,
        tree,
    )
    from jaxcl.interleave import interleave
    from jaxcl.method import make_method

__version__ = version("jaxcl")

__all__ = [
    "adapters",
    "averages",
    "curvature",
    "data",
    "interleave",
    "interop",
    "learners",
    "losses",
    "make_method",
    "memory",
    "methods",
    "metrics",
    "models",
    "plasticity",
    "regularizers",
    "report",
    "sharding",
    "training",
    "transforms",
    "tree",
]


def __getattr__(name: str):
    """Import a module of the reading list when it is first used."""
    if name not in __all__:
        msg = f"module 'jaxcl' has no attribute {name!r}; it has {', '.join(__all__)}."
        raise AttributeError(msg)
    if name in (home := {"make_method": "method", "interleave": "interleave"}):
        return getattr(importlib.import_module(f"jaxcl.{home[name]}"), name)
    return importlib.import_module(f"jaxcl.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
