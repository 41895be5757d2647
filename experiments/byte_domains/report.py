"""From ``results.jsonl`` to tables, figures and one page.

``python -m experiments.byte_domains.report`` puts the tables of every folder under
``results/`` into the README beside this file.
"""

from pathlib import Path

from experiments.byte_domains.config import Config
from experiments.harness import RunFolder, expect_no_words
from experiments.harness.forgetting import report_matrices, write_readme

CLAIM = (
    "Kinds of text arrive one after another. Compared: no measure against forgetting, "
    "replay, SAM, and all of SAM, EWC and replay. Accuracy is that of the next byte."
)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    del config
    report_matrices(folder, title="Domains of text", claim=CLAIM)


__all__ = ["report"]


if __name__ == "__main__":
    expect_no_words(__doc__)
    write_readme(Path(__file__).parent / "README.md")
