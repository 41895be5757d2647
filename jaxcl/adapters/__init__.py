"""Adapters: few trained weights over a frozen network.

:func:`partition` splits the parameters into a trainable and a frozen tree by a rule on
paths, and :func:`combine` joins them again. Gradient transformations, regularizers,
memories, Fishers, averages and resets get the trainable tree only, so that all of them work
on an adapter as on any other parameters.
"""

from jaxcl.adapters.lora import add_lora, lora_rule, merge_lora, unmerge_lora
from jaxcl.adapters.lora_flax import LoRALinear, apply_lora
from jaxcl.adapters.olora import lora_slots, olora
from jaxcl.adapters.partition import combine, partition, with_frozen
from jaxcl.adapters.prompts import (
    add_progressive_prompts,
    add_prompt_pool,
    fixed_prompts,
    l2p_loss,
    l2p_outputs,
    mean_query,
    progressive_outputs,
    prompt_slots,
    select_prompts,
)
from jaxcl.adapters.slots import SlotState, in_current_slot, keep_slots

__all__ = [
    "LoRALinear",
    "SlotState",
    "add_lora",
    "add_progressive_prompts",
    "add_prompt_pool",
    "apply_lora",
    "combine",
    "fixed_prompts",
    "in_current_slot",
    "keep_slots",
    "l2p_loss",
    "l2p_outputs",
    "lora_rule",
    "lora_slots",
    "mean_query",
    "merge_lora",
    "olora",
    "partition",
    "progressive_outputs",
    "prompt_slots",
    "select_prompts",
    "unmerge_lora",
    "with_frozen",
]
