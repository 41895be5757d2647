"""Fine-tune a pretrained decoder on your own files, one after another, by LoRA and replay.

Each file is a task, with lines such as {"prompt": "2 + 2 =", "answer": " 4"}. MODEL is a
folder of Hugging Face; OUT gets the run, and an adapter that PEFT loads. The same command
goes on with a run that was interrupted, and with more files.

    python -m experiments.examples.finetune
    python -m experiments.examples.finetune MODEL OUT first.jsonl second.jsonl ...
"""

import sys
from functools import partial
from pathlib import Path

import jax
import optax

from jaxcl import adapters, data, losses, methods, metrics
from jaxcl.interop import load_pretrained, save_adapter
from jaxcl.models import decoder
from jaxcl.training import Options, learn


def main(model: str, out: str, *files: str, num_steps: int = 60, rank: int = 8):
    """``{metric: {learner: [T + 1, T]}}`` on a tenth of each file, kept for testing."""
    key = jax.random.key(0)
    config, params = load_pretrained(model)
    apply = decoder(config).apply
    tokenizer = data.load_tokenizer(model, vocab_size=config.vocab_size)
    read = partial(data.instruct_dataset, tokenizer=tokenizer, max_length=256)
    tasks, widths = [], (32, 64, 128, 256)  # chosen ones would change with more files
    for number, file in enumerate(files):
        rows = read(file, task=number, mean="examples")
        parts = data.train_valid_split(key, rows, valid_fraction=0.1)
        tasks.append(data.Task(Path(file).stem, *parts))
    outputs = lambda frozen: losses.single_head(adapters.with_frozen(apply, frozen))
    params = adapters.add_lora(key, params, rank=rank, targets="all-linear")
    adapter, base = adapters.partition(params, adapters.lora_rule)
    replay = partial(methods.experience_replay, capacity=200, sample_size=4)
    loss = lambda frozen: losses.token_cross_entropy(outputs(frozen))
    build = lambda frozen: replay(loss(frozen), optax.adamw(1e-3))
    result = learn(
        key, build, adapter, data.share_widths(tasks, widths=widths),
        Options(num_steps, batch_size=4),
        folder=Path(out) / "run", frozen=base, metadata={"rate": 1e-3, "rank": rank},
        metrics=metrics.with_frozen(lambda frozen: metrics.tokens(outputs(frozen))),
    )  # fmt: skip
    if result.status != "done":
        sys.exit(f"{out}/run is {result.status}: no adapter until it is done")
    name = Path(out) / f"adapter-{len(files)}"
    if not name.exists():  # else the run was finished before
        save_adapter(name, adapters.combine(result.params, base), base=model)
    return result.results


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    for metric, learners in main(*sys.argv[1:]).items():
        print(f"{metric}, a row after each task\n{learners['params'].round(3)}")
