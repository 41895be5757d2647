"""The tasks of TRACE (Wang et al. 2023, arXiv:2310.06762), 500 rows of each.

As its authors wrote them, except that long texts are cut to so many words, and that the
answer to a question of ScienceQA is a letter without the reasons for it. MeetingBank, the
third of their eight, has no rows for training in the archive at hand.
"""

import json
import re
import tarfile
from collections.abc import Collection
from pathlib import Path

from jaxcl.errors import MissingFileError, require

#: Folders of the archive by the names of the tasks.
TASKS = {
    "c-stance": "C-STANCE",
    "fomc": "FOMC",
    "py150": "Py150",
    "scienceqa": "ScienceQA",
    "numglue-cm": "NumGLUE-cm",
    "numglue-ds": "NumGLUE-ds",
    "20minuten": "20Minuten",
}
_HOME = "TRACE-Benchmark/LLM-CL-Benchmark_500"
_REASONS = " and give your reasons"

Row = dict[str, str]  # prompt, answer


def rows(data: Path, names: Collection[str]) -> dict[tuple[str, str], list[Row]]:
    """The rows of some tasks, by task and split."""
    if not names:
        return {}
    path = data / "trace" / "trace-benchmark.tar.xz"
    if not path.is_file():
        msg = f"--data: {path} is not there; see README.md of this experiment."
        raise MissingFileError(msg)
    wanted = {
        f"{_HOME}/{TASKS[name]}/{split}.json": (name, split)
        for name in names
        for split in ("train", "test")
    }
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:  # in their order, since going back unpacks all again
            if key := wanted.pop(member.name, None):
                file = archive.extractfile(member)
                assert file is not None
                found[key] = json.load(file)
            if not wanted:
                break
    lacking = f"{path} lacks {', '.join(wanted)}; give the archive of TRACE"
    require(not wanted, "--data", lacking)
    return found


def prompt(name: str, row: Row, words: int) -> Row:
    """A row with at most so many words of its text, and an answer that can be scored."""
    asked, answer = row["prompt"], row["answer"].strip()
    if name == "py150":  # the line to write follows the last words
        asked = " ".join(asked.split(" ")[-words:])
    elif name == "20minuten":
        head, begin, rest = asked.partition("Paragraph:\n")
        text, end, tail = rest.rpartition("\n\nSimplification:")
        kept = re.match(rf"(?:\s*\S+){{0,{words}}}", text)
        asked = f"{head}{begin}{kept[0] if kept else ''}{end}{tail}"
    elif name == "scienceqa":
        asked, answer = asked.replace(_REASONS, "", 1), answer.partition("\n")[0]
    return {"prompt": asked, "answer": answer}
