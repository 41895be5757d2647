"""The host loop: the same ``step`` and ``end_task``, for data that do not fit on a device.

Tasks of any kind and size are processed one batch at a time. The result is that of the
compiled stream of the same tasks, to float tolerance, because both take their rows and
keys from :mod:`jaxcl.training.batches`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from jaxcl.data.dataset import Dataset, Task
from jaxcl.data.numbering import number_tasks
from jaxcl.errors import check_kind, require, warn
from jaxcl.files import as_folder, as_metadata
from jaxcl.progress import RESUMED
from jaxcl.sharding import ShardingPlan
from jaxcl.signals import interruptible
from jaxcl.training.batches import (
    first_rows,
    rows_to_test,
    shapes_of,
    task_rows,
)
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
from jaxcl.training.logging import bar, lines_so_far, metrics_file, tensorboard
from jaxcl.training.loop import Run, Status, walk_tasks
from jaxcl.training.options import Options, check_run
from jaxcl.training.processes import (
    exit_together,
    is_primary,
    lock_across_processes,
)
from jaxcl.training.results import (
    Results,
    begin_records,
    check_tasks_go_on,
    notes_of,
    warn_of_bad_scores,
    warn_of_bad_steps,
    warn_of_unlearned_tasks,
)
from jaxcl.training.run_state import (
    RunState,
    begin,
    evaluation_due,
    identity,
    latest_run_state,
    position,
    started_from,
    steps_done,
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
        found: Any = self.results
        for what, name in {"metric": metric, "learner": learner}.items():
            require(
                name in found or (name is None and found),
                "matrix",
                f"{what} must be one of {', '.join(found) or 'none'}, got {name!r}; "
                "learn(..., metrics=) measures further ones",
            )
            found = found[next(iter(found)) if name is None else name]
        return found[1:, : len(found) - 1]

    @property
    def params(self) -> PyTree:
        """The default learner."""
        return next(iter(self.learners.values()))


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
    on_task_end: Callable[[int, Mapping[str, PyTree], Callable[[], bool]], None]
    | None = None,
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
        the tasks whose heads they are for, such as by :func:`jaxcl.data.number_tasks`.
      start: folder of a run, or a checkpoint in it, ``FOLDER/checkpoints/NUMBER``, of the
        end of a task: learning begins with its full state in place of ``params``. Rows and
        keys are those of this run.
      fresh: parts of the state that are initialised instead of loaded from ``start``, by
        the field of :class:`~jaxcl.typing.MethodState`, such as ``("memory",)``.
      sharding: devices to use, see :mod:`jaxcl.sharding`; one if absent.
      metadata: identifies the run (method, rates, data, path of ``frozen``), for JSON: a
        checkpoint with other metadata is refused, with the differences. Without, a folder
        resumes with any rates and methods whose state has the same form.
      tensorboard_folder: also write scalars for TensorBoard, by ``tensorboardX``.
      quiet: no progress; by default a bar is shown on a terminal only.
      on_progress: called with progress in place of a bar: steps, and a short text; first
        with the steps of earlier processes and ``"resumed"``, if there are any.
      on_report: called with each line of ``metrics.jsonl``, for other loggers. All have
        ``at`` (a number that grows) and ``task``; lines of steps ``step, loss, seconds,
        examples_per_second, not_finite`` and the metrics of the method, those of
        evaluations ``results`` ({metric: {learner: [values]}}), within a task also
        ``valid`` and ``sets`` (by name, each {metric: {learner: value}}), at its end
        ``columns`` (names of the values) and ``ended``.
      on_task_end: called with the number of tasks that have ended, the learners, and a
        function that says whether a signal asks for the end: before the first task, and
        after each one before it is evaluated. For what takes long or goes to files of its
        own, such as generated answers. After a signal or a kill it is called again: what
        is there already should be kept. A run that had finished does not call it.

    Returns:
      The status, the learners, the results ``{metric: {learner: [T + 1, E]}}`` (row 0
      before the first task; columns are tasks, then ``evaluation``; ``matrix()`` is the
      part of the tasks, for :func:`jaxcl.metrics.summary`), and the last position. A run
      that stopped because a step was not finite is ``diverged``; its last checkpoint is
      from before. Steps and scores that were not finite are warned about.

    Raises:
      ValueError: before the first step, in one line: for options and tasks that cannot be
        learned, rows that differ in format between tasks or do not fit the network, parts
        that change the form of their state, a folder in use by another process, and a
        checkpoint of another run: another key, tasks, options that affect the result,
        ``frozen`` or ``metadata``.
      OSError: if the disk is full or the folder cannot be written; checkpoints are intact.

    Cost: per step that of the method's step. The next batches are read by a thread;
    every ``report_every`` steps the loop waits for their losses. While a checkpoint is
    written there is one more copy of the state. A further call of a process that traces
    to the same programs uses the compiled ones of the earlier call.
    """
    remedy = "give {name: dataset}"
    check_kind("learn", Mapping, remedy, optional=True, evaluation=evaluation)
    tasks, evaluation = list(tasks), dict(evaluation or {})
    alone = f"fresh={fresh!r} is for a run that begins with start=, got none"
    require(start is not None or not fresh, "learn", alone)
    given = key, params, tasks, options, sharding, evaluation
    lengths = check_run(*given, measured=bool(metrics))
    tasks = [
        task._replace(num_steps=length, num_epochs=None)
        for task, length in zip(tasks, lengths, strict=True)
    ]
    metadata = as_metadata("learn", metadata)
    home = None if folder is None else as_folder("learn", folder)
    start = None if start is None else as_folder("learn", start, "start")
    frozen = shard(sharding, frozen, "frozen/")
    program = program_of(
        key, build, params, tasks, options, frozen, metrics, evaluation, sharding
    )
    named, metadata = bool(metadata), identity(key, options, frozen, metadata)
    with ExitStack() as stack:
        enter = stack.enter_context
        interrupted = enter(interruptible())
        if home is not None:
            enter(lock_across_processes(home))
        state, place = program.start(params), home and home / "checkpoints"
        if start is not None and not (place and all_steps(place)):
            state = started_from(start, state, fresh)
        begun = begin(state, options)
        run_state, notes = latest_run_state(place, begun, sharding, metadata)
        # Tasks that a run with start= has before its own have the numbers below `first`.
        first = int(run_state.state.progress.task) - int(run_state.task)
        tasks = number_tasks(tasks, first, who="learn")
        records, complete = begin_records(
            program, tasks, evaluation, notes, options.max_tasks
        )
        check_tasks_go_on(records, folder)
        done = position(run_state, tasks) - evaluation_due(run_state)
        if run_state.step == 0 and not complete:
            run_state = run_state._replace(evaluated=run_state.task)
        finished = run_state.task == len(tasks) and not evaluation_due(run_state)
        keep = enter, home, records, options, metadata, done
        save, write = _writers(*keep, on_report or (lambda line: None), finished)
        scalar = enter(tensorboard(tensorboard_folder if is_primary() else None))
        quiet = not (is_primary() and sys.stderr.isatty()) if quiet is None else quiet
        run = Run(
            key,
            tasks,
            evaluation,
            options,
            sharding,
            program,
            records,
            interrupted,
            save,
            write,
            scalar,
            on_progress or enter(bar(sum(lengths), quiet=quiet)),
            on_task_end,
        )
        if run_state.task or run_state.step:
            run.advance(steps_done(run_state, tasks), RESUMED)
        if not (finished or on_progress):
            run.advance(0, "compiling")
        with exit_together():
            run_state, status = walk_tasks(run, run_state)
    if finished and home is not None:
        warn(
            f"learn: the run in {home} had finished; its result is returned and nothing "
            "is learned. For another run give another folder, for a longer one more tasks."
            + (not named)
            * " Rates and method are compared by metadata= only, none given."
        )
    return _result_of(run, run_state, status, home)


