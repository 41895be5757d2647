"""The tables of a run, and what the README says of it."""

from functools import partial
from statistics import median

from experiments.benchmarks.finetune.config import METHODS, Config
from experiments.benchmarks.finetune.first_step import PARTS
from experiments.benchmarks.language.report import MODELS, machine
from experiments.benchmarks.report import (
    README,
    Done,
    Target,
    by_job,
    spread,
    targets_table,
)
from jaxcl.files import write_text
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs.folder import RunFolder, read_records
from jaxcl.runs.readme import fill

NAMES = {
    "plain": "plain",
    "sam": "SAM",
    "er": "replay",
    "average": "replay, and an average of the weights",
    "ilora": "I-LoRA, states of the last layer",
    "ilora_all": "I-LoRA, states of all layers",
    "ilora_products": "I-LoRA, average of the products",
}
#: Whose step each is measured against.
BASES = {what: "plain" if what in ("plain", "sam") else "er" for what in METHODS}

PARTS_IN_WORDS = {
    "imports": "Python and imports",
    "tokenising": "files, tokenizer and tokens",
    "weights": "weights, and an adapter",
    "planning": "the plan of the run, with the memory of a step",
    "compiling": "tracing and compiling the step",
    "first_run": "the first step",
    "total": "all together",
}

RATIOS = "Ratios of CPU seconds within a round; compilation apart."
SECONDS = (
    "CPU seconds, medians; the first step compiles. Replay adds as many rows as are new. "
    "Operations are XLA's, of which those within layers are of one layer."
)
PADDING = (
    "Docstrings of Python's library, in tokens that are learned from them. Of new rows; a "
    "step cuts replayed ones to the width that those drawn need."
)
START = "Seconds of the clock, and programs that were compiled meanwhile; medians."


def report(config: Config, folder: RunFolder) -> None:
    """Write and print the tables; fill the README if the folder is the committed one."""
    made = tables(config, by_job(read_records(folder)))
    for name, table in made.items():
        write_text(folder.path / "tables" / f"{name}.md", table)
    if README.parent in folder.path.resolve().parents:
        fill(README, "\n\n".join((machine(folder), *made.values())), "finetune")
    print(*made.values(), sep="\n")


def tables(config: Config, done: Done) -> dict[str, str]:
    """All tables by name, in Markdown; those without a row are left out."""
    made = {
        "targets": targets_table(targets(done), RATIOS),
        "steps": steps_table(config, done),
        "loop": loop_table(done),
        "padding": padding_table(done),
        "start": start_table(done),
    }
    return {name: to_markdown(table) for name, table in made.items() if table.rows}


def targets(done: Done) -> list[Target]:
    """Every promise whose jobs were done."""
    listed = []
    for model, title in MODELS.items():
        of = partial(ratios, done, f"{model}-steps")
        target = lambda what, *more, title=title: listed.append(
            Target(f"{title}: {what}", *more)
        )
        target("I-LoRA against replay", 1.35, False, of("ilora", "er"))
        target("replay with an average", 1.01, False, of("average", "er"))
        alone = [100 * part for part in of("update", "er")]
        target("the average alone, of a step with replay", 1, False, alone, "%")
        target("SAM against without", 2.1, False, of("sam", "plain"))
    loops = ratios(done, "loop", "learn", "bare")
    listed.append(Target("learn against its bare step", 1.03, False, loops))
    padded = [100 * turn["padding"] for turn in done.get(("padding", ""), [])]
    listed.append(
        Target("padding of new rows, of all positions", 15, False, padded, "%")
    )
    return [target for target in listed if target.values]


def ratios(done: Done, job: str, above: str, below: str) -> list[float]:
    """CPU seconds over CPU seconds within a round; none where one was not measured."""
    return [
        turn[f"{above}_cpu"] / turn[f"{below}_cpu"]
        for turn in done.get((job, ""), [])
        if f"{above}_cpu" in turn and f"{below}_cpu" in turn
    ]


def steps_table(config: Config, done: Done) -> Table:
    """A row per model and method: what its step costs, and in ratio to what."""
    columns = (
        *(Column("model"), Column("step of an adapter"), Column("CPU, s", 4)),
        *(Column("against"), Column("ratio", 3), Column("all rounds")),
        *(Column("first step, s", 1), Column("operations, millions", 2, 1e-6)),
    )
    rows = []
    for job in config.jobs:
        turns = done.get((job, ""), [])
        for what in config.methods if turns and job.endswith("-steps") else ():
            base, field = BASES[what], f"{what}_cpu"
            found = ratios(done, job, what, base)
            against = None, None, None
            if base != what and found:
                against = NAMES[base], median(found), spread(found, 3)
            rows.append(
                (
                    *(MODELS[job.removesuffix("-steps")], NAMES[what]),
                    median(turn[field] for turn in turns),
                    *against,
                    *(turns[0][f"{what}_first_cpu"], turns[0][f"{what}_flops"]),
                )
            )
    return Table(columns, tuple(rows), (SECONDS,))


def loop_table(done: Done) -> Table:
    """Milliseconds of a step in each loop."""
    turns = done.get(("loop", ""), [])
    columns = Column("loop"), Column("CPU, ms", 2, 1e3), Column("clock, ms", 2, 1e3)
    names = {"bare": "the compiled step, bare", "learn": "learn"} if turns else {}
    rows = tuple(
        (title, *(median(turn[f"{name}_{unit}"] for turn in turns) for unit in UNITS))
        for name, title in names.items()
    )
    return Table(columns, rows, ("A step with replay on rows of text; medians.",))


UNITS = "cpu", "wall"


def padding_table(done: Done) -> Table:
    """What the rows are, and how much of a batch is padding."""
    columns = (
        *(Column("rows", 0), Column("tokens", 0), Column("median row", 0)),
        *(Column("longest", 0), Column("widths")),
        *(Column("padding, %", 1, 100.0), Column("with one width, %", 1, 100.0)),
    )
    rows = tuple(
        (
            *(turn["rows"], turn["tokens"], turn["median_length"], turn["longest"]),
            ", ".join(map(str, turn["widths"])),
            *(turn["padding"], turn["padding_of_one_width"]),
        )
        for turn in done.get(("padding", ""), [])
    )
    return Table(columns, rows, (PADDING,))


def start_table(done: Done) -> Table:
    """Where the time to the first step goes."""
    turns = done.get(("start", ""), [])
    columns = Column("from the start of the process"), Column("s", 2)
    columns += Column("all rounds"), Column("programs", 0)
    rows = []
    for part in (*PARTS, "total") if turns else ():
        took = [turn[part] for turn in turns]
        count = "programs" if part == "total" else f"{part}_programs"
        compiled = median(turn[count] for turn in turns)
        rows.append((PARTS_IN_WORDS[part], median(took), spread(took), compiled))
    return Table(columns, tuple(rows), (START,))
