"""Runs of ``jaxcl finetune`` that are killed, as processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

from tests.test_finetune.conftest import words_of

MOMENTS = {
    signal.SIGKILL: "metrics.jsonl",
    signal.SIGTERM: "answers/001-animals-slow.jsonl",
}


def started(words, log):
    command = [sys.executable, "-m", "jaxcl", *words]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(home, tmp_path):
    """Oracle: the run left alone. One is killed while it learns, and once more by SIGTERM
    while it is tested, after which it ends its file."""
    alone, cut = tmp_path / "alone", tmp_path / "cut"
    options = "--save-every", "0", "--method", "ilora", "--steps", "12"
    log = tmp_path / "log"
    first = started(words_of(home, alone, *options), log)
    assert first.wait() == 0, log.read_text()
    for number, name in MOMENTS.items():
        process = started(words_of(home, cut, *options), log)
        while process.poll() is None and not (cut / name).exists():
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        code = process.wait()
        said = log.read_text()
        killed = code == -signal.SIGKILL or (code == 0 and "terminated; " in said)
        assert killed, said  # it was not over before
    last = started(words_of(home, cut, *options), log)
    assert last.wait() == 0, log.read_text()
    files = [path for path in alone.rglob("*") if path.is_file()]
    kept = ("answers", "learners")
    compared = [path for path in files if path.relative_to(alone).parts[0] in kept]
    assert len(compared) > 10
    for path in compared:
        other = cut / path.relative_to(alone)
        assert other.read_bytes() == path.read_bytes(), path.name
    assert not [path for path in cut.rglob(".*") if path.name.startswith(".00")]


@pytest.mark.slow
def test_help_and_refusals_need_no_jax(home, tmp_path):
    """Oracle: the modules that Python imported."""
    words = words_of(home, tmp_path / "run", tasks=("animals",))
    words[words.index("--tasks") + 1] = str(tmp_path / "no.jsonl")
    for asked, code in ((["finetune", "--help"], 0), (words, 2)):
        script = (
            "import sys\nfrom jaxcl.cli import main\n"
            f"try:\n    code = main({asked!r})\n"
            "except SystemExit as end:\n    code = end.code\n"
            f"assert code == {code}, code\n"
            "assert 'jax' not in sys.modules\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
