"""From ``results.jsonl`` to tables, figures and one page."""

from experiments.class_stream.config import Config
from experiments.harness import RunFolder
from experiments.harness.forgetting import report_matrices

CLAIM = (
    "Classes arrive a few at a time. Compared: no measure against forgetting, replay, "
    "and replay with SAM and EWC on top. Each task has outputs of its own."
)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    del config
    report_matrices(folder, title="A stream of classes", claim=CLAIM)


__all__ = ["report"]
