"""One run: learn the files in order, and test all of them on the way."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxcl import adapters, metrics
from jaxcl.data import Task, load_tokenizer, number_tasks
from jaxcl.data.choices import Choices, read_choices
from jaxcl.data.records import digest_of, read_records
from jaxcl.data.widths import row_lengths
from jaxcl.errors import MissingFileError, require
from jaxcl.files import lock_folder, write_json
from jaxcl.finetune.config import (
    SETTINGS,
    Config,
    as_adapter,
    identity,
    named,
    noted,
    parts_of,
    read_settings,
    room_of,
)
from jaxcl.finetune.measure import (
    ANSWERS,
    GENERAL,
    Measurement,
    drawn,
    file_of,
    measurements,
    some_rows,
    words_of,
    write_lines,
)
from jaxcl.finetune.method import Setup, dtype_of, set_up
from jaxcl.finetune.tasks import TaskFile, Tested, joined, most_labels, read_tasks
from jaxcl.finetune.trained import LEARNERS, PROMPTS
from jaxcl.finetune.words import in_words_of_flags
from jaxcl.interop import read_config, save_adapter, save_pretrained
from jaxcl.interop.family import read_json
from jaxcl.models import DecoderConfig
from jaxcl.models.prompts import warn_beyond
from jaxcl.progress import progress
from jaxcl.training import Options, TrainResult, learn
from jaxcl.training.run_state import fingerprint
from jaxcl.typing import Params


class Job(NamedTuple):
    """Everything a run needs, loaded."""

    config: Config
    setup: Setup
    tokenizer: Any
    files: list[TaskFile]
    general: dict[str, Choices]
    tasks: list[Task]  # as they are learned: all at once with mtl
    options: Options
    widths: list[int]  # to which rows are padded
    weights: str  # fingerprint of those of the model


def load(config: Config) -> Job:
    """Load model and files; refuse what cannot be learned."""
    model = read_config(config.model)
    known = isinstance(model, DecoderConfig)
    other = f"{config.model} is an encoder; give a decoder, such as Llama"
    require(known, "--model", other)
    # Files first: what is wrong with them is said before anything slow.
    for flag, given in {"--tasks": config.tasks, "--general": config.general}.items():
        for one in named(flag, given):
            for path in parts_of(one):
                read_records(flag, path)
    with in_words_of_flags():
        tokenizer = load_tokenizer(config.model, vocab_size=model.vocab_size)
        files, widths = read_tasks(config, tokenizer)
    check_unchanged(config, [one.tested for one in files])
    with in_words_of_flags():
        general = read_questions(config, tokenizer)
    asked = [one.tested.prompts.tokens for one in files]
    check_context(config, model, [*asked, *(one.prompts for one in general.values())])
    rows = max(int(row_lengths(one.task.train).max()) for one in files)
    warn_beyond("--max-length", model, rows)
    key = jax.random.fold_in(jax.random.key(config.training.seed), 0)
    with in_words_of_flags():
        setup = set_up(config, key, most_labels(files))
    weights = fingerprint(setup.frozen or setup.trainable)
    check_same_weights(config, weights)
    tasks = [one.task for one in files]
    if config.method == "mtl":
        tasks = [joined(tasks)] if len(tasks) > 1 else tasks
    options = Options(
        num_steps=None,
        batch_size=config.training.batch_size,
        end_task_examples=end_rows(config),
        save_every=config.training.save_every,
        report_every=5,
        eval_tasks=config.testing.test_on,
        max_tasks=room_of(config),
    )
    return Job(
        config, setup, tokenizer, files, general, tasks, options, widths, weights
    )


def check_unchanged(config: Config, tests: list[Tested]) -> None:
    """Refuse files that are not those with which the run began."""
    held = read_settings(config.out)
    for one, before in zip(tests, held["tasks"] if held else (), strict=False):
        same = one.digest == before["sha256"]
        changed = f"the rows of {one.name} are not those with which the run began"
        remedy = "give them back, or another --out"
        require(same, "--tasks", f"{changed}; {remedy}")


def check_same_weights(config: Config, weights: str) -> None:
    """Refuse another model of the same name, before anything is noted of it."""
    held = read_settings(config.out) or {}
    changed = f"the weights of {config.model} are not those with which the run began"
    same = held.get("weights", weights) == weights
    require(same, "--model", f"{changed}; give these back, or another --out")


def check_context(config: Config, model: DecoderConfig, asked: list[Any]) -> None:
    """Refuse prompts that are too long for the model, before any step is made."""
    numbers, context = config.numbers, model.max_position_embeddings
    room = numbers.num_selected * numbers.prompt_length if config.method == "l2p" else 0
    longest = room + max((len(one) for part in asked for one in part), default=0)
    own = f", {room} of them learned by l2p," * bool(room)
    beyond = f"prompts of up to {longest} tokens{own}"
    if context is not None:
        known = f"{beyond} are too long for a model of {context}"
        remedy = f"give at most {context - room}, or shorter questions"
        require(longest <= context, "--max-length", f"{known}; {remedy}")


def end_rows(config: Config) -> int:
    """Rows of a task that its end needs: for importances, or to be kept."""
    numbers = config.numbers
    rows = {"ewc": numbers.fisher_rows, "gem": numbers.memory}
    return rows.get(config.method, 1)


def read_questions(
    config: Config, tokenizer: Any, *, as_noted: bool = False
) -> dict[str, Choices]:
    """Some questions of each file of general ability; as many as are noted of the set."""
    most, held = config.testing.general_rows, read_settings(config.out) or {}
    before = {one["name"]: one for one in held.get("general", ())}
    found = {}
    for one in named("--general", config.general):
        full = read_choices(one.path, tokenizer)
        known = before.get(one.name, {}) if as_noted else {}
        numbers = drawn(len(full.prompts), known.get("questions", most))
        found[one.name] = some_rows(full, numbers)
        count, digest = len(found[one.name].prompts), digest_of("--general", one.path)
        now = {"sha256": digest[:16], "questions": count}
        kept = {name: before.get(one.name, now).get(name, now[name]) for name in now}
        changed = f"the run began with other questions of {one.name}"
        remedy = f"give these {kept['questions']} back, or another NAME=FILE"
        require(kept == now, "--general", f"{changed}; {remedy}")
    return found


def is_finished(job: Job) -> bool:
    """Whether all tasks have been learned."""
    if read_settings(job.config.out) is None:
        return False
    from jaxcl.runs import learned  # with all that draws figures

    with suppress(MissingFileError):
        held = learned.read(job.config.out)
        return held.status == "done" and held.ended == len(job.tasks)
    return False


def run(
    job: Job, on_tested: Callable[[int, int, float], None] | None = None, **options: Any
) -> TrainResult:
    """Learn, with tests and models in the folder of the run; resume if it has begun.

    Args:
      job: loaded.
      on_tested: called after tests with the number of learners, of their rows together,
        and the seconds that they took.
      options: of :func:`jaxcl.training.learn`.
    """
    config, setup = job.config, job.setup
    out = config.out
    with lock_folder(out):  # that of another process is not to be rewritten
        write_settings(job)
        # Tasks that were added later are tested before they are learned, too.
        for name in _tested_before(config):
            at_task_end(job, 0, {name: setup.trainable}, lambda: False, on_tested)
    outputs = setup.outputs
    row_metric = metrics.with_frozen(lambda frozen: metrics.tokens(outputs(frozen)))
    evaluation = {}
    if config.method == "mtl" and len(job.files) > 1:
        every = number_tasks([one.task for one in job.files])
        evaluation = {task.name: task.test for task in every}
    result = learn(
        jax.random.fold_in(jax.random.key(config.training.seed), 1),
        setup.build,
        setup.trainable,
        job.tasks,
        job.options,
        folder=out,
        frozen=setup.frozen,
        metrics=row_metric,
        evaluation=evaluation,
        sharding=setup.sharding,
        metadata=identity(config),
        on_task_end=partial(at_task_end, job, on_tested=on_tested),
        quiet=False,  # lines in a log, too
        **options,
    )
    if result.status == "done":  # what is asked for the first time at its end
        at_task_end(job, len(job.tasks), result.learners, lambda: False)
    return result


def write_settings(job: Job) -> None:
    """Note what the run is, for those who go on with it."""
    config = job.config
    before = (read_settings(config.out) or {}).get("general", ())
    sets = {one["name"]: one for one in before}
    for one in named("--general", config.general):  # those not given now stay known
        sets[one.name] = {
            "name": one.name,
            "path": str(one.path.resolve()),
            "sha256": digest_of("--general", one.path)[:16],
            "questions": len(job.general[one.name].prompts),
        }
    held = {
        "model": str(config.model.resolve()),
        "weights": job.weights,
        "frozen": dtype_of(config),  # None: as in the files
        "settings": identity(config),
        "widths": job.widths,
        **noted(config),
        "tasks": [
            {
                "name": one.task.name,
                "path": str(file.path.resolve()),
                "sha256": one.tested.digest,
                "train": one.task.train.count,
                "test": one.task.test.count,
                "labels": one.tested.labels,
            }
            for one, file in zip(job.files, named("--tasks", config.tasks), strict=True)
        ],
        "general": [*sets.values()],
    }
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / SETTINGS, held)


# ------------------------------------------------------------------ at the end of a task


def at_task_end(
    job: Job,
    ended: int,
    learners: Mapping[str, Params],
    interrupted: Callable[[], bool],
    on_tested: Callable[[int, int, float], None] | None = None,
) -> None:
    """Save the learners and test them; files that are there already are kept."""
    if jax.process_index():
        return
    for name, learner in learners.items():
        if ended:
            save_learner(job, ended, name, learner)
    todo = [*_tests(job, ended, learners)]
    if not todo:
        return
    total = sum(test.count for _, _, test in todo)
    label = f"rows tested after {ended} of {len(job.tasks)} tasks"
    began = time.monotonic()
    with progress(total, label) as advance:
        for path, params, test in todo:
            note = path.stem.partition("-")[2]
            advance(0, note)  # the first rows wait for a program to be compiled
            more = lambda count, note=note: advance(count, note)
            lines = test.measure(params, interrupted=interrupted, advance=more)
            if lines is None:
                return
            write_lines(path, lines)
    if on_tested:
        on_tested(len(learners), total, time.monotonic() - began)


def _tested_before(config: Config) -> set[str]:
    """The learner in whose name the model itself was tested, once a task has ended.

    Where nothing was tested before, any learner will do.
    """
    saved = [path.name for path in (config.out / LEARNERS).glob("[0-9]*")]
    if not saved:
        return set()
    kinds = ANSWERS, GENERAL
    files = [path for kind in kinds for path in (config.out / kind).glob("000-*.jsonl")]
    names = {path.stem.rpartition("-")[2] for path in files}
    return names or {max(saved).partition("-")[2]}


def _tests(
    job: Job, ended: int, learners: Mapping[str, Params]
) -> Iterator[tuple[Path, Params, Measurement]]:
    """The file of each test that is still to do, the parameters, and the test."""
    config, setup = job.config, job.setup
    words = words_of(config, setup.config, job.tokenizer)
    files, general = tested_after(job, ended)
    tests = measurements(words, [one.tested.asked for one in files], general.items())
    for name, learner in learners.items():
        params = adapters.combine(learner, setup.frozen)
        for test in tests:
            path = file_of(config.out, test.kind, ended, test.name, name)
            if not path.exists():
                yield path, params, test
        if not ended:
            return  # all learners are the model itself


def tested_after(job: Job, ended: int) -> tuple[list[TaskFile], dict[str, Choices]]:
    """The tasks and the questions on which learners are tested after so many tasks."""
    testing, count = job.config.testing, len(job.files)
    if ended and testing.test_on == "seen" and job.config.method != "mtl":
        count = ended
    every = testing.general_every
    asked = ended in (0, len(job.tasks)) or (every and ended % every == 0)
    files = job.files[:count] if testing.answers else []
    return files, job.general if asked else {}


def save_learner(job: Job, ended: int, name: str, learner: Params) -> None:
    """Write a learner as other tools read it: an adapter of PEFT, or a model."""
    config, setup = job.config, job.setup
    home = config.out / LEARNERS
    place, kind = home / f"{ended:03d}-{name}", as_adapter(config)
    if place.exists():
        return
    partial_place = home / f".{place.name}"
    shutil.rmtree(partial_place, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    if kind == "full":
        given = {"source": config.model, "dtype": config_dtype(config)}
        save_pretrained(partial_place, setup.config, learner, **given)
    elif kind == "lora":
        params = adapters.combine(learner, setup.frozen)
        save_adapter(partial_place, params, base=str(config.model.resolve()))
    else:
        partial_place.mkdir()
        pool = {name: np.asarray(leaf) for name, leaf in learner["pool"].items()}
        save_file(pool, partial_place / PROMPTS)
    os.replace(partial_place, place)
    if kind == "full" and not config.testing.keep_models:
        for old in home.glob(f"[0-9][0-9][0-9]-{name}"):
            if int(old.name[:3]) < ended:
                shutil.rmtree(old)


def config_dtype(config: Config) -> str | None:
    """The dtype in which the files of the model are."""
    held = read_json("finetune", config.model / "config.json", "give a model")
    name = held.get("dtype") or held.get("torch_dtype")
    return name if name in ("float32", "bfloat16", "float16") else None
