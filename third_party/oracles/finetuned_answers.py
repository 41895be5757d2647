"""Whether torch answers as a run of ``jaxcl finetune`` did, with its adapter in PEFT.

Nothing is imported from jaxcl. Run by hand, in an environment of its own::

    python -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    .venv-torch/bin/python third_party/oracles/finetuned_answers.py RUN LEARNER

LEARNER is a folder of RUN/learners, such as 002-params. The prompts are those of the
answers after so many tasks. It prints, for each task, how many of the generated answers
are equal, letter by letter, and those that are not, and fails if there is one.
"""

import argparse
import json
import sys
from pathlib import Path

import peft
import torch
import transformers


def main():
    """Read the command line, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("learner")
    parser.add_argument("--rows", type=int, default=20)
    asked = parser.parse_args()
    ended, _, name = asked.learner.partition("-")
    adapter = asked.run / "learners" / asked.learner
    held = json.loads((asked.run / "finetune.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(
        held["model"], dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(held["model"])
    counts = []
    for task in held["tasks"]:
        path = asked.run / "answers" / f"{ended}-{task['name']}-{name}.jsonl"
        if not path.exists():
            continue
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        equal = 0
        for line in lines[: asked.rows]:
            said = answer(model, tokenizer, line["prompt"], held["max_new_tokens"])
            equal += said == line["output"]
            if said != line["output"]:
                print(f"  {task['name']}: {said!r}, jaxcl {line['output']!r}")
        counts.append((equal, len(lines[: asked.rows])))
        print(f"{task['name']}: {equal} of {counts[-1][1]} answers are equal")
    if not counts:
        sys.exit(f"no answers of {asked.learner} in {asked.run}")
    if any(equal < rows for equal, rows in counts):
        sys.exit("torch answers otherwise")


@torch.no_grad()
def answer(model, tokenizer, prompt, longest):
    """The greedy answer to a prompt as text."""
    tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    new = model.generate(
        **tokens,
        max_new_tokens=longest,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )[0, tokens["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
