"""Where a person's programs keep their state (XDG Base Directory Specification)."""

import os
from pathlib import Path


def state_home() -> Path:
    """$XDG_STATE_HOME, or ~/.local/state where it is unset, empty or, as the specification has it, not absolute."""
    told = Path(os.environ.get("XDG_STATE_HOME", ""))
    return told if told.is_absolute() else Path.home() / ".local" / "state"
