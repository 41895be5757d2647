"""Small encoders and what Transformers computes with them.

Nothing is imported from jaxcl. Run by hand, in an environment of its own::

    python -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
    .venv-torch/bin/python third_party/oracles/encoders.py

It writes folders of BERT without a head and with heads for texts and for tokens into
tests/test_interop/golden_encoders: config.json and safetensors as Transformers saves them;
golden.npz with inputs (row 1 is padded on the right, row 2 on the left), labels, all hidden
states, the pooler's output or logits, and a loss; gradients.safetensors with all its
gradients. All are computed in float64.

With a folder of MiniLM (all-MiniLM-L6-v2) it writes minilm.npz instead: the tokens of three
sentences, their embeddings, and every 16th number of all hidden states::

    .venv-torch/bin/python third_party/oracles/encoders.py --minilm FOLDER

With a folder that jaxcl has written it computes the states or logits of that model for the
inputs beside it, and fails where Transformers misses or does not use a tensor. It is run by
tests/test_interop/test_encoders.py, where the environment variable JAXCL_TORCH names the
Python of such an environment::

    .venv-torch/bin/python third_party/oracles/encoders.py --saved FOLDER
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUTPUT = Path(__file__).parents[2] / "tests" / "test_interop" / "golden_encoders"
LENGTH = 9
LABELS = 4
SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 10,
    "num_labels": LABELS,
}
MODELS = {
    "model": (transformers.BertModel, "gelu"),
    "texts": (transformers.BertForSequenceClassification, "gelu_new"),
    "tokens": (transformers.BertForTokenClassification, "relu"),
}
SENTENCES = (
    "A cat sits on the mat.",
    "Flat minima forget less.",
    "Kyoto was once the capital of Japan.",
)


def randomize(module):
    """All weights random: none is small, and no bias or scale is at its first value."""
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            weight.copy_(torch.tensor(center + 0.4 * draw.normal(size=weight.shape)))
    # The files hold float32, and the computation in float64 begins with the same numbers.
    return module.float().double().eval()


def inputs():
    """Tokens, masks and types ``[3, n]``: no padding, on the right, on the left."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(1, SIZES["vocab_size"], (3, LENGTH))
    types = np.arange(LENGTH) > draw.integers(2, 6, (3, 1))
    mask = np.ones_like(tokens)
    mask[1, 5:] = mask[2, :3] = 0  # over tokens like all others, which must not matter
    return tokens, mask, types.astype(np.int64)


def loss_of(name, out, mask):
    """A loss that needs all outputs, and its labels."""
    draw = np.random.default_rng(2)
    if name == "model":
        real = torch.tensor(mask)[..., None]
        weights = torch.tensor(draw.normal(size=out.last_hidden_state.shape))
        total = (real * weights * out.last_hidden_state).sum()
        return total + (out.pooler_output**2).sum(), weights.numpy()
    shape = out.logits.shape[:-1]
    labels = draw.integers(0, LABELS, shape)
    if name == "tokens":
        labels[(mask == 0) | (draw.random(shape) < 0.2)] = -100
    flat = out.logits.reshape(-1, LABELS)
    entropy = torch.nn.CrossEntropyLoss()(flat, torch.tensor(labels).reshape(-1))
    return entropy, labels


def write(path, **arrays):
    """Arrays in 32 bits."""
    held = {name: np.asarray(torch.as_tensor(a).detach()) for name, a in arrays.items()}
    narrow = lambda a: a.astype(np.float32 if a.dtype.kind == "f" else np.int32)
    np.savez_compressed(path, **{name: narrow(array) for name, array in held.items()})


def write_bert(name):
    """A folder with a model and what it computes."""
    kind, activation = MODELS[name]
    config = transformers.BertConfig(**SIZES, hidden_act=activation)
    config._attn_implementation = "eager"
    model = randomize(kind(config))
    tokens, mask, types = inputs()
    out = model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(mask),
        token_type_ids=torch.tensor(types),
        output_hidden_states=True,
    )
    loss, labels = loss_of(name, out, mask)
    loss.backward()
    out_of_head = out.pooler_output if name == "model" else out.logits
    grads = {name: weight.grad.float() for name, weight in model.named_parameters()}
    folder = OUTPUT / name
    model.float().save_pretrained(folder)
    save_file(grads, folder / "gradients.safetensors")
    write(
        folder / "golden.npz",
        tokens=tokens,
        mask=mask,
        types=types,
        labels=labels,
        states=torch.stack(out.hidden_states),
        out=out_of_head,
        loss=loss,
    )


def write_minilm(folder):
    """What all-MiniLM-L6-v2 computes for three sentences."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager")
    given = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    out = model.double().eval()(**given, output_hidden_states=True)
    real = given["attention_mask"][..., None]
    mean = (real * out.last_hidden_state).sum(1) / real.sum(1)
    write(
        OUTPUT / "minilm.npz",
        tokens=given["input_ids"],
        mask=given["attention_mask"],
        states=torch.stack(out.hidden_states)[..., ::16],
        sentences=torch.nn.functional.normalize(mean),
    )


def write_saved(folder):
    """What Transformers computes with a folder that jaxcl has written."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model, found = getattr(transformers, config.architectures[0]).from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    faults = {name: list(some) for name, some in found.items() if some}
    if faults:
        sys.exit(f"{folder}: {faults}")
    with np.load(folder.parent / "inputs.npz") as held:
        held = {name: torch.tensor(held[name]) for name in held}
    with torch.no_grad():
        out = model.eval()(
            input_ids=held["tokens"],
            attention_mask=held["mask"],
            token_type_ids=held["types"],
        )
    states = out.logits if "logits" in out else out.last_hidden_state
    np.save(folder.parent / "found.npy", states.numpy())


def main():
    """Write all files, or those of one folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", type=Path, help="folder of MiniLM")
    parser.add_argument("--saved", type=Path, help="folder that jaxcl has written")
    given = parser.parse_args()
    if given.minilm:
        write_minilm(given.minilm)
        return
    if given.saved:
        write_saved(given.saved)
        return
    for name in MODELS:
        shutil.rmtree(OUTPUT / name, ignore_errors=True)
        (OUTPUT / name).mkdir(parents=True)
        write_bert(name)


if __name__ == "__main__":
    main()
