"""The host loop: the same ``step`` and ``end_task``, for data that do not fit on a device.

Tasks of any kind and size are processed one batch at a time. The result is that of the
compiled stream of the same tasks, to float tolerance, because both take their rows and
keys from :mod:`jaxcl.training.batches`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import InputError, check_kind
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import first_rows, numbered, shapes_of, task_rows
from jaxcl.training.checkpoint import saving
from jaxcl.training.checkpoint_files import all_steps
from jaxcl.training.compiled import (
    Build,
    Metrics,
    Program,
    Rows,
    compile_program,
    shard,
)
from jaxcl.training.files import as_folder
from jaxcl.training.identity import (
    check_room,
    check_tasks_go_on,
    described_parts,
    identity,
)
from jaxcl.training.logging import bar, lines_so_far, metrics_file, tensorboard
from jaxcl.training.loop import Run, Status, walk_tasks
from jaxcl.training.options import Options, check_run, steps_of
from jaxcl.training.processes import (
    exit_together,
    interruptible,
    is_primary,
    lock_across_processes,
)
from jaxcl.training.results import (
    Results,
    are_new,
    empty_results,
    notes_of,
    recall,
    spent_so_far,
    warn_of_bad_scores,
    warn_of_bad_steps,
    warn_of_unlearned_tasks,
)
from jaxcl.training.run_state import (
    RunState,
    begin,
    evaluation_due,
    is_finished,
    latest_run_state,
    number_of,
    started_from,
    warn_if_finished,
)
from jaxcl.typing import Key, Params


class TrainResult(NamedTuple):
    """Where a run ended."""

    status: Status
    learners: dict[str, PyTree]  # what the method evaluates, the default first
    results: Results  # {metric: {learner: [T + 1, E]}}
    run_state: RunState
    loss: Float[np.ndarray, " T"]  # mean over the steps of each task; NaN if not begun
    seconds: float  # of all steps, without evaluations and checkpoints

    def matrix(
        self, metric: str | None = None, learner: str | None = None
    ) -> Float[np.ndarray, "T T"]:
        """One metric on task j after task i, without the start and further sets.

        Args:
          metric: the first one if absent.
          learner: the default one if absent.
        """
        learners = _chosen("metric", self.results, metric)
        found = _chosen("learner", learners, learner)
        return found[1:, : len(found) - 1]

    @property
    def params(self) -> PyTree:
        """The default learner."""
        return next(iter(self.learners.values()))


def _chosen(what: str, found: Mapping[str, Any], name: str | None) -> Any:
    """The entry of that name, or the first one."""
    if not found or (name is not None and name not in found):
        msg = (
            f"matrix: {what} must be one of {', '.join(found) or 'none'}, got {name!r}; "
            "learn(..., metrics=) measures further ones."
        )
        raise InputError(msg)
    return found[next(iter(found)) if name is None else name]


def learn(
    key: Key,
    build: Build,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    *,
    folder: str | Path | None,
    frozen: PyTree = (),
    metrics: Metrics = (),
    evaluation: Mapping[str, Dataset] | None = None,
    start: str | Path | None = None,
    fresh: Sequence[str] = (),
    sharding: ShardingPlan | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensorboard_folder: str | Path | None = None,
    quiet: bool | None = None,
    on_progress: Callable[[int, str], None] | None = None,
    on_report: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainResult:
    """Learn tasks in sequence; resume from the last checkpoint if there is one.

    A run that is killed at any moment and started again ends with the same bits as one
    that is not interrupted. SIGTERM and SIGINT end it with a checkpoint after the current
    step (with many processes, which have to agree, after the steps of the next report), or
    after the end of a task and the evaluation in progress.

    A stream may grow: the same call with more tasks at the end resumes from where the run
    ended. Parts of a method whose state has a row for each task (``episodic``) must have
    room for all from the start. What is asked for the first time, be it a new task's
    column, a metric or an evaluation set, is measured from there on, also for a run that
    had finished.

    Args:
      key: of the run; the only source of randomness.
      build: ``(frozen) -> method``, called while tracing, so that ``frozen`` is an argument
        of the program.
      params: initial parameters; not modified.
      tasks: in order; rows may differ in number from task to task, not in shape. Where
        all training rows have task 0, the default of ``as_batch``, tasks are numbered by
        their place in the stream, which ``start`` continues. A test or validation set
        without numbers gets the number of its training set.
      options: see :class:`Options`.
      folder: gets ``checkpoints/`` and ``metrics.jsonl``; created if absent. Use one folder
        per run; the result of a finished run there is returned, with a warning. None writes
        nothing.
      frozen: weights that are used but not trained. The checkpoints hold a fingerprint
        of them; a run with others does not resume.
      metrics: computed on test rows, such as :func:`jaxcl.metrics.classification`; no
        evaluation if absent.
      evaluation: data sets for evaluation only, by name; their rows need the numbers of
        the tasks whose heads they are for.
      start: folder of a run, or a checkpoint in it, ``FOLDER/checkpoints/NUMBER``, of the
        end of a task: learning begins with its full state in place of ``params``. Rows and
        keys are those of this run.
      fresh: parts of the state that are initialised instead of loaded from ``start``, by
        the field of :class:`~jaxcl.typing.MethodState`, such as ``("memory",)``.
      sharding: devices to use, see :mod:`jaxcl.sharding`; one if absent.
      metadata: identifies the run (method, rates, data, path of ``frozen``): a checkpoint
        with other metadata is refused, with the differences. Only these and what is named
        under Raises are compared.
      tensorboard_folder: also write scalars for TensorBoard.
      quiet: no progress; by default a bar is shown on a terminal only.
      on_progress: called with progress in place of a bar: steps, and a short text.
      on_report: called with each line of ``metrics.jsonl``, for other loggers. All have
        ``at`` (a number that grows) and ``task``; lines of steps ``step, loss, seconds,
        examples_per_second, not_finite`` and the metrics of the method, those of
        evaluations ``results`` ({metric: {learner: [values]}}), within a task also
        ``valid``, at its end ``columns`` (names of the values) and ``ended``.

    Returns:
      The status, the learners, the results ``{metric: {learner: [T + 1, E]}}`` (row 0
      before the first task; columns are tasks, then ``evaluation``; ``matrix()`` is the
      part of the tasks, for :func:`jaxcl.metrics.summary`), and the last position. A run
      that stopped because a step was not finite is ``diverged``; its last checkpoint is
      from before. Steps and scores that were not finite are warned about.

    Raises:
      ValueError: for an argument of another type, invalid options, a task whose rows
        differ in format from those of the first, a ``build``, metric or rule with other
        arguments or results, a mesh with other axes, ``metadata`` that JSON cannot hold, a
        folder in use by another process, or a checkpoint of another run: with another key,
        other tasks, other options that affect the result, other ``frozen`` weights, or
        other ``metadata``; or for checkpoints whose notes are missing.
      OSError: if the disk is full or the folder cannot be written; checkpoints are intact.
      ImportError: for a ``tensorboard_folder`` without ``tensorboardX``.

    Step, end of task and metrics are traced before the first step, so that errors of shape
    are raised early.

    Cost: per step that of the method's step. The next batches are read by a thread;
    every ``report_every`` steps the loop waits for their losses. While a checkpoint is
    written there is one more copy of the state. A further call of a process that traces
    to the same programs uses the compiled ones of the earlier call.
    """
    remedy = "give {name: dataset}"
    check_kind("learn", Mapping, remedy, optional=True, evaluation=evaluation)
    evaluation, measured = dict(evaluation or {}), bool(metrics)
    if fresh and start is None:
        msg = f"learn: fresh={fresh!r} is for a run that begins with start=, got none."
        raise InputError(msg)
    check_run(
        key,
        params,
        tasks,
        options,
        sharding,
        evaluation=evaluation,
        folder=folder,
        start=start,
        frozen=frozen,
        metadata=metadata,
        measured=measured,
    )
    function = partial(check_kind, "learn", Callable, "give a function", optional=True)
    function(on_report=on_report, on_progress=on_progress)
    check_kind("learn", bool, "True or False", optional=True, quiet=quiet)
    frozen = shard(sharding, frozen, "frozen/")
    program = _checked_program(
        key, build, params, tasks, options, frozen, metrics, evaluation, sharding
    )
    metadata = identity(key, options, frozen, metadata)
    sizes = len(tasks), len(evaluation)
    results = empty_results(program.metric_names, program.learner_names, *sizes)
    home = None if folder is None else as_folder("learn", folder)
    if tensorboard_folder is not None:
        tensorboard_folder = as_folder(
            "learn", tensorboard_folder, "tensorboard_folder"
        )
    with ExitStack() as stack:
        enter = stack.enter_context
        interrupted = enter(interruptible())
        if home is not None:
            enter(lock_across_processes(home))
        state, notes = program.start(params), {}
        if start is not None and not (home and all_steps(home / "checkpoints")):
            state = started_from(start, state, fresh)
        run_state = begin(state, options)
        if home is not None:
            place = home / "checkpoints"
            run_state, notes = latest_run_state(place, run_state, sharding, metadata)
        # Tasks that a run with start= has before its own have the numbers below `first`.
        first = int(run_state.state.progress.task) - int(run_state.task)
        tasks = numbered(tasks, first)
        described, sets = described_parts(tasks, evaluation, options)
        check_tasks_go_on(notes.get("tasks", ()), described, folder)
        check_room(notes, options, folder)
        recall(results, notes, sets)
        done = number_of(run_state, tasks, options) - evaluation_due(run_state)
        if run_state.step == 0 and are_new(results, notes, sets):
            run_state = run_state._replace(evaluated=run_state.task)
        spent = spent_so_far(notes, len(tasks))
        noted = lambda: notes_of(
            results, described, sets, notes, spent, options.max_tasks
        )
        write = on_report or (lambda line: None)
        save = lambda *given, **others: None
        if home is not None:
            lines = home / "metrics.jsonl", done, notes.get("lines", 0)
            kept = lines_so_far(*lines) if is_primary() else []
            if is_finished(run_state, tasks):  # its disk may be read-only
                warn_if_finished(home)
            else:
                save, write = _writers(
                    enter, home, kept, noted, options, metadata, write
                )
        run = Run(
            key,
            tasks,
            evaluation,
            options,
            sharding,
            program,
            results,
            spent,
            np.zeros((len(tasks) + 1, sum(sizes)), bool),
            interrupted,
            save,
            write,
            enter(tensorboard(tensorboard_folder if is_primary() else None)),
            on_progress or enter(_bar(run_state, tasks, options, quiet)),
        )
        with exit_together():
            run_state, status = walk_tasks(run, run_state)
    policy, diverged = options.on_non_finite, status == "diverged"
    warn_of_bad_steps(run_state, tasks, policy, diverged=diverged)
    names = [*(task.name for task in tasks), *evaluation]
    warn_of_bad_scores(results, names, run.measured)
    warn_of_unlearned_tasks(run_state, spent, results, names)
    mean = spent.loss / np.where(spent.steps, spent.steps, np.nan)
    learners, seconds = program.read(run_state.state), float(spent.seconds[0])
    return TrainResult(status, learners, results, run_state, mean, seconds)


def _checked_program(
    key, build, params, tasks, options, frozen, metrics, evaluation, sharding
) -> Program:
    """The program of a run, with all functions traced in their shapes."""
    measured = bool(metrics)
    first = first_rows(tasks, evaluation if measured else {}, measured=measured)
    at_end = task_rows(tasks, options.end_task_examples, sharding)
    rows = Rows(
        first.train,
        shapes_of(first.train, options.batch_size, sharding),
        shapes_of(first.train, at_end, sharding),
        shapes_of(first.test, options.eval_batch_size, sharding),
    )
    program = compile_program(
        build,
        params,
        frozen,
        rows,
        key=key,
        metrics=metrics,
        on_non_finite=options.on_non_finite,
        sharding=sharding,
    )
    stopping = options.early_stopping
    if stopping is not None and stopping.metric not in program.metric_names:
        msg = (
            f"learn: early_stopping watches {stopping.metric!r}, got metrics "
            f"{list(program.metric_names)}; name one of them."
        )
        raise InputError(msg)
    return program


def _writers(enter, home, kept, noted, options, metadata, report):
    """The functions that save a checkpoint, and write a line of metrics."""
    later = enter(saving(home / "checkpoints", keep=options.keep, metadata=metadata))
    num_lines = len(kept)

    def save(step, tree, *, preserve):
        notes = noted() | {"lines": num_lines}
        later(step, tree, preserve=preserve, notes=notes)

    if not is_primary():
        return save, report
    append = enter(metrics_file(home / "metrics.jsonl", kept))

    def write(line):
        nonlocal num_lines
        append(line)
        num_lines += 1
        report(line)

    return save, write


def _bar(run_state, tasks, options, quiet):
    """The progress of all steps."""
    quiet = not (is_primary() and sys.stderr.isatty()) if quiet is None else quiet
    lengths = [steps_of(task, options) for task in tasks]
    done = sum(lengths[: run_state.task]) + int(run_state.step)
    return bar(sum(lengths), done=done, quiet=quiet)
