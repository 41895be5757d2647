"""The jobs of language models in PyTorch: Transformers' models and PEFT's adapters.

Eager mode, as fine-tuning scripts use them, with the fused AdamW. ``python
speed_transformers.py JOB.npz`` prints its versions, then answers each line ``{"job":
"small-lora"}`` with a line, see ``speed_job.py``: ``cpu`` and ``wall`` seconds of one step
or call, the same of the ``first_`` one, and the ``loss``.
"""

import platform
import time

import peft
import torch
import transformers
from speed_job import load, serve
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)


def main():
    """Serve requests; models are made when they are first asked for."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    job, works, models = load(), {}, {}

    def answer(request):
        name, what = request["job"].split("-")
        if (name, what) not in works:
            work = make_work(job, name, what, models)
            _, first = timed(work)
            works[name, what] = work, {f"first_{unit}": s for unit, s in first.items()}
        work, first = works[name, what]
        # As many at once as ours.
        steps = job.shapes[name]["steps"] if what in ("step", "lora") else 1
        loss, cost = timed(lambda: [work() for _ in range(steps)][-1])
        cost = {unit: spent / steps for unit, spent in cost.items()}
        finite = loss == loss and abs(loss) < float("inf")
        return {**cost, **first, "loss": loss, "finite": finite}

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions |= {"python": platform.python_version(), "peft": peft.__version__}
    serve(versions, answer)


def timed(work):
    """The result of the work, and what it cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    done = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return done, {"cpu": cpu, "wall": wall}


def make_work(job, name, what, models):
    """A function that does a job once and returns its loss, 0 where there is none.

    Jobs that change no weights share one of the ``models``.
    """
    torch.manual_seed(job.seed)
    if what in ("step", "lora"):
        model = make_model(job.shapes[name])
    else:
        if name not in models:
            models[name] = make_model(job.shapes[name])
        model = models[name]
    batch = make_batch(job, name)
    if what == "forward":
        tokens = {"input_ids": batch["input_ids"]}
        return without_gradient(model, lambda: model(**tokens).logits)
    if what.startswith("generate"):
        prompts = make_prompts(job, name, int(what.removeprefix("generate_")))
        model.generation_config.eos_token_id = None  # random weights write it early
        options = {"max_new_tokens": job.new_tokens, "do_sample": False}
        written = lambda: model.generate(**prompts, **options, pad_token_id=0)
        return without_gradient(model, written)
    if what == "gradient":
        return lambda: gradient(model.train(), batch)
    if what == "lora":
        model = with_adapter(job, model)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=job.learning_rate,
        weight_decay=1e-4,
        fused=True,
    )

    def step():
        loss = gradient(model.train(), batch)
        optimizer.step()
        return loss

    return step


def gradient(model, batch):
    """Leave the gradient of the mean loss in the parameters; the loss."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item()


def without_gradient(model, work):
    """The work, in evaluation; its loss is 0."""

    def run():
        model.eval()
        with torch.inference_mode():
            work()
        return 0.0

    return run


def make_model(shape):
    """The network, with random weights."""
    held = dict(shape["config"])
    if "type_vocab_size" in held:
        for ours in ("pooler", "classifier", "labels"):
            held.pop(ours, None)
        config = BertConfig(**held, num_labels=shape["num_classes"])
        return BertForSequenceClassification(config)
    for ours in ("rope", "sliding_window", "qkv_bias", "qk_norm"):
        held.pop(ours)
    given = {key: value for key, value in held.items() if value is not None}
    return LlamaForCausalLM(LlamaConfig(**given))


def make_batch(job, name):
    """Tokens and labels; those of a decoder are shifted by the model."""
    tokens = torch.from_numpy(getattr(job, name)).long()
    if "type_vocab_size" in job.shapes[name]["config"]:
        labels = torch.arange(len(tokens)) % job.shapes[name]["num_classes"]
        return {"input_ids": tokens, "labels": labels}
    return {"input_ids": tokens, "labels": tokens}


def make_prompts(job, name, count):
    """Prompts, padded on the left."""
    held = [torch.from_numpy(getattr(job, f"{name}_{n}")).long() for n in range(count)]
    width = max(map(len, held))
    pad = lambda row: torch.nn.functional.pad(row, (width - len(row), 0))
    tokens = torch.stack([pad(row) for row in held])
    mask = torch.stack([pad(torch.ones_like(row)) for row in held])
    return {"input_ids": tokens, "attention_mask": mask}


def with_adapter(job, model):
    """LoRA on all projections but the output layer; a classifier is trained fully."""
    projections = {
        path.rsplit(".", 1)[-1]
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    heads = {"classifier"} & projections
    config = peft.LoraConfig(
        r=job.rank,
        lora_alpha=2 * job.rank,
        target_modules=sorted(projections - heads - {"lm_head"}),
        modules_to_save=sorted(heads) or None,
    )
    return peft.get_peft_model(model, config)


if __name__ == "__main__":
    main()
