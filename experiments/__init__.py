"""Papers retold: one folder each, run by ``python -m experiments.<paper>``."""

import contextlib
import ctypes
import os

# XLA calls LAPACK from threads of its own, in which a threaded OpenBLAS only spins.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A small network is learned fastest by one thread per process; XLA's pool spends more on
# handing work over. Several CPU devices in one process need a thread each, or they starve.
os.environ.setdefault(
    "NPROC", "18" if "device_count" in os.environ.get("XLA_FLAGS", "") else "1"
)

# What a step needs besides its state is set aside and given back at every step. Above 32 MB
# glibc gives it to the system, which hands it out again page by page, zeroed, and that
# takes time in every step. Here it stays with the process.
with contextlib.suppress(OSError, AttributeError):  # another C library has other ways
    _libc = ctypes.CDLL("libc.so.6")
    _libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: from the heap, whatever its size
    _libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: what is free of it is kept
    _libc.mallopt(-8, 1)  # M_ARENA_MAX: one heap, as those of threads stay small
