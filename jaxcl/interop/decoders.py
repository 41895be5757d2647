"""Llama, Mistral, Qwen2 and Qwen3 in folders of Hugging Face Transformers."""

from typing import Any, NamedTuple

import jax

from jaxcl.errors import InputError, require, shown
from jaxcl.interop.family import ConfigFile, Family
from jaxcl.models.decoder import DecoderConfig, check_decoder, decoder
from jaxcl.models.layers import Rope


class _Kind(NamedTuple):
    """What one ``model_type`` has, and its values of fields that are absent."""

    architecture: str
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    sliding_window: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    unbiased: tuple[str, ...] = ()  # flags that would add biases


_KINDS = {
    "llama": _Kind("LlamaForCausalLM", unbiased=("attention_bias", "mlp_bias")),
    "mistral": _Kind("MistralForCausalLM", 8, sliding_window=4096),
    "qwen2": _Kind("Qwen2ForCausalLM", 32, sliding_window=4096, qkv_bias=True),
    "qwen3": _Kind(
        "Qwen3ForCausalLM",
        32,
        head_dim=128,
        sliding_window=4096,
        qk_norm=True,
        unbiased=("attention_bias",),
    ),
}

_BLOCK = {
    "norm_0/scale": "input_layernorm.weight",
    "norm_1/scale": "post_attention_layernorm.weight",
    "attention/q_norm/scale": "self_attn.q_norm.weight",
    "attention/k_norm/scale": "self_attn.k_norm.weight",
    **{
        f"attention/{name}/{leaf}": f"self_attn.{name}.{tensor}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        for leaf, tensor in (("kernel", "weight"), ("bias", "bias"))
    },
    "gate_proj/kernel": "mlp.gate_proj.weight",
    "up_proj/kernel": "mlp.up_proj.weight",
    "down_proj/kernel": "mlp.down_proj.weight",
}
NAMES = {
    "embedding": "model.embed_tokens.weight",
    **{f"layers/{leaf}": f"model.layers.{{}}.{name}" for leaf, name in _BLOCK.items()},
    "norm/scale": "model.norm.weight",
    "out/kernel": "lm_head.weight",
}


# ------------------------------------------------------------------------------ reading


def _read(file: ConfigFile) -> DecoderConfig:
    """The sizes; fields that are absent have the values that Transformers gives them."""
    kind = _KINDS[file.fields["model_type"]]
    file.only("hidden_act", "silu", "swish")
    for name in kind.unbiased:
        file.only(name, False)
    queries = file.size("num_attention_heads")
    config = DecoderConfig(
        vocab_size=file.size("vocab_size"),
        hidden_size=file.size("hidden_size"),
        intermediate_size=file.size("intermediate_size"),
        num_hidden_layers=file.size("num_hidden_layers"),
        num_attention_heads=queries,
        num_key_value_heads=file.size_or_none(
            "num_key_value_heads", kind.num_key_value_heads
        ),
        head_dim=file.size_or_none("head_dim", kind.head_dim),
        rope=_rope(file),
        rms_norm_eps=file.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=file.flag("tie_word_embeddings"),
        initializer_range=file.number("initializer_range", 0.02),
        sliding_window=_window(file, kind),
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
        max_position_embeddings=file.size_or_none("max_position_embeddings"),
    )
    try:
        check_decoder(config)
    except InputError as error:
        file.refuse(str(error).rstrip("."))
    return config


def _rope(file: ConfigFile) -> Rope:
    """Rotations, in the spelling of version 4 (``rope_scaling``) or 5 of Transformers."""
    scaling = file.inside("rope_scaling")
    held = scaling if scaling.fields else file.inside("rope_parameters")
    for each in (file, held):
        each.only("partial_rotary_factor", 1)
    layered = [name for name, value in held.fields.items() if isinstance(value, dict)]
    wanted = f"rotations by kind of layer are not supported, got {shown(layered)}"
    held.expect(not layered, wanted)
    theta = file.number("rope_theta", 10_000.0, least=1.0)
    theta = held.number("rope_theta", theta, least=1.0)
    kind = held.fields.get("rope_type", held.fields.get("type", "default"))
    if kind == "linear":
        return Rope(theta, kind, held.number("factor", least=1.0))
    if kind == "llama3":
        # Files of version 4 may have the original length beside the other sizes.
        name = "original_max_position_embeddings"
        length = held.fields.get(name, file.fields.get("max_position_embeddings"))
        return Rope(
            theta,
            kind,
            held.number("factor", least=1.0),
            held.number("low_freq_factor"),
            held.number("high_freq_factor"),
            file.size(name, length),
        )
    known = held._replace(fields={"rope_type": kind})
    known.only("rope_type", "default", "linear", "llama3")
    return Rope(theta)


