"""What runs of a local cluster, as one JSON file that every `lyttle-ops local` command reads and changes.

Two locks (flock, so that a killed holder frees them): `up.lock` is held by an `up` for as long as it lives,
`state.lock` for one change of the file.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lyttle_ops.local.credentials import write_secret
from lyttle_ops.local.layout import Layout
from lyttle_ops.local.processes import Process


@dataclass(frozen=True, slots=True)
class State:
    """One cluster that was started and not brought down."""

    layout: Layout
    run_folder: Path
    owner: Process  # the `up` that started it
    detached: bool
    phase: Literal["starting", "running"]
    acme_directory: str
    acme_ca_file: Path
    settings: dict[str, str] = field(default_factory=dict)  # further settings of every node
    processes: dict[str, Process] = field(default_factory=dict)  # "ca", "companions", node names

    def alive(self) -> dict[str, Process]:
        return {name: process for name, process in self.processes.items() if process.is_alive()}

    def with_process(self, name: str, process: Process) -> "State":
        return replace(self, processes={**self.processes, name: process})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, default=str)

    @classmethod
    def from_json(cls, text: str) -> "State":
        raw: dict[str, Any] = json.loads(text)
        return cls(
            layout=Layout(**raw["layout"]),
            run_folder=Path(raw["run_folder"]),
            owner=Process(**raw["owner"]),
            detached=raw["detached"],
            phase=raw["phase"],
            acme_directory=raw["acme_directory"],
            acme_ca_file=Path(raw["acme_ca_file"]),
            settings=raw["settings"],
            processes={name: Process(**process) for name, process in raw["processes"].items()},
        )


class StateFile:
    """cluster.json in the state folder, and the two locks beside it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cluster.json"
        self._lock = folder / "state.lock"
        self._up_lock = folder / "up.lock"

    def read(self) -> State | None:
        """None when no cluster was started, or the file is of a version that cannot be read."""
        try:
            return State.from_json(self._path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def write(self, state: State) -> None:
        write_secret(self._path, state.to_json())

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other commands from changing the file meanwhile; waits for them."""
        with _locked(self._lock, wait=True):
            yield

    @contextmanager
    def owning(self) -> Iterator[bool]:
        """Be the one `up` (or `down`) of this folder; False when another process is."""
        with _locked(self._up_lock, wait=False) as got:
            yield got


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
