"""From ``results.jsonl`` to tables, figures and one page.

``python -m experiments.byte_domains.report`` puts the tables of every folder under
``results/`` into the README beside this file.
"""

from pathlib import Path

from experiments.byte_domains.config import Config
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder
from jaxcl.runs.forgetting import write_readme
from jaxcl.runs.reports import page_of_run

WORDS = {
    "none": "no measure against forgetting",
    "er": "replay",
    "sam": "SAM",
    "sam-ewc-er": "all of SAM, EWC and replay",
}


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    claim = (
        "Kinds of text arrive one after another. Compared: "
        f"{', '.join(WORDS[arm] for arm in config.arms)}. Accuracy is that of the next "
        "byte."
    )
    page_of_run(folder, title="Domains of text", claim=claim)


if __name__ == "__main__":
    expect_no_words(__doc__)
    write_readme(Path(__file__).parent / "README.md")
