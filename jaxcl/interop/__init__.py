"""Files of other tools: pretrained models of Hugging Face Transformers."""

from jaxcl.interop.huggingface import load_pretrained, read_config
from jaxcl.interop.saving import save_pretrained

__all__ = ["load_pretrained", "read_config", "save_pretrained"]
