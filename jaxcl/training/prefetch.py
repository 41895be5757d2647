"""Batches that are read ahead by a thread."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

import jax
import numpy as np


def prefetch(
    read: Callable[[Any], Any], items: Iterable[Any], *, ahead: int = 2
) -> Generator[Any, None, None]:
    """Yield ``read(item)`` for all items in order, reading ``ahead`` of them early.

    Args:
      read: called in another thread; it may be slow.
      items: what to read.
      ahead: how many results may wait.

    Raises:
      Whatever ``read`` raises, at the place in the order where it raised it; a
      StopIteration, which an iterator cannot pass on, as a RuntimeError.
    """
    box: queue.Queue = queue.Queue(max(1, ahead))
    done = object()
    ended = threading.Event()

    def put(entry) -> bool:
        while not ended.is_set():
            try:
                box.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    # The context manager has effect in its own thread only: rows would become float32.
    wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def work():
        try:
            with jax.enable_x64(wide):
                for item in items:
                    if not put((read(item), None)):
                        return
        except BaseException as error:  # raised where the result is awaited
            put((None, error))
        else:
            put((done, None))

    reader = threading.Thread(target=work, daemon=True, name="feed")
    reader.start()
    try:
        while True:
            result, error = box.get()
            if error is not None:
                raise error
            if result is done:
                return
            yield result
    finally:
        ended.set()
        reader.join()  # a thread inside JAX would abort the process at exit


__all__ = ["prefetch"]
