"""Every arm is a run of ``jaxcl finetune``; a line of results for each learner."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.finetune.config import NUMBERS, ORDERS, TEXTS, Config
from experiments.finetune.tasks import GENERAL, write_questions, write_tasks
from jaxcl.files import write_text
from jaxcl.finetune import config as settings
from jaxcl.finetune import run as finetuning
from jaxcl.finetune.checks import check
from jaxcl.finetune.measure import ANSWERS, file_of, lines_of, read_tests
from jaxcl.finetune.measure import GENERAL as GENERAL_TESTS
from jaxcl.runs.folder import RunFolder, append, finished
from jaxcl.runs.trials import Trial, result_line

#: What the learners of a run are called in the results. Before the first task all are the
#: model itself, which is tested once, in the name of the first one.
LEARNERS = {
    "wise-ft": {"interpolated": "wise-ft", "params": "seq"},
    "ilora": {"slow": "ilora, slow", "fast": "ilora, fast"},
}


class Planned(NamedTuple):
    """One run, and where it goes."""

    arm: str
    order: str
    seed: int
    out: Path


def run(config: Config, folder: RunFolder) -> None:
    """Do every run that is not in ``results.jsonl`` yet."""
    tasks = write_tasks(config, folder.path / "data")
    general = write_questions(config, folder.path / "data")
    done = finished(folder)
    for planned in plans(config, folder.path / "runs"):
        wanted = [trial.run for trial, _ in trials(config, planned)]
        if {*wanted} <= done:
            continue
        asked = as_settings(config, planned, tasks, general)
        check(asked)
        job = finetuning.load(asked)
        finetuning.write_settings(job)  # by which the folder is known as a run's
        share_before(planned, folder.path / "runs", job)
        result = finetuning.run(job)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        append(
            folder,
            [
                line_of(config, trial, learner, planned, result)
                for trial, learner in trials(config, planned)
            ],
        )


def share_before(planned: Planned, home: Path, job: finetuning.Job) -> None:
    """Copy the tests before the first task from any run: the model is the same in all."""
    first = next(iter(learners_of(planned.arm)))
    names = {ANSWERS: [one.task.name for one in job.files], GENERAL_TESTS: GENERAL}
    for kind, known in names.items():
        for name in known:
            own = file_of(planned.out, kind, 0, name, first)
            others = sorted(home.glob(f"*/{kind}/000-{name}-*.jsonl"))
            if others and not own.exists():
                write_text(own, others[0].read_text(encoding="utf-8"))


def plans(config: Config, home: Path) -> Iterator[Planned]:
    """All runs, seed by seed, so that what is cut short compares."""
    for seed in range(config.seeds):
        for order in config.orders:
            for arm in config.arms:
                if arm == "mtl" and order != config.orders[0]:
                    continue  # all tasks at once have no order
                name = f"{arm}-{order.partition(' ')[0]}-{seed}"
                yield Planned(arm, order, seed, home / name)


def trials(config: Config, planned: Planned) -> Iterator[tuple[Trial, str]]:
    """The trial and the learner of each line of a run."""
    for learner, arm in learners_of(planned.arm).items():
        numbers = NUMBERS[arm.partition(",")[0]]
        hyper = {name: getattr(config, name) for name in numbers}
        yield Trial(planned.order, arm, hyper, planned.seed), learner


def learners_of(arm: str) -> dict[str, str]:
    """The arms of the results by learners of a run."""
    return LEARNERS.get(arm, {"params": arm})


def as_settings(
    config: Config,
    planned: Planned,
    tasks: dict[str, Path],
    general: dict[str, Path],
) -> settings.Config:
    """The settings of ``jaxcl finetune`` for a run."""
    arm = planned.arm
    order = ORDERS[planned.order]
    names = order.tasks[: config.num_tasks]
    strength = {"ewc": config.strength, "ilora": config.distance}.get(arm)
    return settings.Config(
        model=Path(config.model),
        tasks=tuple(f"{name}={tasks[name]}" for name in names),
        out=planned.out,
        method="er" if arm == "sam-er" else arm,  # pyright: ignore
        gradient="sam" if arm == "sam-er" else "plain",
        general=tuple(f"{name}={general[name]}" for name in GENERAL),
        training=settings.Training(
            steps=config.num_steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            schedule="constant",
            warmup=0.1,
            seed=1000 * config.seed + planned.seed,
        ),
        # Without the chat template, whose own tokens would be a third of a short row.
        text=settings.Text(max_length=order.max_length, chat=False, join=" "),
        lora=settings.LoRA(rank=config.rank),
        numbers=settings.Numbers(
            memory=config.capacity,
            replay=config.replay_size,
            strength=strength,
            decay=config.decay,
            rho=config.rho,
            mix=config.mix,
            fisher_rows=64,
        ),
        testing=settings.Testing(
            test_rows=config.test_rows,
            test_on=config.test_on,
            max_new_tokens=order.max_new_tokens,
            general_rows=config.general_rows,
        ),
    )


def line_of(
    config: Config, trial: Trial, learner: str, planned: Planned, result: Any
) -> dict[str, Any]:
    """What ``results.jsonl`` keeps of a learner."""
    names = ORDERS[planned.order].tasks[: config.num_tasks]
    together = planned.arm == "mtl"
    ended = 1 if together else len(names)
    answers = read_tests(planned.out, ANSWERS, names, ended)
    general = read_tests(planned.out, GENERAL_TESTS, GENERAL, ended)
    bad = int(result.run_state.task) if result.status == "diverged" else None
    # With few rows a task may have no labels to choose among.
    blank = np.full((ended + 1, len(names)), np.nan)
    exact, texts, choice = (
        answers.get(metric, {}).get(learner, blank)
        for metric in ("exact_match", "rouge_l", "choice_accuracy")
    )
    scores = np.where([name in TEXTS for name in names], texts, exact)
    # Joint training has one row: it stands for the end of every task.
    repeated = len(names) if together else 1
    after, chosen = (np.repeat(m[1:], repeated, axis=0) for m in (scores, choice))
    # A run that diverged may lack tests of all its learners but the first.
    unknown = np.full((ended + 1, len(GENERAL)), np.nan)
    own = general.get("choice_accuracy", {}).get(learner, unknown)
    finite = np.array([bad is None or task < bad for task in range(len(names))])
    tidy = lambda values: np.round(values, 4).tolist()
    plain = lambda matrix: [
        [None if np.isnan(value) else round(float(value), 4) for value in row]
        for row in matrix
    ]
    return result_line(
        trial,
        finite,
        seconds=result.seconds,
        accuracy=tidy(np.diag(after)),
        final=tidy(after[-1]),
        matrix=plain(after),
        tasks=list(names),
        before=tidy(scores[0]),
        choice=plain(chosen),
        choice_before=tidy(choice[0]),
        general={name: tidy(own[[0, -1], place]) for place, name in enumerate(GENERAL)},
        general_right=right_of(planned, learner, ended),
        loss=tidy(np.repeat(result.loss, len(names) if together else 1, axis=0)),
    )


def right_of(planned: Planned, learner: str, ended: int) -> dict[str, list[str]]:
    """Which questions of each set were right before and at the end: ``"0110..."``."""
    first = next(iter(learners_of(planned.arm)))
    tests = ((0, first), (ended, learner))
    found = {}
    for name in GENERAL:
        files = (file_of(planned.out, GENERAL_TESTS, n, name, own) for n, own in tests)
        found[name] = [
            "".join(str(int(line["choice_accuracy"])) for line in lines_of(path))
            for path in files
        ]
    return found
