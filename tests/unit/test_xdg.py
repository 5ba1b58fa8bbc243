"""Where state is kept: an absolute $XDG_STATE_HOME, else below the home folder."""

from pathlib import Path

import pytest

from lyttle_ops.xdg import state_home


@pytest.mark.parametrize(
    ("told", "kept"), [("/srv/state", "/srv/state"), ("state", "/home/me/.local/state"), ("", "/home/me/.local/state")]
)
def test_a_relative_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, told: str, kept: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_STATE_HOME", told)
    assert state_home() == Path(kept)
