"""Write the golden files, or compare two sets of them.

    python -m tests.golden write [FILE] [--only WORD]   # FILE: the committed one if absent
    python -m tests.golden compare FILE_A FILE_B        # e.g. of two checkouts

``compare`` prints each entry: ``equal`` bit for bit, or the largest deviation relative to
the largest entry of A; it ends with code 1 unless all entries are equal.
"""

import argparse
import os
import sys
import time
from pathlib import Path

COMMITTED = Path(__file__).parent / "results.npz"


def main():
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("write")
    one.add_argument("file", type=Path, nargs="?", default=COMMITTED)
    one.add_argument("--only", default="", help="cases whose names hold this word")
    one.set_defaults(run=lambda given: write(given.file, given.only))
    two = commands.add_parser("compare")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    two.set_defaults(run=lambda given: tell(given.a, given.b))
    given = parser.parse_args()
    return given.run(given)


def write(path, only):
    """Compute all cases, tell what each cost, and write them."""
    from tests.golden.cases import CASES
    from tests.golden.files import flat, save

    held = {}
    for name, case in CASES.items():
        if only in name:
            began = time.process_time()
            held |= flat(name, case())
            print(f"{time.process_time() - began:6.2f} CPU s  {name}", flush=True)
    save(path, held)
    print(f"{len(held)} entries, {path.stat().st_size} bytes: {path}")
    return 0


def tell(a, b):
    """Compare two files, entry by entry."""
    from tests.golden.files import compare, load

    found = compare(load(b), load(a))
    for path, gap in found.items():
        print(f"{gap:10.1e}  {path}" if gap else f"{'equal':>10}  {path}")
    apart = [gap for gap in found.values() if gap]
    same, most = len(found) - len(apart), max(apart, default=0.0)
    print(f"{same} equal, {len(apart)} not, at most {most:.1e}")
    return int(bool(apart))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
