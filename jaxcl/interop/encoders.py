"""BERT in folders of Hugging Face Transformers, alone or with a classifier."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jaxcl.errors import InputError, shown
from jaxcl.interop.family import ConfigFile, Family
from jaxcl.interop.tensors import find_tensors
from jaxcl.models.encoder import ACTIVATIONS, EncoderConfig, check_encoder, encoder
from jaxcl.models.heads import sequence_classifier, token_classifier

#: What ``EncoderConfig.classifier`` is called in a ``config.json``.
_ARCHITECTURES = {
    None: "BertModel",
    "texts": "BertForSequenceClassification",
    "tokens": "BertForTokenClassification",
}
#: Those whose other layers are for pretraining only.
_PRETRAINED = ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction")


def _dense(path: str, name: str) -> dict[str, str]:
    return {f"{path}/kernel": f"{name}.weight", f"{path}/bias": f"{name}.bias"}


def _norm(path: str, name: str) -> dict[str, str]:
    return {f"{path}/scale": f"{name}.weight", f"{path}/bias": f"{name}.bias"}


_LAYER = {
    **_dense("attention/query", "attention.self.query"),
    **_dense("attention/key", "attention.self.key"),
    **_dense("attention/value", "attention.self.value"),
    **_dense("attention/output/dense", "attention.output.dense"),
    **_norm("attention/output/norm", "attention.output.LayerNorm"),
    **_dense("intermediate/dense", "intermediate.dense"),
    **_dense("output/dense", "output.dense"),
    **_norm("output/norm", "output.LayerNorm"),
}
NAMES = {
    "embeddings/word": "bert.embeddings.word_embeddings.weight",
    "embeddings/position": "bert.embeddings.position_embeddings.weight",
    "embeddings/type": "bert.embeddings.token_type_embeddings.weight",
    **_norm("embeddings/norm", "bert.embeddings.LayerNorm"),
    **{f"layers/{leaf}": f"bert.encoder.layer.{{}}.{n}" for leaf, n in _LAYER.items()},
    **_dense("pooler/dense", "bert.pooler.dense"),
    **_dense("classifier", "classifier"),
}


# ------------------------------------------------------------------------------ reading


def _read(file: ConfigFile) -> EncoderConfig:
    """The sizes; fields that are absent have the values that Transformers gives them."""
    file.only("position_embedding_type", "absolute")
    file.only("is_decoder", False)
    file.only("add_cross_attention", False)
    file.only("hidden_act", *ACTIVATIONS)
    classifier = _classifier(file)
    rate = file.fields.get("classifier_dropout")
    config = EncoderConfig(
        vocab_size=file.size("vocab_size", 30522),
        hidden_size=file.size("hidden_size", 768),
        intermediate_size=file.size("intermediate_size", 3072),
        num_hidden_layers=file.size("num_hidden_layers", 12),
        num_attention_heads=file.size("num_attention_heads", 12),
        max_position_embeddings=file.size("max_position_embeddings", 512),
        type_vocab_size=file.size("type_vocab_size", 2),
        hidden_act=file.fields.get("hidden_act", "gelu"),
        layer_norm_eps=file.number("layer_norm_eps", 1e-12),
        hidden_dropout_prob=file.number("hidden_dropout_prob", 0.1),
        attention_probs_dropout_prob=file.number("attention_probs_dropout_prob", 0.1),
        classifier_dropout=None if rate is None else file.number("classifier_dropout"),
        initializer_range=file.number("initializer_range", 0.02),
        pooler=classifier == "texts" or (classifier is None and _has_pooler(file)),
        classifier=classifier,
        labels=() if classifier is None else _labels(file),
    )
    try:
        check_encoder(config)
    except InputError as error:
        file.refuse(str(error).rstrip("."))
    return config


def _classifier(file: ConfigFile) -> str | None:
    """What is classified: texts, tokens or nothing."""
    found = file.fields.get("architectures") or ["BertModel"]
    name = found[0] if isinstance(found, list) else found
    kinds = {architecture: kind for kind, architecture in _ARCHITECTURES.items()}
    kinds |= dict.fromkeys(_PRETRAINED)
    known = ", ".join(kinds)
    file.expect(
        isinstance(name, str) and name in kinds,
        f"architectures must be one of {known}, got {shown(found)}",
    )
    return kinds[name]


def _labels(file: ConfigFile) -> tuple[str, ...]:
    """The names of the outputs in their order; two if the file has none."""
    named = file.fields.get("id2label")
    if named is None:
        count = file.size("num_labels", 2)
        return tuple(f"LABEL_{number}" for number in range(count))
    fits = isinstance(named, dict) and set(named) == {str(k) for k in range(len(named))}
    wanted = "id2label must have a name for each number from 0"
    file.expect(fits and named, f"{wanted}, got {shown(named)}")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _has_pooler(file: ConfigFile) -> bool:
    """Whether the weights have a pooler, which no field says; if unknown, yes."""
    tensors = None
    with suppress(InputError):  # said where the weights are read
        tensors = find_tensors("read_config", Path(file.place).parent)
    return tensors is None or any("pooler." in name for name in tensors)


# ------------------------------------------------------------------------------ writing


def _write(config: EncoderConfig) -> dict[str, Any]:
    """The fields of ``config.json``."""
    fields = config._asdict()
    for name in ("pooler", "classifier", "labels"):
        del fields[name]
    fields |= {
        "architectures": [_ARCHITECTURES[config.classifier]],
        "model_type": "bert",
        "pad_token_id": 0,  # of all of Google's vocabularies
    }
    if config.classifier is not None:
        names = dict(enumerate(config.labels))
        fields["id2label"] = {str(number): label for number, label in names.items()}
        fields["label2id"] = {label: number for number, label in names.items()}
    return fields


def _shapes(config: EncoderConfig) -> Any:
    """The parameters of an encoder and its classifier, without values."""
    build = {None: encoder, "texts": sequence_classifier, "tokens": token_classifier}
    model = build[config.classifier](config)
    return jax.eval_shape(model.init, jax.random.key(0))


def _unused(config: EncoderConfig) -> tuple[str, ...]:
    """Tensors of pretraining, and a pooler that classifiers of tokens do not read."""
    pooler = () if config.pooler else ("bert.pooler.dense.*",)
    return ("bert.embeddings.position_ids", "cls.*", *pooler)


def _spelling(name: str) -> str:
    """Names without prefix, as those of an encoder alone, and those of TensorFlow."""
    bare = name.split(".")[0] in ("embeddings", "encoder", "pooler")
    name = f"bert.{name}" if bare else name
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    for ending, new in old.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + new
    return name


ENCODERS = Family(
    model_types=("bert",),
    config=EncoderConfig,
    read=_read,
    write=_write,
    shapes=_shapes,
    names=NAMES,
    unused=_unused,
    spelling=_spelling,
)
