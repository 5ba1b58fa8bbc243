"""Commands in messages can be copied: the program as it was called, the folder where it is not the default."""

import os
import sys
from pathlib import Path

import pytest

from lyttle_ops.local import hints
from lyttle_ops.local.folders import Folders, default_state_folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable lyttle-ops that is not on PATH."""
    file = tmp_path / "some bin" / "lyttle-ops"
    file.parent.mkdir()
    file.touch(mode=0o755)
    monkeypatch.setenv("PATH", os.defpath)
    return file


def test_a_program_beside_path_is_named_as_it_was_called(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/lyttle-ops"])
    assert hints.program() == ".venv/bin/lyttle-ops"
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert hints.program() == f"'{program}'"


def test_a_program_on_path_is_named_alone(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(program.parent))
    assert hints.program() == "lyttle-ops"
    # Another one on PATH is not this one.
    monkeypatch.setattr(sys, "argv", [".venv/bin/lyttle-ops"])
    assert hints.program() == ".venv/bin/lyttle-ops"


def test_the_state_folder_is_carried_when_it_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/lyttle-ops"])
    assert hints.command(Folders(default_state_folder()), "start", "n1") == ".venv/bin/lyttle-ops local start n1"
    elsewhere = hints.command(Folders(Path("/srv/my cluster")), "down")
    assert elsewhere == ".venv/bin/lyttle-ops local down --state-dir '/srv/my cluster'"
