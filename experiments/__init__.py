"""Papers retold: one folder each, run by ``python -m experiments.<paper>``."""

import os

# XLA calls LAPACK from threads of its own, in which a threaded OpenBLAS only spins.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A small network is learned fastest by one thread per process; XLA's pool spends more on
# handing work over. Several CPU devices in one process need a thread each, or they starve.
os.environ.setdefault(
    "NPROC", "18" if "device_count" in os.environ.get("XLA_FLAGS", "") else "1"
)
