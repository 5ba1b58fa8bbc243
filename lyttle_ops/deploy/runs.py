"""Runs a playbook by ansible-runner: its folder, its environment, its end. The only importer of ansible_runner.

A run's folder, $XDG_STATE_HOME/lyttle-ops/runs/<time>-<playbook>/, holds the whole output (`log`) and is readable by
its user alone; the newest 20 of each playbook are kept. ansible-playbook runs under `warden.py`, so that it never
outlives the command that started it.
"""

import configparser
import contextlib
import enum
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lyttle_ops.deploy import project
from lyttle_ops.deploy.progress import Failure, Progress
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.xdg import state_home

KEPT = 20  # run folders of each playbook
_POLL = 0.2  # seconds at most until a Ctrl-C is passed on
_WARDEN = Path(__file__).with_name("warden.py")


class ControlMissing(LyttleOpsError):
    """Ansible is missing on this machine: install lyttle-ops[control] (pip install 'lyttle-ops[control]')."""


class InventoryMissing(LyttleOpsError):
    """There is no inventory."""


class End(enum.Enum):
    """How a playbook ended; the value is for programs and stays."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"  # nothing was changed
    PUT_BACK = "put_back"  # it failed, and the old version serves again
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Control:
    """What every run of a command shares: whom it is about and how Ansible opens what is encrypted."""

    inventory: Path
    verbosity: int = 0
    vault_password_file: Path | None = None
    vault_password: str | None = None  # typed by a person; never written to a disk

    def check(self) -> None:
        """See that a playbook can run at all.

        Raises:
            ControlMissing: no Ansible here.
            InventoryMissing: no such inventory.
            PlaybooksMissing: no playbooks here.
        """
        if importlib.util.find_spec("ansible_runner") is None or program("ansible-playbook") is None:
            raise ControlMissing
        content = project.content()
        if not self.inventory.exists():
            raise InventoryMissing(
                f"there is no inventory {self.inventory}: copy {content / 'inventory.example.ini'} there and write your"
                " hosts into it, or name another with -i (or LYTTLE_INVENTORY)"
            )

    @contextlib.contextmanager
    def arguments(self) -> Iterator[list[str]]:
        """Arguments of ansible-playbook and ansible-inventory. A typed password is handed over in memory."""
        inventory = ["-i", str(self.inventory.absolute())]
        if self.vault_password is not None:
            memory = os.memfd_create("vault-password")
            try:
                os.fchmod(memory, 0o600)  # an executable one would be run
                os.write(memory, self.vault_password.encode())
                yield [*inventory, "--vault-password-file", f"/proc/{os.getpid()}/fd/{memory}"]
            finally:
                os.close(memory)
        elif self.vault_password_file is not None:
            yield [*inventory, "--vault-password-file", str(self.vault_password_file.absolute())]
        else:
            yield inventory


@dataclass(frozen=True, slots=True)
class Ended:
    """How a playbook ended."""

    end: End
    result: dict[str, Any] | None  # what the playbook says of itself
    message: str  # why it did not end well, in a few sentences; empty when it did
    failures: list[Failure]
    outcome: str | None  # how far it came, by its own word
    log: Path
    seconds: float


class Watch(Protocol):
    """Who looks on while a playbook runs; all calls come from the thread that runs it."""

    def event(self, event: Mapping[str, Any], step_ended: bool) -> None:
        """An event that `progress` has taken; whether a step that ran somewhere ended with it."""

    def tick(self) -> None:
        """Five times a second."""


class Playbook:
    """One run of one playbook."""

    def __init__(self, name: str, variables: Mapping[str, Any], control: Control) -> None:
        """`variables` become extra vars in a file of the run's folder: no secret belongs there."""
        control.check()
        self.name = name
        self.progress = Progress()
        self._file = project.playbook(name)
        self._variables = dict(variables)
        self._control = control
        self._folder = _new_folder(name)
        self._interrupts = 0
        self._passed_on = 0

    @property
    def log(self) -> Path:
        """Where Ansible's whole output goes."""
        return self._folder / "log"

    def interrupt(self) -> None:
        """Ask it to end; asked again, it is killed. Safe in a signal handler."""
        self._interrupts += 1

    @property
    def interrupted(self) -> bool:
        return self._interrupts > 0

    def run(self, watch: Watch) -> Ended:
        """Run it to its end. The caller handles signals: see `interrupt`."""
        from ansible_runner.interface import init_runner  # not in the container

        def handle(event: dict[str, Any]) -> bool:
            watch.event(event, self.progress.take(event))
            return True  # else ansible-runner forgets the event

        def tick() -> bool:
            watch.tick()
            self._pass_on()
            return False  # ansible-runner's own cancelling would kill the warden first

        with self._control.arguments() as arguments:
            # The warden is ansible-runner's "binary"; what it shall run stands before ansible-runner's own arguments.
            pid_file = self._folder / "pid"
            ansible = program("ansible-playbook") or "ansible-playbook"
            command = [str(_WARDEN), str(os.getpid()), str(pid_file), ansible, str(self._file), *arguments]
            runner = init_runner(
                private_data_dir=str(self._folder),
                ident="ansible",
                binary=sys.executable,
                cmdline=shlex.join(command),
                extravars=self._variables,
                envvars=environment(),
                settings={"pexpect_timeout": _POLL},
                verbosity=self._control.verbosity,
                quiet=True,
                event_handler=handle,
                status_handler=lambda status, **_: self._started(status),
                cancel_callback=tick,
            )
            self.log.symlink_to(Path(runner.config.artifact_dir, "stdout").relative_to(self._folder))
            runner.run()
        self.progress.end_step()
        return self._ended(runner.rc)

    def _started(self, status: Mapping[str, Any]) -> None:
        if status.get("status") == "running":
            # ansible-runner notes its command with the person's whole environment, where tokens may be.
            (self._folder / "artifacts" / "ansible" / "command").unlink(missing_ok=True)

    def _pass_on(self) -> None:
        """Pass a Ctrl-C on to the warden."""
        if self._interrupts > self._passed_on:
            with contextlib.suppress(OSError, ValueError):  # not started yet: at the next call; gone: it ends anyway
                pid = int((self._folder / "pid").read_text())
                os.kill(pid, signal.SIGINT if self._passed_on == 0 else signal.SIGTERM)
                self._passed_on += 1

    def _ended(self, code: int | None) -> Ended:
        progress, failures = self.progress, self.progress.failures
        by_its_word = {"refused": End.REFUSED, "put_back": End.PUT_BACK}.get(progress.outcome or "", End.FAILED)
        message = ""
        if code == 0 and progress.result is not None:
            end = End.DONE
        elif self.interrupted:
            end, message = End.INTERRUPTED, "interrupted"
        elif failures:
            end, message = by_its_word, "; ".join(dict.fromkeys(failure.message for failure in failures))
        elif progress.unmatched and not progress.hosts:
            end = End.REFUSED
            message = (
                f"the inventory {self._control.inventory} has no host for {', '.join(map(repr, progress.unmatched))}:"
                " write them into the groups managers and workers"
            )
        else:
            end = by_its_word if progress.hosts else End.REFUSED
            message = "; ".join(progress.errors) or self._last_words(code)
        seconds = time.monotonic() - progress.started
        return Ended(end, progress.result, message, failures, progress.outcome, self.log, seconds)

    def _last_words(self, code: int | None) -> str:
        if code == 0:
            return f"the playbook {self._file} ended without a result"
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace")
            for mark in ("[ERROR]: ", "ERROR! "):
                if mark in text:  # up to the empty line or to where Ansible cites the file
                    return text.partition(mark)[2].partition("\n\n")[0].partition("\nOrigin:")[0].strip()
            if lines := [line for line in text.splitlines() if line.strip()]:
                return lines[-1]
        return f"ansible-playbook ended with exit code {code}"


