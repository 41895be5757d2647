"""Runs of many processes: start, agreement, locks, and the end."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcl.errors import InputError, WriteError, require
from jaxcl.files import lock_folder
from jaxcl.training.checkpoint_files import begin_folder


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
        others end with a message.
    """
    inside = index is None or count is None or 0 <= index < count
    beyond = f"index must be from 0 to {(count or 1) - 1}, got {index}"
    require(inside, "start_processes", beyond)
    jax.distributed.initialize(
        address,
        num_processes=count,
        process_id=index,
        heartbeat_timeout_seconds=patience,
        shutdown_timeout_seconds=patience,
    )
    explain_abort()


def explain_abort() -> None:
    """Let this process end with a sentence where JAX would abort it.

    When a process of a run ends, JAX aborts the others from a thread of its own, without a
    Python exception. Its callback for this cannot be called (``std::bad_cast`` on JAX
    0.10), and Python's handlers of signals wait for the main thread, which waits for the
    network. So the handler is one of C that calls back.
    """
    if os.name != "posix":
        return

    def end(number):
        del number
        os.write(2, f"\n{_PEER_ENDED}\n".encode())
        os._exit(1)

    library, handler = ctypes.CDLL(None), ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    library.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _HANDLERS.append(handler)


_HANDLERS: list[Any] = []  # C has no reference to what it calls


_PEER_ENDED = (
    "another process ended or cannot be reached. Start all of them again: the run goes on "
    "from its last checkpoint, also with another number of processes."
)


@contextmanager
def exit_together() -> Iterator[None]:
    """Explain errors of the network: a RuntimeError in place of JAX's about sockets."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, TimeoutError) as error:
        # Errors of a collective are ValueErrors where they are raised by the call.
        other = isinstance(error, ValueError) and not str(error).startswith(_NETWORK)
        own = str(error).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"))
        if own or other or jax.process_count() == 1:
            raise
        msg = f"process {jax.process_index()} of {jax.process_count()}: {_PEER_ENDED}"
        raise RuntimeError(msg) from error


_NETWORK = tuple(
    f"{kind}: "
    for kind in ("UNKNOWN", "UNAVAILABLE", "INTERNAL", "ABORTED", "DEADLINE_EXCEEDED")
)


def is_primary() -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0


def any_across_processes(*flags: bool) -> tuple[bool, ...]:
    """The logical or of each flag over processes, which call it at the same point."""
    if jax.process_count() == 1:
        return flags
    gathered = multihost_utils.process_allgather(np.array(flags))
    return tuple(bool(flag) for flag in np.any(gathered, axis=0))


@contextmanager
def lock_across_processes(path: Path) -> Iterator[None]:
    """Lock the folder of a run by the primary process; all end if it cannot be used."""
    refusal = None
    with ExitStack() as stack:
        if is_primary():
            try:
                stack.enter_context(lock_folder(path, read_only=True))
                begin_folder(path)
            except InputError as error:
                refusal = type(error)(f"learn: {error}")
            except (ValueError, OSError) as error:  # such as a full disk
                why = f"{path} cannot be written to ({error})"
                remedy = "make room, or give another folder"
                refusal = WriteError(f"learn: {why}; {remedy}.")
        (refused,) = any_across_processes(refusal is not None)
        if refused:
            raise refusal or InputError(
                f"learn: process 0 cannot use {path}; see its message."
            )
        yield
