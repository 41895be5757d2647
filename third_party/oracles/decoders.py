"""Small decoders of five families and what Transformers computes with them.

Nothing is imported from jaxcl. Run by hand, in an environment of its own::

    python -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
    .venv-torch/bin/python third_party/oracles/decoders.py

It writes a folder for each family into tests/test_interop/golden_decoders: config.json
and safetensors as Transformers saves them, and golden.npz with tokens, masks (row 1 is
padded on the right, row 2 on the left), labels, all hidden states and logits (zero at
padding), the mean loss over labels and some of its gradients. All are computed in float32.

With a folder of SmolLM2 it writes smollm2.npz instead: tokens of three prompts, the most
likely next token at each position, and the logits of every 1024th token::

    .venv-torch/bin/python third_party/oracles/decoders.py --smollm2 FOLDER
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

OUTPUT = Path(__file__).parents[2] / "tests" / "test_interop" / "golden_decoders"
LENGTH = 12
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,  # so that one frequency is kept, one mixed and two divided
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: Class of the configuration, and what differs from the sizes.
FAMILIES = {
    "llama_linear": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 99.0}},
    ),
    "llama3_tied": (
        transformers.LlamaConfig,
        {
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 4}),
    "qwen2": (transformers.Qwen2Config, {"rms_norm_eps": 1e-6}),
    "qwen3": (
        transformers.Qwen3Config,
        {"head_dim": 6, "tie_word_embeddings": True},
    ),
}
#: The tensors whose gradients are kept, where a family has them.
GRADIENTS = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.v_proj.bias",
    "model.layers.1.self_attn.k_norm.weight",
    "model.layers.1.mlp.gate_proj.weight",
    "model.norm.weight",
)
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at a lower temperature on a high mountain, because the pressure of the "
    "air is lower there. A pressure cooker",
)


def made(kind, changes):
    """A model whose kernels, biases and scales are all random and none is small."""
    config = kind(**SIZES | changes, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.tensor(draw.normal(size=weight.shape), dtype=torch.float32)
            center = 1.0 if name.endswith("norm.weight") else 0.0
            weight.copy_(center + 0.3 * noise)
    return model


def loaded(folder):
    """The model of a folder in float32; a model that was cast has rounded rotations."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    return model.eval()


def inputs():
    """Tokens, masks and labels ``[3, n]``: no padding, on the right, on the left."""
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (3, LENGTH))
    mask = np.ones_like(tokens)
    mask[1, 8:] = mask[2, :5] = 0
    tokens[mask == 0] = 0
    labels = np.full_like(tokens, -100)
    follows = (mask[:, 1:] * mask[:, :-1]) > 0
    labels[:, :-1][follows] = tokens[:, 1:][follows]
    return tokens, mask, labels


def record(model):
    """What the model computes, as arrays."""
    tokens, mask, labels = inputs()
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    found = model(**given, output_hidden_states=True)
    loss = torch.nn.functional.cross_entropy(
        found.logits.flatten(0, 1), torch.tensor(labels).flatten(), ignore_index=-100
    )
    loss.backward()
    kept = {"tokens": tokens, "mask": mask, "labels": labels}
    kept = {name: array.astype(np.int32) for name, array in kept.items()}
    real = torch.tensor(mask)[..., None]
    kept |= {"logits": found.logits * real, "loss": loss}
    kept["hidden"] = torch.stack(found.hidden_states) * real
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    kept |= {f"gradient {n}": gradients[n] for n in GRADIENTS if n in gradients}
    return {name: np.asarray(torch.as_tensor(kept[name]).detach()) for name in kept}


def write_family(name, kind, changes):
    """One folder; Mistral's is in bfloat16 and in two files with an index."""
    folder, model = OUTPUT / name, made(kind, changes)
    shutil.rmtree(folder, ignore_errors=True)
    options = {}
    if name == "mistral":
        model, options = model.bfloat16(), {"max_shard_size": "6KB"}
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(folder / "golden.npz", **record(loaded(folder)))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size} bytes in {sorted(path.name for path in folder.iterdir())}")


def write_smollm2(folder):
    """Tokens, best next tokens and some logits of a few prompts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = loaded(folder)
    kept = {"columns": np.arange(0, model.config.vocab_size, 1024)}
    for number, prompt in enumerate(PROMPTS):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(tokens).logits[0].numpy()
        kept[f"tokens_{number}"] = tokens[0].numpy().astype(np.int32)
        kept[f"best_{number}"] = logits.argmax(-1).astype(np.int32)
        kept[f"top_{number}"] = logits.max(-1)
        kept[f"logits_{number}"] = logits[:, kept["columns"]]
    np.savez_compressed(OUTPUT / "smollm2.npz", **kept)
    print(f"smollm2.npz: {(OUTPUT / 'smollm2.npz').stat().st_size} bytes")


def main():
    """Write the small models, or the numbers of SmolLM2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, help="folder with SmolLM2")
    given = parser.parse_args()
    if given.smollm2:
        write_smollm2(given.smollm2)
        return
    for name, (kind, changes) in FAMILIES.items():
        write_family(name, kind, changes)


if __name__ == "__main__":
    main()
