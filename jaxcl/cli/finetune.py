"""``jaxcl finetune``: from its command line to a run and its page."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import tyro

from jaxcl.errors import InputError, require
from jaxcl.finetune.checks import check
from jaxcl.finetune.config import Config, Demo, LoRA, Testing, Text, Training
from jaxcl.finetune.words import without_effect
from jaxcl.progress import progress
from jaxcl.runs.command import refusing, tell_end
from jaxcl.signals import ignore_more, terminable


@refusing
def main(argv: Sequence[str]) -> int:
    """``jaxcl finetune``; the exit code."""
    config = parse(argv)
    with plain_warnings(), terminable():
        try:
            if config.demo != "no":
                config = with_demo_files(config)
            check(config)
            if unused := without_effect(config):
                print(f"warning: without effect: {', '.join(unused)}", file=sys.stderr)
            with compiled_once():
                return start(config)
        except KeyboardInterrupt as error:
            ignore_more()
            return tell_end(error, config.out)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as lines, without the place in the code, which users did not write."""
    with warnings.catch_warnings():
        finished = "had finished; its result is returned"  # said in other words
        warnings.filterwarnings("ignore", f".*{finished}")
        show = lambda message, *given: print(f"warning: {message}", file=sys.stderr)
        warnings.showwarning = show
        yield


def parse(argv: Sequence[str]) -> Config:
    """The settings of a command line; tyro ends the process for words it does not know."""
    words = [part for word in argv for part in _split_demo(word)]
    flags = {word.partition("=")[0] for word in words}
    wanted = [flag for flag in ("--model", "--tasks", "--out") if flag not in flags]
    if wanted and not flags & {"--demo", "--help", "-h"}:
        missing = f"{wanted[0]}: expected --model FOLDER --tasks FILE ... --out FOLDER"
        ways = "see --help, or try --demo, which needs none of them"
        msg = f"{missing}, got no {' and no '.join(wanted)}; {ways}."
        raise InputError(msg)
    default: dict[str, Any] = {}
    if "--demo" in words:
        place = words.index("--demo") + 1
        if words[place : place + 1] not in ([name] for name in get_args(Demo)):
            words.insert(place, "small")
        if words[place] != "no":
            own = "brings its own --model and --tasks; leave them out"
            require(not flags & {"--model", "--tasks"}, "--demo", own)
            default["default"] = demo_settings(words[place])
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[Config]],
        prog="jaxcl finetune",
        args=words,
        description=Config.__doc__,
        **default,
    )


def _split_demo(word: str) -> list[str]:
    """``--demo=small`` as two words."""
    return word.split("=", 1) if word.startswith("--demo=") else [word]


def demo_settings(name: str) -> Config:
    """The settings of a demonstration, which flags change."""
    if name == "smollm2":
        return Config(
            model=Path(name),
            tasks=(),
            out=Path("finetune-demo-smollm2"),
            training=Training(steps=30, learning_rate=1e-3),
            text=Text(max_length=128),
            testing=Testing(max_new_tokens=8, test_on="seen", test_rows=20),
        )
    return Config(
        model=Path(name),
        tasks=(),
        out=Path("finetune-demo"),
        training=Training(steps=150, batch_size=16, learning_rate=4e-3),
        text=Text(max_length=128),
        lora=LoRA(rank=16, alpha=32.0),
        testing=Testing(max_new_tokens=8, test_on="seen"),
    )


def with_demo_files(config: Config) -> Config:
    """The settings with the files of the demonstration, made beside the run."""
    from jaxcl.finetune.demo import demo_files

    out = Path(os.path.abspath(config.out))  # "." has no name
    home = out.parent / f"{out.name}-files"
    with progress(100, "percent of the model and the files") as advance:
        made = demo_files(config.demo, home, advance)
    print(f"model and files of the demonstration: {home}")
    return dataclasses.replace(
        config,
        model=made.model,
        tasks=tuple(map(str, made.tasks)),
        general=config.general or tuple(map(str, made.general)),
    )


@contextmanager
def compiled_once() -> Iterator[None]:
    """Keep compiled programs for this process: the plan compiles a step, too.

    A folder that the user has set serves as it is.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        yield
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as place:
        compilation_cache.set_cache_dir(place)
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()


def start(config: Config) -> int:
    """Plan, run and report; the exit code."""
    from jaxcl.finetune import run  # imports JAX: only for settings that are good
    from jaxcl.finetune.plan import Clock, plan, remedies, say

    note = lambda text: print(text, flush=True)
    try:
        note(f"reading {config.model} and the files")
        job = run.load(config)
        if run.is_finished(job):
            rest = "making its page again"
            rest = "nothing is left to learn" if config.dry_run else rest
            print(f"{config.out} is finished; {rest}.")
        else:
            note("compiling a step, for the plan")
            say(plan(job, timed=config.dry_run))
        if config.dry_run:
            return 0
        clock = Clock(job)
        result = run.run(job, clock.tested, on_report=clock.note)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        msg = f"--batch-size: out of memory; try {remedies(config)}."
        raise InputError(msg) from error
    if result.status == "interrupted":
        raise KeyboardInterrupt
    from jaxcl.finetune.report import write_page  # with all that draws figures

    write_page(config.out)
    if result.status == "diverged":
        task = job.tasks[int(result.run_state.task)].name
        step = f"step {int(result.run_state.step)} of {task}"
        lower = "lower --learning-rate, and give another --out"
        print(f"error: the loss was not finite by {step}; {lower}.", file=sys.stderr)
        return 1
    return 0
