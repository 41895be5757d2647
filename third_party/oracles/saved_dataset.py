"""Write the folder of a small data set by Hugging Face datasets' ``save_to_disk``.

Run by hand in an environment with the package, from the root of the checkout::

    python third_party/oracles/saved_dataset.py

The test of ``jaxcl.data.text_dataset`` reads the folder without the package.
"""

import shutil
from pathlib import Path

import datasets

FOLDER = Path("tests/test_data/golden_saved")
ROWS = {
    "text": ["Stocks rose.", "Madrid won.", 'Water, "found"\non a planet ☕', "NA"],
    "label": [1, 0, 2, 1],
    "topic": ["money", "sport", "science", "money"],
}


def main() -> None:
    """Write the folder, of which rows are in two files."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["sport", "money", "science"]),
            "topic": datasets.Value("string"),
        }
    )
    shutil.rmtree(FOLDER, ignore_errors=True)
    held = datasets.Dataset.from_dict(ROWS, features=features)
    held.save_to_disk(str(FOLDER), num_shards=2)


if __name__ == "__main__":
    main()
