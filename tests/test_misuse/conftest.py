"""No checker of types, and an empty folder that stays empty."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def untyped():
    """The checker of types that guards all other tests is off, as it is for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def nothing_written(tmp_path, monkeypatch):
    """A refused call leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())
