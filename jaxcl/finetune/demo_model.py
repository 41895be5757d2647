"""A small decoder and its tokenizer, trained on the text of the demonstration."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Int

from jaxcl.data import load_tokenizer
from jaxcl.files import write_json
from jaxcl.interop import save_pretrained
from jaxcl.models import DecoderConfig, decoder
from jaxcl.typing import Key

#: ``(part, done, total)``: a name, and how much of it is done.
OnProgress = Callable[[str, int, int], None]

END = "<|end|>"
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_REPORTED = 10  # steps between two reports of progress


class Pretraining(NamedTuple):
    """Sizes of the model and of its training, which takes about a minute of one core."""

    vocab_size: int = 1024
    hidden_size: int = 160
    num_layers: int = 3
    num_steps: int = 600
    batch_size: int = 16
    width: int = 64  # tokens of a row
    rate: float = 4e-3


def train_tokenizer(folder: Path, texts: Sequence[str], vocab_size: int) -> None:
    """Write a byte-level BPE tokenizer, as that of GPT-2.

    ``vocab_size`` is at least 257: the bytes and the end token, which is also the padding.
    """
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = pieces.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pieces.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    settings |= {"pad_token": END, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", settings)
    # save_pretrained takes the numbers of special tokens from here.
    number = tokenizer.token_to_id(END)
    write_json(folder / "config.json", dict.fromkeys(_ENDS, number))


def write_model(
    key: Key,
    folder: Path,
    source: Path,
    texts: Sequence[str],
    sizes: Pretraining,
    on_progress: OnProgress,
) -> None:
    """Train a decoder to predict the next token of the texts, and write it.

    The texts are one sequence, each after an end token, and are cut into rows of equal
    width. All rows are used once before any is used again, in an order given by the key.
    ``source`` is the folder of the tokenizer, which is copied.
    """
    tokenizer = load_tokenizer(source)
    config = _config(sizes, len(tokenizer))
    rows = _rows(tokenizer, texts, sizes.width + 1)
    first, second = jax.random.split(key)
    begin, step = _training(config, sizes)
    now = begin(first)
    for number, chosen in enumerate(_order(second, len(rows), sizes)):
        if number % _REPORTED == 0:
            on_progress("model", number, sizes.num_steps)
            jax.block_until_ready(now)
        now, _ = step(now, rows[chosen])
    on_progress("model", sizes.num_steps, sizes.num_steps)
    save_pretrained(folder, config, now[0], source=source)


def _training(config: DecoderConfig, sizes: Pretraining) -> tuple[Callable, Callable]:
    """``key -> (parameters, state)``, and a step that also returns the loss in nats."""
    model, optimizer = decoder(config), _optimizer(sizes)

    def begin(key):
        params = model.init(key)
        return params, optimizer.init(params)

    def loss(params, rows):
        scores, labels = model.apply(params, rows[:, :-1]), rows[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def step(now, rows):
        params, state = now
        value, gradient = jax.value_and_grad(loss)(params, rows)
        update, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), value

    return begin, jax.jit(step, donate_argnums=0)


def _config(sizes: Pretraining, vocab_size: int) -> DecoderConfig:
    """A Llama of four heads with tied embeddings."""
    d = sizes.hidden_size
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=d,
        intermediate_size=8 * d // 3 // 16 * 16,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.05,
        max_position_embeddings=256,
    )


def _rows(tokenizer: Any, texts: Sequence[str], width: int) -> Int[np.ndarray, "r n"]:
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    flat = [token for ids in encoded for token in (tokenizer.eos_token_id, *ids)]
    count = len(flat) // width
    return np.array(flat[: count * width], np.int32).reshape(count, width)


def _order(key: Key, count: int, sizes: Pretraining) -> Int[np.ndarray, "s b"]:
    """Row numbers of all batches."""
    wanted = sizes.num_steps * sizes.batch_size
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    passes = [rng.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(passes)[:wanted].reshape(sizes.num_steps, -1)


def _optimizer(sizes: Pretraining) -> optax.GradientTransformation:
    steps = sizes.num_steps
    rate = optax.warmup_cosine_decay_schedule(
        0.0, sizes.rate, max(1, steps // 20), steps, 0.05 * sizes.rate
    )
    adam = optax.adamw(rate, b2=0.98, weight_decay=0.1)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)
