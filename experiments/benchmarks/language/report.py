"""The tables of a run, and what the README says of it."""

from functools import partial
from statistics import median

from experiments.benchmarks.language.config import COMPARED, Config
from experiments.benchmarks.language.shapes import SHAPES, num_tokens
from experiments.benchmarks.report import (
    README,
    Done,
    Target,
    by_job,
    ratios,
    spread,
    targets_table,
)
from jaxcl.files import write_text
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill

MODELS = {
    "small": "decoder, 4 layers of 256",
    "smollm2": "SmolLM2-135M",
    "bert": "BERT-base, 6 layers",
    "smollm2_bf16": "SmolLM2-135M in bfloat16",
    "billion": "Llama-3.2-1B in bfloat16",
    "tiny": "tiny decoder",
    "tiny_bert": "tiny encoder",
}
JOBS = {
    "forward": "logits",
    "products": "the products of a gradient",
    "gradient": "gradient of all weights",
    "step": "step of all weights",
    "lora": "step of an adapter",
    "sam": "step of an adapter with SAM",
    "fisher": "Fisher of an adapter",
    "generate_1": "generation after one prompt",
    "generate_5": "generation after five prompts",
}
#: Of jaxcl's seconds within torch's.
BOUNDS = {"smollm2": 0.9}
SMALL_BOUND = 1.3

RATIOS = "Ratios of CPU seconds within a round; compilation apart."
SECONDS = (
    "CPU seconds, medians. Tokens are those of the rows that are trained on or evaluated, "
    "or those that are generated. The first call compiles (jaxcl) or prepares (torch)."
)
MEMORY = (
    "A step of the adapter with AdamW, EWC and an average, from XLA's analysis. The state "
    "is the adapter, two moments, the average, the Fisher and its anchor."
)


def report(config: Config, folder: RunFolder) -> None:
    """Write and print the tables; fill the README if the folder is the committed one."""
    made = tables(config, by_job(read_records(folder)))
    for name, table in made.items():
        write_text(folder.path / "tables" / f"{name}.md", table)
    if README.parent in folder.path.resolve().parents:
        fill(README, "\n\n".join((machine(folder), *made.values())), "language")
    print(*made.values(), sep="\n")


def tables(config: Config, done: Done) -> dict[str, str]:
    """All tables by name, in Markdown; those without a row are left out."""
    made = {
        "targets": targets_table(targets(done), RATIOS),
        "seconds": seconds_table(config, done),
        "memory": memory_table(done),
    }
    return {name: to_markdown(table) for name, table in made.items() if table.rows}


def targets(done: Done) -> list[Target]:
    """Every promise whose jobs were done."""
    cost = lambda job, system="jaxcl", field="cpu": (job, system, field)
    of = partial(ratios, done)
    listed = []
    for model, title in MODELS.items():
        target = lambda what, bound, values, title=title: listed.append(
            Target(f"{title}: {what}", bound, False, values)
        )
        job = lambda what, model=model: f"{model}-{what}"
        bound = BOUNDS.get(model, SMALL_BOUND)
        for what in COMPARED:
            theirs = cost(job(what), "transformers")
            found = of(cost(job(what)), theirs)
            target(f"{JOBS[what]} against torch", bound, found)
        found = of(cost(job("gradient")), cost(job("products")))
        target("gradient against its products alone", 1.33, found)
        found = of(cost(job("sam")), cost(job("lora")))
        target("step of an adapter with SAM against without", 2.1, found)
        fisher = job("fisher")
        found = of(cost(fisher), cost(fisher, field="gradient_cpu"))
        target("Fisher of an adapter against its gradient", 1.3, found)
    return [target for target in listed if target.values]


def seconds_table(config: Config, done: Done) -> Table:
    """A row per job: what it costs here, and there."""
    columns = (
        *(Column("model"), Column("job"), Column("jaxcl, s", 3), Column("tokens/s", 0)),
        *(Column("first call, s", 1), Column("torch, s", 3), Column("tokens/s", 0)),
        *(Column("first call, s", 1), Column("jaxcl / torch", 2), Column("all rounds")),
    )
    rows = []
    for job in config.jobs:
        model, what = job.split("-")
        if what not in JOBS or (job, "jaxcl") not in done:
            continue
        cells, count = [], tokens(config, job)
        for system in ("jaxcl", "transformers"):
            turns = done.get((job, system), [])
            took = median(turn["cpu"] for turn in turns) if turns else None
            first = turns[0].get("first_cpu") if turns else None
            speed = took and (count / took if what != "products" else None)
            cells += [took, speed, first]
        both = ratios(done, (job, "jaxcl", "cpu"), (job, "transformers", "cpu"))
        versus = (median(both), spread(both)) if both else (None, None)
        rows.append((MODELS[model], JOBS[what], *cells, *versus))
    return Table(columns, tuple(rows), (SECONDS,))


def tokens(config: Config, job: str) -> int:
    """That a job goes over, or makes."""
    model, what = job.split("-")
    if what == "fisher":
        return config.fisher_rows * SHAPES[model].length
    if what.startswith("generate"):
        return config.new_tokens * int(what.removeprefix("generate_"))
    return num_tokens(model)


def memory_table(done: Done) -> Table:
    """Megabytes of an adapter's step."""
    fields = "base", "adapter", "state", "temporary"
    names = "frozen base, MB", "adapter, MB", "state, MB", "within a step, MB"
    columns = Column("model"), *(Column(name, 1, 1e-6) for name in names)
    columns += (Column("adapters in the state", 2),)
    rows = []
    for (job, _), turns in done.items():
        model, what = job.split("-")
        if what == "memory":
            held = [float(turns[0][field]) for field in fields]
            rows.append((MODELS[model], *held, held[2] / held[1]))
    return Table(columns, tuple(rows), (MEMORY,))


def machine(folder: RunFolder) -> str:
    """On what it was measured, and with what."""
    here, records = read_json(folder.path / "environment.json"), read_records(folder)
    known = {name: here["versions"][name] for name in ("python", "jax")}
    for record in records:
        known |= record.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    loads = [record["load"] for record in records]
    rounds = 1 + max(record["round"] for record in records)
    return (
        f"{rounds} rounds on one thread of {here['cpu']}; {versions}. Load average "
        f"{min(loads)} to {max(loads)} while measuring."
    )
