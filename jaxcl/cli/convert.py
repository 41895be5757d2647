"""A model in a GGUF file as a Hugging Face folder.

    jaxcl convert FILE.gguf FOLDER
        --dtype bfloat16      of the weights; or float32, twice as large: exactly the
                              numbers that the quantised ones stand for
        --shard-size 5GB      most bytes of a file (KB, MB, GB); more have an index
        --split NAME          how text is cut into words, for a file that does not say:
                              gpt-2, smollm, qwen2, or llama-bpe (Llama 3)

FILE.gguf is of the Llama family (general.architecture llama): Llama, SmolLM2, Mistral and
others, in any quantisation that the package gguf can undo, such as Q4_0, Q4_K, Q8_0, F16.
FOLDER is new: it gets config.json, model.safetensors and the tokenizer with its chat
template, all at the end. Read it by jaxcl.interop.load_pretrained, or by AutoTokenizer and
AutoModelForCausalLM of transformers. Weights stay rounded as they are in the file.

Needs the extra gguf, pip install '.[gguf]', and memory for one tensor.

    jaxcl convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcl.errors import require
from jaxcl.progress import progress
from jaxcl.runs.command import refusing
from jaxcl.signals import Terminated, terminable

_OPTIONS = ("dtype", "shard_size", "split")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_require = lambda holds, message: require(holds, "convert", message)


@refusing
def main(argv: Sequence[str]) -> int:
    """``jaxcl convert FILE.gguf FOLDER``; the exit code."""
    if {"-h", "--help"} & set(argv) or not argv:
        print((__doc__ or "").strip())
        return 0
    file, folder, options = read_words(argv)
    from jaxcl.interop.gguf import convert_gguf

    with terminable():
        try:
            with progress(100, "percent") as advance:
                shown = 0

                def on_progress(done, total):
                    nonlocal shown
                    now = 100 * done // total
                    advance(now - shown)
                    shown = now

                made = convert_gguf(file, folder, on_progress=on_progress, **options)
        except KeyboardInterrupt as error:
            ended = "terminated" if isinstance(error, Terminated) else "interrupted"
            print(f"{ended}; {folder} was not written", file=sys.stderr)
            return 0 if isinstance(error, Terminated) else 130
    counted = f"{made['parameters']:,} parameters in {made['dtype']}"
    print(f"{counted}, {made['bytes'] / 1e6:,.0f} MB: {folder}")
    return 0


def read_words(words: Sequence[str]) -> tuple[Path, Path, dict]:
    """File, folder and options of a command line."""
    plain, options = [], {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            plain.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            _require(rest, f"expected a value after {word}")
            value = rest.pop(0)
        name = name.replace("-", "_")
        known = ", ".join(f"--{option.replace('_', '-')}" for option in _OPTIONS)
        _require(name in _OPTIONS, f"expected one of {known}, got {word}; see --help")
        _require(name not in options, f"{word} is given twice; leave one out")
        options[name] = value
    came = f"got {len(plain)} words besides the options; see --help"
    _require(len(plain) == 2, f"expected FILE.gguf FOLDER, {came}")
    for word in plain:
        usable = word and word.isprintable()
        _require(usable, f"expected a path, got {word!r}")
    if "shard_size" in options:
        options["shard_size"] = _bytes(options["shard_size"])
    return Path(plain[0]), Path(plain[1]), options


def _bytes(text: str) -> int:
    """``5GB`` as a number of bytes."""
    match = re.fullmatch(r"([0-9]{1,15})(KB|MB|GB|)", text)
    wanted = f"--shard-size: expected such as 5GB or 500MB, got {text!r}"
    _require(match and int(match[1]), wanted)
    return int(match[1]) * _UNITS[match[2]] if match else 0
