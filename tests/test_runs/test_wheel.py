"""The wheel that is installed elsewhere: the library, its command, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_holds_the_library_and_its_command(tmp_path):
    """Oracle: the files of the wheel, and a process that knows only them."""
    source, wheels, site = (tmp_path / name for name in ("source", "wheels", "site"))
    files = subprocess.run(
        ["git", "ls-files", "-z", "jaxcl", "experiments", "pyproject.toml", "*.md"],
        **{"cwd": ROOT, "check": True, "capture_output": True, "text": True},
    ).stdout.split("\0")
    for name in [*files[:-1], "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"jaxcl"}
    for needed in ("jaxcl/py.typed", "jaxcl/report/page.html", "jaxcl/cli/__init__.py"):
        assert needed in names

    install = [*pip, "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    # -I: neither the checkout nor PYTHONPATH; and without the editable install.
    code = (
        "import importlib.util as u, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in str(f)]\n"
        "import jaxcl, jaxcl.report, jaxcl.training\n"
        "assert jaxcl.__file__.startswith(sys.argv[1]), jaxcl.__file__\n"
        "sys.exit(u.find_spec('experiments') is not None)"
    )
    run = [sys.executable, "-I", "-c", code, str(site)]
    subprocess.run(run, check=True, cwd=tmp_path)
    script = (site / "bin" / "jaxcl").read_text()
    assert "from jaxcl.cli import main" in script
