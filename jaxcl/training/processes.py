"""Runs of many processes: their start, agreement, and common end."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcl.errors import InputError


def start_processes(
    address: str | None = None,
    *,
    count: int | None = None,
    index: int | None = None,
    patience: int = 60,
) -> None:
    """Join the processes of a run. Call it before anything else of JAX, once.

    Args:
      address: ``host:port`` of process 0; found by JAX on Slurm, Open MPI, Kubernetes and
        TPU pods if absent.
      count: how many processes there are; likewise.
      index: number of this one, from 0; likewise.
      patience: seconds without a heartbeat after which a process counts as dead, and all
        others end.

    Raises:
      ValueError: if only some of the three are given, or ``index`` is out of range.
    """
    given = [value is not None for value in (address, count, index)]
    if any(given) and not all(given):
        msg = (
            "start_processes: give address, count and index, or none of them where the "
            f"cluster tells, got {address}, {count} and {index}."
        )
        raise InputError(msg)
    if count is not None and index is not None and not 0 <= index < count:
        msg = f"start_processes: index must be from 0 to {count - 1}, got {index}."
        raise InputError(msg)
    jax.distributed.initialize(
        address,
        num_processes=count,
        process_id=index,
        heartbeat_timeout_seconds=patience,
        shutdown_timeout_seconds=patience,
    )


@contextmanager
def exit_together() -> Iterator[None]:
    """Explain errors of the network in a run of many processes.

    Raises:
      RuntimeError: in place of JAX's own, which is about sockets.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, TimeoutError) as error:
        own = str(error).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"))
        if own or jax.process_count() == 1:
            raise
        msg = (
            f"process {jax.process_index()} of {jax.process_count()}: another process "
            "ended or cannot be reached. Start all of them again: the run goes on from "
            "its last checkpoint, also with another number of processes."
        )
        raise RuntimeError(msg) from error


def is_primary() -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0


def any_across_processes(*flags: bool) -> tuple[bool, ...]:
    """The logical or of each flag over processes.

    All processes must call it at the same point. Cost: one small exchange.
    """
    if jax.process_count() == 1:
        return flags
    gathered = multihost_utils.process_allgather(np.array(flags))
    return tuple(bool(flag) for flag in np.any(gathered, axis=0))


__all__ = ["any_across_processes", "exit_together", "is_primary", "start_processes"]
