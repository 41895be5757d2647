"""From ``results.jsonl`` to tables, figures and one page.

``python -m experiments.class_stream.report`` puts the tables of every folder under
``results/`` into the README beside this file.
"""

from pathlib import Path

from experiments.class_stream.config import Config
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder
from jaxcl.runs.forgetting import write_readme
from jaxcl.runs.reports import page_of_run

WORDS = {
    "none": "no measure against forgetting",
    "er": "replay",
    "sam-ewc-er": "replay with SAM and EWC on top",
}


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    claim = (
        "Classes arrive a few at a time. Compared: "
        f"{', '.join(WORDS[arm] for arm in config.arms)}. Each task has outputs of its own."
    )
    page_of_run(folder, title="A stream of classes", claim=claim)


if __name__ == "__main__":
    expect_no_words(__doc__)
    write_readme(Path(__file__).parent / "README.md")