def program(name: str) -> str | None:
    """The path of one of Ansible's programs: of this installation, else of PATH; None when it is missing."""
    return shutil.which(name, path=_path())


def environment() -> dict[str, str]:
    """Environment of Ansible, on top of this process's own: the person's configuration, else the one we bring."""
    own = project.content() / "ansible.cfg"
    configuration = _configuration() or own
    found = {
        "PATH": _path(),
        "ANSIBLE_ROLES_PATH": str(project.content() / "roles"),
        "ANSIBLE_NOCOLOR": "1",  # the log is for people with a pager
        "ANSIBLE_FORCE_COLOR": "0",
    }
    if configuration.is_file():
        found["ANSIBLE_CONFIG"] = str(configuration)
    if "ANSIBLE_HOST_KEY_CHECKING" not in os.environ:
        # ansible-runner would switch the check off, and the first deploy would trust whoever answers.
        found["ANSIBLE_HOST_KEY_CHECKING"] = _host_key_checking(configuration)
    return found


def _configuration() -> Path | None:
    """The file that Ansible would take here; a run has another working directory."""
    if given := os.environ.get("ANSIBLE_CONFIG"):
        return Path(given).absolute()
    here = Path("ansible.cfg").absolute()
    if here.is_file() and not here.parent.stat().st_mode & 0o002:  # Ansible ignores one that anybody may have written
        return here
    places = (Path.home() / ".ansible.cfg", Path("/etc/ansible/ansible.cfg"))
    return next((place for place in places if place.is_file()), None)


def _host_key_checking(configuration: Path) -> str:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):  # Ansible will say what is wrong with it
        parser.read(configuration)
    for section in ("ssh_connection", "defaults"):
        if (said := parser.get(section, "host_key_checking", fallback=None)) is not None:
            return said
    return "True"


def runs_folder() -> Path:
    """Where the folders of the runs are."""
    return state_home() / "lyttle-ops" / "runs"


def _path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def _new_folder(name: str) -> Path:
    runs = runs_folder()
    runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in sorted(runs.glob(f"*Z*-{name}"))[: -(KEPT - 1)]:
        if not _is_running(old):
            shutil.rmtree(old, ignore_errors=True)
    moment = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in range(1, 1000):
        folder = runs / f"{moment}{f'.{number}' if number > 1 else ''}-{name}"
        with contextlib.suppress(FileExistsError):  # another run of this second
            folder.mkdir(mode=0o700)
            return folder
    raise LyttleOpsError(f"there are too many runs of this second in {runs}")


def _is_running(folder: Path) -> bool:
    try:
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        return False
    return Path(f"/proc/{pid}").exists()
