"""Where a local cluster keeps its files: durable ones in the state folder, sockets and keys in a tmpfs.

state folder (default: /var/lib/lyttle-ops/local for root, else ~/.local/state/lyttle-ops/local):
    .lyttle-ops-local     says that `up` made this folder: without it nothing is put in or removed
    cluster.json          what runs, mode 0600 (state.py)
    secrets/              passwords and master key, mode 0700 (credentials.py)
    postgres/  ca/        their data
    nodes/<name>/         each node's STATE_DIR
    logs/<process>.log    what each process wrote since it was started
run folder (short, since a unix socket's path has at most 107 bytes): <tmpfs>/lyttle-ops-local/<base>/<node>/
"""

import os
import pwd
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.local.ca import made_here
from lyttle_ops.xdg import state_home

MARKER = ".lyttle-ops-local"
# Folder -> mode. postgres is traversed by PostgreSQL's user; the CA's root is for any client.
_OURS = {"postgres": 0o755, "ca": 0o755, "nodes": 0o750, "logs": 0o750, "secrets": 0o700}
_OUR_FILES = ("cluster.json", "state.lock", "up.lock")


class FolderForeign(LyttleOpsError):
    """The folder is not a local cluster's."""


class FolderUnusable(LyttleOpsError):
    """A folder of the local cluster cannot be used."""


def default_state_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/lyttle-ops/local")
    return state_home() / "lyttle-ops" / "local"


@dataclass(frozen=True, slots=True)
class Folders:
    """The files of one local cluster; `state` is absolute."""

    state: Path

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def postgres(self) -> Path:
        return self.state / "postgres"

    @property
    def ca(self) -> Path:
        return self.state / "ca"

    def node(self, name: str) -> Path:
        return self.state / "nodes" / name

    def log(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"

    def log_end(self, name: str, lines: int = 25) -> str:
        """Where a process's log is and how it ends, to be put after a sentence."""
        log = self.log(name)
        try:
            last = log.read_text("utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            last = []
        return f"; its log is {log}" + "".join(f"\n  {line}" for line in last)

    def is_ours(self) -> bool:
        """Whether an `up` made this folder its cluster's."""
        return (self.state / MARKER).is_file()

    def create(self) -> None:
        """Make the folders. Raises FolderForeign, and FolderUnusable with the reason and the way out."""
        try:
            # PostgreSQL runs as another user when this is root, so the way to its data must be open.
            self.state.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._claim()
            for name, mode in _OURS.items():
                (self.state / name).mkdir(exist_ok=True, mode=mode)
            for name in ("logs", "nodes"):  # those that an earlier version left open
                (self.state / name).chmod(_OURS[name])
        except OSError as exc:
            raise FolderUnusable(
                f"the state folder {self.state} cannot be made: {exc.strerror}; choose another with --state-dir"
            ) from exc
        if os.geteuid() == 0:
            self._require_way_for_postgres()

    def _claim(self) -> None:
        """Mark the folder as a cluster's; only an empty one, or one that a version without the marker made."""
        there = os.listdir(self.state)
        if MARKER in there:
            return
        if there and not made_here(self.ca):
            raise FolderForeign(
                f"{self.state} is not empty and not a local cluster's (it has no {MARKER}): nothing was put there; "
                "choose a new or an empty folder with --state-dir"
            )
        (self.state / MARKER).write_text("`lyttle-ops local up` made this folder; `local down --wipe` removes it.\n")

    def _require_way_for_postgres(self) -> None:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            raise FolderUnusable(
                "there is no user postgres, which PostgreSQL runs as when root starts it: run `make setup`"
            ) from None
        for folder in [*reversed(self.state.parents), self.state]:
            status = folder.stat()
            bit = stat.S_IXOTH
            if status.st_uid == user.pw_uid:
                bit = stat.S_IXUSR
            elif status.st_gid == user.pw_gid:
                bit = stat.S_IXGRP
            if not status.st_mode & bit:
                raise FolderUnusable(
                    f"PostgreSQL runs as the user postgres, who may not enter {folder}: choose another --state-dir, "
                    f"or `chmod o+x {folder}`"
                )

    def require_ours(self) -> None:
        """Raises FolderForeign unless wiping this folder is safe."""
        if not self.is_ours():
            raise FolderForeign(
                f"{self.state} is not a local cluster's (it has no {MARKER}, which `up` puts there): nothing was "
                "stopped or removed"
            )

    def wipe(self) -> list[str]:
        """Remove what the local cluster keeps, and nothing else that lies in the folder: names of what is left.

        Raises FolderForeign, and FolderUnusable when something stays.
        """
        self.require_ours()
        for name in _OURS:
            shutil.rmtree(self.state / name, ignore_errors=True)
        for name in _OUR_FILES:
            with suppress(OSError):
                (self.state / name).unlink()
        if stays := [name for name in (*_OURS, *_OUR_FILES) if os.path.lexists(self.state / name)]:
            raise FolderUnusable(f"{', '.join(stays)} in {self.state} could not be removed: do it as their owner")
        (self.state / MARKER).unlink()
        left = sorted(os.listdir(self.state))
        with suppress(OSError):  # somebody else's files may be there, or it is a mount
            self.state.rmdir()
        return left


def run_folder(base: str) -> Path:
    """A tmpfs folder of this user for the cluster at `base`. Raises FolderUnusable when there is no tmpfs."""
    if os.geteuid() == 0:
        candidates = [Path("/run"), Path("/dev/shm")]  # noqa: S108 - shared memory is meant - a folder of our own inside, owner checked
        name = "lyttle-ops-local"
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        candidates = [*([Path(runtime)] if runtime else []), Path("/dev/shm")]  # noqa: S108 - shared memory is meant
        name = f"lyttle-ops-local-{os.geteuid()}"
    memory = _memory_filesystems()
    for candidate in candidates:
        if _filesystem_of(candidate, memory) and os.access(candidate, os.W_OK | os.X_OK):
            return candidate / name / base
    raise FolderUnusable(
        "private keys must not reach a disk, and there is no tmpfs to write to at "
        f"{' or '.join(map(str, candidates))}: mount one, as `mount -t tmpfs tmpfs /dev/shm`"
    )


def create_run_folder(folder: Path) -> None:
    """Make it, refusing one that another user put there first. Raises FolderUnusable."""
    try:
        for part in (folder.parent, folder):
            part.mkdir(exist_ok=True, mode=0o755)
            status = part.lstat()
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                raise FolderUnusable(f"{part} belongs to another user; have it removed")
    except OSError as exc:
        raise FolderUnusable(f"the folder {folder} cannot be made: {exc.strerror}") from exc


def _memory_filesystems() -> dict[str, bool]:
    """Mount point -> whether it is a tmpfs."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_rest = line.split()
        mounts[point] = kind in ("tmpfs", "ramfs")
    return mounts


def _filesystem_of(folder: Path, memory: dict[str, bool]) -> bool:
    for point in (folder, *folder.parents):
        if str(point) in memory:
            return memory[str(point)]
    return False
