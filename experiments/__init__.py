"""Papers retold: one folder each, run by ``python -m experiments.<paper>``."""

import os

# XLA calls LAPACK from threads of its own, in which a threaded OpenBLAS only spins.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# XLA's pool has one thread per core, and starves when every CPU device waits in it.
os.environ.setdefault("NPROC", str(2 * (os.cpu_count() or 1) + 2))
