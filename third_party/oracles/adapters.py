"""LoRA adapters as PEFT writes them, and what it computes with them.

Nothing is imported from jaxcl. Run by hand, in an environment of its own::

    python -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    .venv-torch/bin/python third_party/oracles/adapters.py

It writes into tests/test_interop/golden_adapters: the weights of a small Llama and of a
small BERT; and a folder for each adapter, with the files that PEFT saves and golden.npz:
tokens, the logits of the base, with the adapter and with the adapter merged, and the same
after one step of gradient descent on the factors. All are computed in float32.

With the folder of an adapter of the Llama that another program wrote, it prints how far
PEFT's logits are from those of the case of that name, and the keys that differ::

    .venv-torch/bin/python third_party/oracles/adapters.py --check qv FOLDER
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

OUTPUT = Path(__file__).parents[2] / "tests" / "test_interop" / "golden_adapters"
LLAMA = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,  # large, so that every part matters
    "bos_token_id": None,
    "eos_token_id": None,
}
BERT = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
    "num_labels": 3,
}
#: The base of each adapter, and the settings of PEFT's config.
CASES = {
    "qv": (
        "llama",
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    ),
    "patterns": (
        "llama",
        {
            "r": 3,
            "lora_alpha": 7,
            "target_modules": "all-linear",
            "use_rslora": True,
            "lora_dropout": 0.1,
            "rank_pattern": {"self_attn.q_proj": 2, r"layers\.1\.mlp\.down_proj": 5},
            "alpha_pattern": {"q_proj": 5, r".*\.0\.mlp\.up_proj": 11},
        },
    ),
    "head": (
        "llama",
        {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
    ),
    "tied_head": (
        "llama_tied",
        {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
    ),
    "tied_embedding": (
        "llama_tied",
        {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "one_layer": (
        "llama",
        {"r": 2, "target_modules": ["gate_proj"], "layers_to_transform": [1]},
    ),
    "classifier": (
        "bert",
        {
            "r": 4,
            "target_modules": ["query", "value", "attention.output.dense"],
            "task_type": "SEQ_CLS",
        },
    ),
}


def base(name: str):
    """A model; llama_tied has the weights of llama, without those of its head."""
    torch.manual_seed(0)
    if name == "bert":
        config = transformers.BertConfig(**BERT)
        return transformers.BertForSequenceClassification(config).eval()
    tied = name == "llama_tied"
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


def adapted(name: str):
    """PEFT's model of a case: random factors, and modules that are saved besides."""
    kind, settings = CASES[name]
    settings = {"task_type": "CAUSAL_LM", **settings}
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    model = peft.get_peft_model(base(kind), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model, tokens) -> np.ndarray:
    """What a model computes."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)).logits.numpy()


def write(name: str) -> None:
    """The folder of one case."""
    folder, kind = OUTPUT / name, CASES[name][0]
    tokens = np.random.default_rng(0).integers(0, 24, (2, 6))
    model = adapted(name)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = kind
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    found = {"base": logits(base(kind), tokens), "adapted": logits(model, tokens)}
    found["merged"] = logits(adapted(name).merge_and_unload(), tokens)
    # One step of descent on the mean square of the logits, for gradients of factors.
    torch.mean(torch.square(model(input_ids=torch.tensor(tokens)).logits)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(0.1 * parameter.grad)
    found["stepped"] = logits(model, tokens)
    print(name, {k: float(np.abs(v - found["base"]).max()) for k, v in found.items()})
    tokens = tokens.astype(np.int32)
    np.savez_compressed(folder / "golden.npz", tokens=tokens, **found)


def check(name: str, folder: str) -> None:
    """Compare what PEFT reads from another folder with a case."""
    model = peft.PeftModel.from_pretrained(base(CASES[name][0]), folder).eval()
    golden = np.load(OUTPUT / name / "golden.npz")
    away = np.abs(logits(model, golden["tokens"]) - golden["adapted"]).max()
    ours = load_file(Path(folder) / "adapter_model.safetensors")
    theirs = load_file(OUTPUT / name / "adapter_model.safetensors")
    wrong = sorted(ours.keys() ^ theirs.keys())
    wrong += [k for k in ours.keys() & theirs.keys() if not ours[k].equal(theirs[k])]
    print(f"{name}: logits differ by {away:.2e}, tensors differ: {wrong}")


def main() -> None:
    """Write all cases, or check one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", nargs=2, metavar=("CASE", "FOLDER"))
    given = parser.parse_args()
    if given.check:
        check(*given.check)
        return
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    for name in CASES:
        write(name)
    for kind in ("llama", "bert"):
        path = OUTPUT / f"{kind}.safetensors"
        save_file(base(kind).state_dict(), path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