def _result_of(
    run: Run, run_state: RunState, status: Status, home: Path | None
) -> TrainResult:
    """What a run returns, with warnings of what was not finite or not learned."""
    tasks, results, spent = run.tasks, run.records.results, run.records.spent
    names = [*(task.name for task in tasks), *run.evaluation]
    policy, diverged = run.options.on_non_finite, status == "diverged"
    warn_of_bad_steps(run_state, tasks, policy, diverged=diverged, place=home)
    warn_of_bad_scores(run.records, names)
    warn_of_unlearned_tasks(run_state, spent, results, names)
    mean = spent.loss / np.where(spent.steps, spent.steps, np.nan)
    learners, seconds = run.program.read(run_state.state), float(spent.seconds[0])
    return TrainResult(status, learners, results, run_state, mean, seconds)


def program_of(
    key, build, params, tasks, options, frozen, metrics, evaluation, sharding
) -> Program:
    """The program of a run, with all functions traced in their shapes."""
    measured = bool(metrics)
    train, test = first_rows(tasks, evaluation, measured=measured)
    at_end = task_rows(tasks, options.end_task_examples, sharding)
    rows = Rows(
        train,
        shapes_of(train, options.batch_size, sharding),
        shapes_of(train, at_end, sharding),
        shapes_of(
            test, rows_to_test(test, options.eval_batch_size, sharding), sharding
        ),
        f"task {tasks[0].name!r}",
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
    watched = options.early_stopping and options.early_stopping.metric
    names = program.metric_names
    unknown = f"early_stopping watches {watched!r}, got metrics {list(names)}"
    require(
        watched is None or watched in names, "learn", f"{unknown}; name one of them"
    )
    return program


def _writers(enter, home, records, options, metadata, done, report, finished):
    """The functions that save a checkpoint, and write a line of metrics."""
    nothing = lambda *given, **others: None
    if home is None:
        return nothing, report
    file, num_lines = home / "metrics.jsonl", records.earlier.get("lines", 0)
    kept = lines_so_far(file, done, num_lines) if is_primary() else []
    if finished:  # its disk may be read-only
        return nothing, report
    later = enter(saving(home / "checkpoints", keep=options.keep, metadata=metadata))
    num_lines = len(kept)

    def save(step, tree, *, preserve):
        notes = notes_of(records) | {"lines": num_lines}
        later(step, tree, preserve=preserve, notes=notes)

    if not is_primary():
        return save, report
    append = enter(metrics_file(file, kept))

    def write(line):
        nonlocal num_lines
        append(line)
        num_lines += 1
        report(line)

    return save, write
