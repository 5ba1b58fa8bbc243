"""One host of a lab: a Debian with its own kernel, reached by ssh as any server is."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lyttle_ops.local import processes
from tests.lab import detached, rootfs, shell
from tests.lab.network import Network, mtu

_SSH_FAILED = 255  # ssh's own, not the command's
BOOT_TIMEOUT = 120.0  # seconds; 10 on an idle machine


class HostError(OSError):
    """A host of the lab does not do what was asked of it; the message says which and what it said."""


class Host:
    """The host `index` (from 0) of a lab, whose files are in `folder`."""

    def __init__(self, folder: Path, network: Network, index: int, *, kernel: Path, memory: str, zone: str) -> None:
        self.name = f"n{index + 1}"
        self.index = index
        self.address, self.address6 = network.host(index), network.host6(index)
        self.folder = folder / self.name
        self.disk = self.folder / "disk.img"
        self.console = self.folder / "console.log"
        self._network, self._kernel, self._memory, self._zone = network, kernel, memory, zone
        self._record = self.folder / "process.json"
        self._ssh_folder = folder

    # ---- power -------------------------------------------------------------------------------------------------

    def create(self, image: Path) -> None:
        """A disk of its own, copied from `image`; an earlier one is gone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rootfs.copy_disk(image, self.disk)

    @property
    def process(self) -> processes.Process | None:
        """The host's kernel, while it runs."""
        return detached.find(self._record)

    @property
    def is_running(self) -> bool:
        return self.process is not None

    def start(self, wait: bool = True) -> None:
        """Power on, with the disk as it is; with `wait` until ssh lets in. Nothing happens when it runs.

        Raises HostError.
        """
        if not self.is_running:
            self._power_on()
        if wait:
            self.wait()

    def wait(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Until ssh lets in. Raises HostError after `timeout` seconds or when the host ends."""
        deadline = time.monotonic() + timeout
        while True:
            if self._greets():
                with contextlib.suppress(HostError):
                    self.run("true", timeout=20)
                    return
            if not self.is_running:
                raise HostError(f"{self.name} ended while it started; its console says:\n{self.console_tail()}")
            if time.monotonic() > deadline:
                raise HostError(f"{self.name} is not up after {timeout:.0f} s; its console:\n{self.console_tail()}")
            time.sleep(0.2)

    def power_cut(self) -> None:
        """End it at once, as pulling the plug does: what its kernel had not written to disk is lost."""
        detached.kill(self._record)

    def shut_down(self, timeout: float = 90.0) -> None:
        """Power off in order, so that its disk is clean. Raises HostError after `timeout` seconds."""
        process = self.process
        if process is None:
            return
        with contextlib.suppress(HostError):  # the connection may end before the answer
            self.run("systemctl poweroff", timeout=20, check=False)
        deadline = time.monotonic() + timeout
        while process.is_alive():
            if time.monotonic() > deadline:
                raise HostError(f"{self.name} is not off after {timeout:.0f} s; its console:\n{self.console_tail()}")
            time.sleep(0.1)
        self.power_cut()  # what its kernel left behind on this machine

    def cut_network(self) -> None:
        """Pull its network cable: it runs on, alone."""
        self._network.plug(self.index, connected=False)

    def restore_network(self) -> None:
        """Put its network cable back."""
        self._network.plug(self.index, connected=True)

    @property
    def is_connected(self) -> bool:
        """Whether its network cable is in."""
        return self._network.is_plugged(self.index)

    def console_tail(self, lines: int = 15) -> str:
        """The last lines of its console."""
        try:
            return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no console)"

    # ---- commands ----------------------------------------------------------------------------------------------

    def run(
        self, command: str | Sequence[str], *, timeout: float = 120, check: bool = True, stdin: str | None = None
    ) -> str:
        """Standard output of `command` (a shell line or words), run as root.

        Raises HostError when the host is not reached, when the command does not end within `timeout` seconds or,
        unless `check` is off, when it fails.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        done = self._ssh(line, timeout, stdin)
        if done.returncode != 0 and (check or done.returncode == _SSH_FAILED):
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise HostError(f"{self.name}: `{line}` failed with {done.returncode}: {said}")
        return done.stdout

    def succeeds(self, command: str | Sequence[str], *, timeout: float = 120) -> bool:
        """Whether `command`, run as root, ends well. Raises HostError after `timeout` seconds."""
        line = command if isinstance(command, str) else shlex.join(command)
        return self._ssh(line, timeout, None).returncode == 0

    def copy(self, source: Path, target: str, *, timeout: float = 600) -> None:
        """Copy the file or folder `source` of this machine to `target` on the host. Raises HostError."""
        argv = ["scp", *self.ssh_options, "-q", "-r", str(source), f"root@{self.address}:{target}"]
        try:
            shell.run(argv, timeout=timeout)
        except shell.CommandFailed as exc:
            raise HostError(f"{self.name}: {source} could not be copied: {exc}") from exc

    def write(self, target: str, text: str) -> None:
        """Replace the host's file `target` by `text`. Raises HostError."""
        self.run(f"cat > {shlex.quote(target)}", stdin=text)

    def read(self, path: str) -> str:
        """The host's file `path`. Raises HostError."""
        return self.run(["cat", path])

    @property
    def ssh_options(self) -> list[str]:
        """For ssh and scp: this lab's key and known hosts, and nothing of the person's own configuration."""
        options = {
            "IdentityFile": str(self._ssh_folder / "ssh_key"),
            "UserKnownHostsFile": str(self._ssh_folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "6",
        }
        return ["-F", "/dev/null", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]

    def _ssh(self, line: str, timeout: float, stdin: str | None) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                ["ssh", *self.ssh_options, f"root@{self.address}", "--", line],
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name}: `{line}` did not end within {timeout:.0f} s") from None

    def _greets(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), 2) as connection:
                connection.settimeout(5)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _power_on(self) -> None:
        run = self.folder / "uml"
        shutil.rmtree(run, ignore_errors=True)  # of a kernel that was killed
        run.mkdir()
        network = self._network
        # Without gro downloads hang silently.
        card = f"transport=tap,ifname={network.tap(self.index)},mac={network.mac(self.index)},depth=128,gro=1"
        # Each system call of a guest hands over between two processes here. On two cores each of these wakes the other
        # core, on one it is a switch: measured in a guest under load, fork and exec take 20 ms instead of 100.
        cores = sorted(os.sched_getaffinity(0))
        argv = [
            *("taskset", "--cpu-list", str(cores[self.index % len(cores)])),
            *(str(self._kernel), f"mem={self._memory}", f"umid={self.name}", "uml_dir=uml"),
            *(f"ubd0={self.disk}", "root=/dev/ubda", "rw", "rootflags=barrier=0", f"vec0:{card}"),
            *("con=null", "con0=null,fd:1", "quiet", "systemd.show_status=0"),
            *(f"systemd.hostname={self.name}", f"hostname={self.name}", f"lab.zone={self._zone}"),
            *(f"lab.address={self.address}/24", f"lab.address6={self.address6}/64"),
            *(f"lab.gateway={network.gateway}", f"lab.mtu={mtu()}"),
        ]
        if detached.start(argv, record=self._record, log=self.console, folder=self.folder) is None:
            raise HostError(f"{self.name} did not start; its console says:\n{self.console_tail()}")
