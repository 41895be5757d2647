"""Run a battery: one input after another, timed, each outcome counted."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.errors import InputError

#: Writes one damaged input into an empty folder and returns the call that uses it.
Make = Callable[[np.random.Generator, Path], Callable[[], Any]]

LIMIT = 5.0  # seconds for one input
KEPT = 20  # failures in a summary


class HungError(BaseException):
    """An input took too long; no handler of exceptions stops it."""


@contextmanager
def time_limit(seconds: float):
    """Raise HungError in the main thread after so many seconds."""

    def ring(*_):
        raise HungError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(call: Callable[[], Any], limit: float = LIMIT) -> tuple[str, str]:
    """What became of one input: used, refused, hang or failed, and the reason."""
    try:
        with time_limit(limit), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
        for warning in seen:
            if issubclass(warning.category, RuntimeWarning):  # overflows, divisions
                return "failed", f"RuntimeWarning: {warning.message}"
    except InputError as error:
        lines = str(error).splitlines()
        return ("refused", "") if len(lines) == 1 else ("failed", f"lines: {lines}")
    except HungError:
        return "hang", f"over {limit} s"
    except BaseException as error:  # all of them are failures, SystemExit too
        return "failed", f"{type(error).__name__}: {error}"[:300]
    return "used", ""


def make_input(makes: Mapping[str, Make], seed: int, number: int, folder: Path):
    """Input ``number`` of a battery, in an emptied folder: its kind, and the call."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, number])
    kind = list(makes)[number % len(makes)]
    return kind, makes[kind](rng, folder)


def run_battery(
    name: str, makes: Mapping[str, Make], count: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Try ``count`` inputs, the kinds in turn, and summarise what became of them."""
    counts = dict.fromkeys(("used", "refused", "failed", "hang"), 0)
    kinds: dict[str, dict[str, int]] = {kind: dict(counts) for kind in makes}
    failures, slowest, began = [], 0.0, time.monotonic()
    for number in range(count):
        kind, call = make_input(makes, seed, number, folder / "input")
        start = time.monotonic()
        outcome, reason = outcome_of(call)
        slowest = max(slowest, time.monotonic() - start)
        kinds[kind][outcome] += 1
        counts[outcome] += 1
        if outcome in ("failed", "hang") and len(failures) < KEPT:
            failures.append({"number": number, "kind": kind, "reason": reason})
    return {
        "battery": name,
        "seed": seed,
        "inputs": count,
        **counts,
        "kinds": kinds,
        "slowest": round(slowest, 3),
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
    }


def main(name: str, makes: Mapping[str, Make]) -> None:
    """The command line of a battery; the exit status is 1 if an input failed."""
    parser = argparse.ArgumentParser(description=f"damaged {name}")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input to try")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.only is not None:
            kind, call = make_input(
                makes, given.seed, given.only, Path(place) / "input"
            )
            print(kind, [path.read_bytes()[:500] for path in Path(place).rglob("*.*")])
            try:
                print(call())
            except InputError:
                traceback.print_exc()
            return
        summary = run_battery(name, makes, given.count, given.seed, Path(place))
    print(json.dumps(summary))
    sys.exit(bool(summary["failures"]))
