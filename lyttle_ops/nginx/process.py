"""The NGINX program: how it is started, tested and told to reload, and which processes are this instance's own."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from lyttle_ops.nginx.errors import NGINXMissing, ReleaseFailed

SOCKETS = ("nginx.sock", "nginx-tls.sock", "rehearsal.sock")

_ERROR = re.compile(r"\[(?:emerg|alert|crit|error)\] (?:\d+#\d+: )?(?:\*\d+ )?(.*)")
_LOG_LINE = re.compile(r"(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d|nginx:) \[(\w+)\] (?:\d+#\d+: )?(.*)", re.DOTALL)
_LEVELS = {
    "emerg": "CRITICAL", "alert": "CRITICAL", "crit": "CRITICAL", "error": "ERROR", "warn": "WARNING",
    "notice": "INFO", "info": "INFO", "debug": "DEBUG",
}  # fmt: skip


def installed_version(program: str = "nginx") -> tuple[int, int, int]:
    """What `nginx -v` says. Raises NGINXMissing."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/usr/local/nginx/sbin")
    if not path:
        raise NGINXMissing
    said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", said.stderr)
    if not found:
        raise NGINXMissing(f"{path} is no NGINX: {said.stderr.strip()[:200]}")
    return int(found[1]), int(found[2]), int(found[3])


def read_log_line(line: str) -> tuple[str, str]:
    """Level (as logging names it) and message of a line of NGINX's error log; INFO and the line for any other."""
    found = _LOG_LINE.fullmatch(line.rstrip("\n"))
    return (_LEVELS.get(found[1], "INFO"), found[2]) if found else ("INFO", line.rstrip("\n"))


class Process:
    """The NGINX whose prefix is `folder`.

    `held` are listening sockets (file descriptors) that somebody else bound: NGINX takes them over through its own
    environment variable, for a start as for a test, instead of binding.
    """

    def __init__(self, folder: Path, program: str = "nginx", held: Callable[[], Sequence[int]] = tuple) -> None:
        self._folder = folder
        self._program = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin") or program
        self.held = held

    def command(self, configuration: Path | None = None) -> list[str]:
        """argv that runs NGINX in the foreground, with the live release unless told otherwise."""
        file = configuration or self._folder / "live" / "nginx.conf"
        return [self._program, "-e", "stderr", "-p", f"{self._folder}/", "-c", str(file)]

    def environment(self) -> dict[str, str]:
        """What a start needs besides the caller's own environment."""
        held = self.held()
        return {"NGINX": "".join(f"{descriptor};" for descriptor in held)} if held else {}

    def test(self, configuration: Path) -> str | None:
        """None when `nginx -t` accepts it, else its own words.

        A running NGINX is not disturbed: an address in use is no error in a test, and its pid file is left alone.

        Raises NGINXMissing, and ReleaseFailed after two minutes.
        """
        # Not our own environment: it holds secrets.
        environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), **self.environment()}
        try:
            tested = subprocess.run(
                [*self.command(configuration), "-t", "-q"], env=environment, pass_fds=self.held(), timeout=120,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, errors="replace",
            )  # fmt: skip
        except FileNotFoundError:
            raise NGINXMissing from None
        except subprocess.TimeoutExpired:
            raise ReleaseFailed("`nginx -t` did not end within two minutes") from None
        if tested.returncode == 0:
            return None
        messages = list(dict.fromkeys(_ERROR.findall(tested.stderr)))
        return "; ".join(messages) or tested.stderr.strip() or f"`nginx -t` ended with {tested.returncode}"

    def master(self) -> psutil.Process | None:
        """The running master, None when there is none. A pid that now belongs to something else is not taken for it."""
        try:
            process = psutil.Process(int((self._folder / "nginx.pid").read_text()))
            ours = f"-p {self._folder}/ " in " ".join(process.cmdline())
            return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, psutil.Error):
            return None

    def has_held_sockets(self) -> bool:
        """Whether the running master has all of `held` open: True when there are none."""
        held = self.held()
        if not held:
            return True
        master = self.master()
        try:
            wanted = {os.fstat(descriptor).st_ino for descriptor in held}
            found = {file.stat().st_ino for file in Path(f"/proc/{master.pid}/fd").iterdir()} if master else set()
        except OSError:  # it ended meanwhile, or the sockets were given back
            return False
        return wanted <= found

    def accepting_workers(self) -> set[int]:
        """Pids of the master's workers that still take connections."""
        try:
            master = self.master()
            return {child.pid for child in (master.children() if master else ()) if _accepts(child)}
        except psutil.Error:  # it ended meanwhile
            return set()

    def reload(self) -> None:
        """Tell the master to load the live release; nothing happens when none runs."""
        master = self.master()
        if master:
            with suppress(psutil.Error):
                master.send_signal(signal.SIGHUP)

    def prepare_start(self) -> None:
        """Make room for a start: end what an earlier run of this instance left, remove its sockets and pid file.

        After kill -9 of the master its workers serve on and hold every socket. They are recognised by the UNIX sockets
        of this very folder, so no other instance's process is touched. They get SIGQUIT, which frees the sockets at
        once and lets requests in flight finish; what still holds a socket two seconds later is killed.
        """
        master = self.master()
        if master:
            # Not SIGQUIT: a master that lingers removes the pid file at its end, which would be its successor's.
            _end(master, signal.SIGTERM, 5.0)
        for process in self._holders():
            with suppress(psutil.Error):
                is_master = "master process" in " ".join(process.cmdline())
                process.send_signal(signal.SIGTERM if is_master else signal.SIGQUIT)
        remaining = self._wait_for_holders(2.0)
        for process in remaining:
            _end(process, signal.SIGKILL, 5.0)
        for name in (*SOCKETS, "nginx.pid"):
            (self._folder / name).unlink(missing_ok=True)

    def _wait_for_holders(self, timeout: float) -> list[psutil.Process]:
        holders = self._holders()
        for _ in range(int(timeout / 0.05)):
            if not holders:
                break
            psutil.wait_procs(holders, timeout=0.05)
            holders = self._holders()
        return holders

    def _holders(self) -> list[psutil.Process]:
        """NGINX processes that hold one of this folder's UNIX sockets open."""
        paths = {str(self._folder / name) for name in SOCKETS}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() != "nginx" or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if any(str(connection.laddr) in paths for connection in process.net_connections("unix")):
                    found.append(process)
        return found


def _accepts(worker: psutil.Process) -> bool:
    # A worker renames itself before it closes its listeners (ngx_worker_process_cycle).
    try:
        title = " ".join(worker.cmdline())
        return worker.status() != psutil.STATUS_ZOMBIE and "worker process" in title and "shutting down" not in title
    except psutil.Error:
        return False


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop an NGINX that we started, at once; after five seconds by force."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end(process: psutil.Process, sign: signal.Signals, timeout: float) -> None:
    with suppress(psutil.Error):
        process.send_signal(sign)
        if process in psutil.wait_procs([process], timeout=timeout)[1]:
            process.kill()
            psutil.wait_procs([process], timeout=timeout)
