"""What the tests of arguments share."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is made the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
