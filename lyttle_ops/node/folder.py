"""An instance's run folder: RUN_DIR/<first 8 of the instance id>/, locked for as long as the instance lives."""

import fcntl
import logging
import os
import shutil
from pathlib import Path

from lyttle_ops.nginx.process import Process

log = logging.getLogger(__name__)


class InstanceFolder:
    """Made and locked at once. What instances that died left on this machine is cleared away first."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.path = run_dir / name
        self.path.mkdir(mode=0o750)
        # Locked before it has its name: nobody can see it unlocked and take this instance for dead.
        beside = self.path / ".lock"
        self._lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        beside.rename(self.path / "lock")
        for other in run_dir.iterdir():
            if other != self.path and other.is_dir() and _is_dead(other):
                log.info("Clearing away the instance %s, which died", other.name)
                Process(other).prepare_start()
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # not an instance's folder, or just being made
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
