"""Files of other tools: pretrained models of Hugging Face Transformers, and GGUF.

A name is loaded when it is first used: checks of files need no JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcl.interop.gguf import convert_gguf
    from jaxcl.interop.huggingface import load_pretrained, read_config
    from jaxcl.interop.saving import save_pretrained

__all__ = ["convert_gguf", "load_pretrained", "read_config", "save_pretrained"]

_HOME = {
    "convert_gguf": "gguf",
    "load_pretrained": "huggingface",
    "read_config": "huggingface",
    "save_pretrained": "saving",
}


def __getattr__(name: str):
    """Import a function when it is first used."""
    if name not in _HOME:
        msg = f"module 'jaxcl.interop' has no attribute {name!r}"
        raise AttributeError(msg)
    module = importlib.import_module(f"jaxcl.interop.{_HOME[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