def _window(file: ConfigFile, kind: _Kind) -> int | None:
    """The sliding window of all layers; a window for some of them is refused."""
    window = file.size_or_none("sliding_window", kind.sliding_window)
    by_layer = kind.qkv_bias or kind.qk_norm  # Qwen's
    if kind.sliding_window is None or (
        by_layer and not file.flag("use_sliding_window")
    ):
        window = None
    kinds = file.fields.get("layer_types")
    if kinds is None and by_layer and window:
        # The first layers attend to everything, the others to the window.
        full = file.number("max_window_layers", 28)
        first, last = full > 0, full < file.size("num_hidden_layers")
        kinds = [_FULL] * first + [_SLIDING] * last
    usual = [_SLIDING if window else _FULL]
    kinds = usual if kinds is None else kinds
    text = isinstance(kinds, list) and all(isinstance(each, str) for each in kinds)
    found = sorted(set(kinds)) if text else kinds
    if by_layer and found == [_FULL]:
        return None
    wanted = (
        "all layers must have full attention, or all sliding attention with a window"
    )
    file.expect(found == usual, f"{wanted}, got {shown(found)} and window {window}")
    return window


_FULL, _SLIDING = "full_attention", "sliding_attention"


# ------------------------------------------------------------------------------ writing


def _write(config: DecoderConfig) -> dict[str, Any]:
    """The fields of ``config.json``, rotations in the spellings of versions 4 and 5."""
    name = _model_type(config)
    queries, keys, size = config.heads
    window, length = config.sliding_window, config.max_position_embeddings
    fields = {
        "architectures": [_KINDS[name].architecture],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": queries,
        "num_key_value_heads": keys,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        **_rope_fields(config.rope),
    }
    fields |= dict.fromkeys(_KINDS[name].unbiased, False)
    if length is not None:
        fields["max_position_embeddings"] = length
    if config.head_dim is not None or _KINDS[name].head_dim is not None:
        fields["head_dim"] = size
    if name != "llama":
        fields["sliding_window"] = window
    if name.startswith("qwen"):
        kind = _FULL if window is None else _SLIDING
        fields["layer_types"] = [kind] * config.num_hidden_layers
        fields["use_sliding_window"] = window is not None
        if window is not None:
            fields["max_window_layers"] = 0
    return fields


def _model_type(config: DecoderConfig) -> str:
    """The family that computes what this decoder computes."""
    both = "no supported family has qkv_bias and qk_norm; give one of them"
    require(not (config.qkv_bias and config.qk_norm), "save_pretrained", both)
    if config.qk_norm:
        return "qwen3"
    if config.qkv_bias:
        return "qwen2"
    # Transformers refuses a Llama whose heads do not divide its width.
    uneven = config.hidden_size % config.num_attention_heads
    return "mistral" if config.sliding_window or uneven else "llama"


def _rope_fields(rope: Rope) -> dict[str, Any]:
    """The fields of both versions, which say the same."""
    names = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    scaling = {name: getattr(rope, name) for name in names[rope.kind]}
    scaling = {"rope_type": rope.kind, **scaling}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.kind == "default" else scaling,
        "rope_parameters": {"rope_theta": rope.theta, **scaling},
    }


def _shapes(config: DecoderConfig) -> Any:
    """The parameters of a decoder, without values."""
    return jax.eval_shape(decoder(config).init, jax.random.key(0))


def _unused(config: DecoderConfig) -> tuple[str, ...]:
    """Tensors of files that follow from others."""
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    return ("*rotary_emb.inv_freq", *tied)


def _spelling(name: str) -> str:
    """A model that was saved without its head has names without this prefix."""
    bare = name.split(".")[0] in ("embed_tokens", "layers", "norm")
    return f"model.{name}" if bare else name


DECODERS = Family(
    model_types=tuple(_KINDS),
    config=DecoderConfig,
    read=_read,
    write=_write,
    shapes=_shapes,
    names=NAMES,
    unused=_unused,
    spelling=_spelling,
)
