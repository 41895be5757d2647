"""From ``results.jsonl`` to tables, figures and one page."""

from experiments.byte_domains.config import Config
from experiments.harness import RunFolder
from experiments.harness.forgetting import report_matrices

CLAIM = (
    "Kinds of text arrive one after another. Compared: no measure against forgetting, "
    "replay, SAM, and all of SAM, EWC and replay. Accuracy is that of the next byte."
)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    del config
    report_matrices(folder, title="Domains of text", claim=CLAIM)


__all__ = ["report"]
