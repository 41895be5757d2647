"""Other people's work: everything that is installed is named, and everything pinned."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SQUEEZED = re.compile(r"[-_. ]")


def names(requirements):
    """Distributions without extras, versions and markers."""
    return {re.split(r"[\[<>=;! ]", line)[0] for line in requirements}


def installed():
    """What pyproject.toml asks for, anywhere."""
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = held["project"]
    lists = [
        held["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *held.get("dependency-groups", {}).values(),
    ]
    return sorted(set().union(*map(names, lists)) - {"jaxcl"})


@pytest.mark.parametrize("name", installed())
def test_every_dependency_has_a_licence_in_the_table(name):
    """Oracle: pyproject.toml."""
    rows = [
        line.split("|")[1:4]
        for line in (ROOT / "third_party" / "README.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    squeeze = lambda text: SQUEEZED.sub("", text).lower()
    found = [
        licence.strip()
        for used, _, licence in rows
        if squeeze(name) in map(squeeze, re.split(r", | \(", used))
    ]
    assert len(found) == 1
    assert found[0]


def test_every_environment_of_a_peer_is_pinned():
    """Oracle: each requirement has one exact version, and torch the same."""
    peers = ROOT / "third_party" / "peers"
    pinned = {
        file.stem.removeprefix("requirements-"): dict(
            line.split("==")
            for line in file.read_text().splitlines()
            if not line.startswith("#")
        )
        for file in peers.glob("requirements-*.txt")
    }
    pins, others = pinned["avalanche"], pinned["transformers"]
    assert pins["torch"] == others["torch"]
    assert {"transformers", "peft"} <= set(others)
    command = (peers / "ewc_torch.py").read_text().split("pip install ")[1]
    for requirement in command.splitlines()[0].split():
        name, version = requirement.split("==")
        assert pins[name] == version
