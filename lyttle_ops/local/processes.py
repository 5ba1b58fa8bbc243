"""Processes that outlive the command that started them, recognised safely later.

A process is its pid *and* the moment it started (ticks since boot, from proc(5), with the boot's id): a pid
that the kernel gave to somebody else is never signalled. psutil's create_time moves when the wall clock is
set, this does not. Each process leads a session of its own, so that a terminal's Ctrl-C does not reach it and
everything it started can be found by session, even after it died itself.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Process:
    """One started process; `started` is "<boot id>:<ticks>"."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return identify(self.pid) == self

    def send(self, number: int) -> None:
        """Signal it, unless it is gone."""
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    session: int
    ticks: int


def launch(
    argv: Sequence[str], *, log: Path, folder: Path, environment: Mapping[str, str], append: bool = False
) -> "subprocess.Popen[bytes]":
    """Start `argv` in a session of its own, its output going to `log`, its working directory being `folder`."""
    with open_log(log, append) as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )


def open_log(path: Path, append: bool = False) -> BinaryIO:
    """Open a log to write; readable by this user and group, since requests and addresses stand in it."""
    # Always at the end: NGINX opens its standard output anew, and each would write over the other's lines.
    how = os.O_APPEND | (0 if append else os.O_TRUNC)
    output = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o640), "ab")
    os.fchmod(output.fileno(), 0o640)  # one that was there before
    return output


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None when there is none or it is a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else Process(pid, f"{_boot_id()}:{stat.ticks}")


def is_zombie(pid: int) -> bool:
    """Whether this pid belongs to a process that has ended and whose parent has not taken note yet."""
    stat = _stat(pid)
    return stat is not None and stat.state in "ZX"


def family(process: Process) -> list[Process]:
    """What runs of `process` and of everything it started: its descendants and the rest of its session."""
    boot, _, ticks = process.started.partition(":")
    if boot != _boot_id():
        return []
    table = _table()
    leader = table.get(process.pid)
    if leader is not None and leader.ticks != int(ticks):
        return []  # the pid went to somebody else; a session with live members keeps its number from being reused
    members = {pid for pid, stat in table.items() if stat.session == process.pid and stat.ticks >= int(ticks)}
    if leader is not None:
        members.add(process.pid)
        grown = True
        while grown:
            children = {pid for pid, stat in table.items() if stat.parent in members} - members
            members |= children
            grown = bool(children)
    return [Process(pid, f"{boot}:{table[pid].ticks}") for pid in sorted(members) if table[pid].state not in "ZX"]


def strays(folder: Path) -> list[Process]:
    """NGINX and Python processes that work in `folder` itself: what a node whose supervisor died left behind.

    They may lead sessions of their own and have no parent any more, but they keep the working directory they
    were started in. Others that stand there, as a person's shell, are none of our business.
    """
    found = []
    for pid in _table():
        try:
            at_home = os.readlink(f"/proc/{pid}/cwd") == str(folder)
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            continue  # gone, or of another user
        if at_home and program.startswith(("nginx", "python")) and (process := identify(pid)) is not None:
            found.append(process)
    return found


def kill_all(processes: Iterable[Process]) -> None:
    """SIGKILL to each, and wait until they are gone."""
    deadline = time.monotonic() + 5
    left = set(processes)
    while left and time.monotonic() < deadline:
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.005)
        left = {process for process in left if process.is_alive()}


def stop(processes: Iterable[Process], grace: float) -> list[Process]:
    """SIGTERM to each, SIGKILL to what is left of each family after `grace` seconds.

    Returns those that had to be killed.
    """
    leaders = list(processes)
    families = {leader: family(leader) for leader in leaders}
    for leader in leaders:
        leader.send(signal.SIGTERM)
        leader.send(signal.SIGCONT)  # a stopped process would never see the SIGTERM
    deadline = time.monotonic() + grace
    while any(leader.is_alive() for leader in leaders) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed = [leader for leader in leaders if leader.is_alive()]
    for leader in leaders:
        # Usually nothing is left here: only what outlived its leader.
        _kill_all(leader, families[leader])
    return killed


def kill(process: Process) -> None:
    """SIGKILL to a process and everything it started, at once, as a power cut would."""
    process.send(signal.SIGSTOP)  # so that it starts nothing while its family is read
    _kill_all(process, family(process))


def _kill_all(leader: Process, known: Iterable[Process]) -> None:
    kill_all(known)
    for _ in range(10):  # what was started meanwhile
        if not (left := family(leader)):
            return
        kill_all(left)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    # The command in parentheses may itself hold spaces and parentheses (proc(5)).
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], parent=int(fields[1]), session=int(fields[3]), ticks=int(fields[19]))


def _table() -> dict[int, _Stat]:
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))) is not None:
            found[int(entry)] = stat
    return found
