"""The restart guard: at most 5 unclean exits in 5 minutes, then something else than another try.

Only unclean exits count: a run holds a lock (flock(2)) on its file in STATE_DIR/running and removes the file when
it ends cleanly, so a file that nobody locks is a run that died. That works across container replacements (the
state folder survives them) and beside a live predecessor during an update. STATE_DIR/restart.count tells people:
its first line is the number of unclean exits in the last 5 minutes, the others say when each was found and how far
that run had come (ready or started).
"""

import fcntl
import os
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from lyttle_ops.clock import Clock

MOST = 5
WINDOW = timedelta(minutes=5)
_READY, _STARTED = "ready", "started"


class RestartGuard:
    """The guard of one run. `begin` first, `was_ready` once, `end` at a clean exit."""

    def __init__(self, state_dir: Path, instance_id: UUID, clock: Clock) -> None:
        self._folder = state_dir / "running"
        self._mine = self._folder / str(instance_id)
        self._count_file = state_dir / "restart.count"
        self._clock = clock
        self._lock_fd: int | None = None
        self.dead: list[UUID] = []  # instances that died, found at `begin`
        self.count = 0  # unclean exits in the window, found at `begin`
        self.once_ready = False  # whether one of the runs that died had been ready

    @property
    def exhausted(self) -> bool:
        """Whether another start would be one too many."""
        return self.count > MOST

    def begin(self) -> None:
        """Count the runs that died, and mark this one as running."""
        self._folder.mkdir(parents=True, exist_ok=True)
        now = self._clock.now()
        # What lies in the future was written before the clock was set back.
        exits = [(at, reached) for at, reached in self._read() if timedelta() <= now - at < WINDOW]
        for path in sorted(self._folder.iterdir()):
            if not _is_run(path):
                continue
            reached = _read_if_dead(path)
            if reached is not None:
                exits.append((now, reached or _STARTED))
                self.dead.append(UUID(path.name))
                path.unlink(missing_ok=True)
        self.count = len(exits)
        self.once_ready = any(reached == _READY for _, reached in exits)
        self._write(exits)
        # Locked before it has its name: nobody can see it unlocked and take this run for dead.
        beside = self._mine.with_suffix(".new")
        self._lock_fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        beside.rename(self._mine)

    def was_ready(self) -> None:
        """Remember that this run served."""
        if self._lock_fd is not None:
            os.pwrite(self._lock_fd, _READY.encode(), 0)

    def end(self) -> None:
        """A clean exit: nothing is counted."""
        self._mine.unlink(missing_ok=True)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _read(self) -> list[tuple[datetime, str]]:
        try:
            words = [line.split() for line in self._count_file.read_text().splitlines()[1:]]
            return [(datetime.fromisoformat(at), reached) for at, reached in words]
        except (OSError, ValueError):
            return []  # missing or damaged: counting begins anew

    def _write(self, exits: list[tuple[datetime, str]]) -> None:
        lines = [str(len(exits)), *(f"{at.isoformat(timespec='seconds')} {reached}" for at, reached in exits)]
        temporary = self._count_file.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(self._count_file)


def _is_run(path: Path) -> bool:
    """Whether a file is a run's; a shared file system leaves files of its own (.nfs…)."""
    try:
        UUID(path.name)
    except ValueError:
        return False
    return path.is_file()


def reset(state_dir: Path) -> None:
    """A person starts the node: what happened before does not count."""
    (state_dir / "restart.count").unlink(missing_ok=True)
    for path in (state_dir / "running").glob("*"):
        if _read_if_dead(path) is not None:
            path.unlink(missing_ok=True)


def _read_if_dead(path: Path) -> str | None:
    """The contents of a run's file when no process holds it, else None."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.pread(fd, 64, 0).decode()
    except BlockingIOError:
        return None
    finally:
        os.close(fd)
