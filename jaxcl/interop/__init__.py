"""Files of other tools: models of Hugging Face Transformers, adapters of PEFT, and GGUF.

A name is loaded when it is first used: checks of files need no JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcl.interop.gguf import convert_gguf
    from jaxcl.interop.huggingface import load_pretrained, read_config
    from jaxcl.interop.peft import load_adapter
    from jaxcl.interop.peft_saving import save_adapter
    from jaxcl.interop.saving import save_pretrained

__all__ = [
    "convert_gguf",
    "load_adapter",
    "load_pretrained",
    "read_config",
    "save_adapter",
    "save_pretrained",
]

_HOME = {
    "convert_gguf": "gguf",
    "load_adapter": "peft",
    "load_pretrained": "huggingface",
    "read_config": "huggingface",
    "save_adapter": "peft_saving",
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
