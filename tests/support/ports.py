"""The holder of the ports and those who borrow from it, as real processes of the stack's own user."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lyttle_ops.ports import privileges
from tests.support import loopback
from tests.support.wait import until

# What runs as root becomes the stack's user by itself; else all of it is this user's.
USER = privileges.USER if os.geteuid() == 0 else os.geteuid()
ROOT = Path(__file__).parents[2]


def port6() -> int:
    """A free port on ::1, below 32768."""
    while True:
        candidate = loopback.port("127.0.0.1")
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", candidate))
            except OSError:
                continue
            return candidate


class Program:
    """A process whose output is collected."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.output: list[str] = []
        self.process = subprocess.Popen(
            list(command),
            env={"PATH": os.environ["PATH"], **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout:
            self.output.extend(self.process.stdout)

    def text(self) -> str:
        return "".join(self.output)

    def says(self, text: str, timeout: float = 15) -> None:
        until(lambda: text in self.text(), timeout, f"{text!r} in the output: {self.text()}")

    def wait(self, timeout: float = 30) -> int:
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()


class Machine:
    """The folder that holders and nodes share, the addresses they fight for, and all processes on it.

    `user`: whom the holder becomes and listens to, when this is root.
    """

    def __init__(self, user: int = USER) -> None:
        self._user = user
        self.folder = Path(tempfile.mkdtemp(prefix="lyttle-ports-", dir="/dev/shm"))
        os.chown(self.folder, user, -1)
        self.socket = self.folder / "ports.sock"
        self.host = loopback.address()
        self.http = f"{self.host}:{loopback.port(self.host)}"
        self.http6 = f"[::1]:{port6()}"
        self.https = f"{self.host}:{loopback.port(self.host)}"
        self.api = f"{self.host}:{loopback.port(self.host)}"
        self.programs: list[Program] = []

    @property
    def addresses(self) -> list[str]:
        return [self.http, self.http6, self.https, self.api]

    def holder(self, **changes: str) -> Program:
        """`lyttle-ops ports`; it need not hold anything yet."""
        environment = {
            "PORTS_SOCKET": str(self.socket),
            "HTTP_LISTEN": f"{self.http},{self.http6}",
            "HTTPS_LISTEN": self.https,
            "API_LISTEN": self.api,
            "LOG_FORMAT": "text",
            **changes,
        }
        code = f"from lyttle_ops import cli; from lyttle_ops.ports import privileges; privileges.USER = {self._user}"
        self.programs.append(Program([sys.executable, "-c", f"{code}; cli.main()", "ports"], environment))
        return self.programs[-1]

    def borrower(self, name: str, *addresses: str, patience: float = 30.0) -> Program:
        """A node that serves these addresses (default: all) with borrowed sockets; it need not have them yet.

        `patience`: seconds it waits for a holder.
        """
        command = [
            sys.executable, "-m", "tests.support.borrower", str(self.socket), name, *(addresses or self.addresses)
        ]  # fmt: skip
        self.programs.append(Program(command, {"PATIENCE": str(patience)}))
        return self.programs[-1]

    def close(self) -> None:
        for each in reversed(self.programs):
            if each.process.poll() is None:
                each.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def ask(address: str, timeout: float = 5.0) -> str:
    """What answers a fresh connection. Raises OSError; TimeoutError when it waits in a queue nobody empties."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout) as connection:
        answer = connection.makefile().read()
    if not answer:
        raise ConnectionError("hung up without a word")
    return answer


class Clients:
    """Fresh connections, one after the other on each address, until the end of the block.

    `ask` gives the name of whoever answered at an address, or raises OSError.
    """

    def __init__(self, addresses: Sequence[str], ask: Callable[[str], str] = ask) -> None:
        self._ask = ask
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self.slowest = 0.0
        self._end = threading.Event()
        self._mutex = threading.Lock()
        self._threads = [threading.Thread(target=self._loop, args=(address,)) for address in addresses]

    def __enter__(self) -> "Clients":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for each in self._threads:
            each.join()

    def answered(self, name: str) -> int:
        with self._mutex:
            return self.answers.get(name, 0)

    def _loop(self, address: str) -> None:
        while not self._end.is_set():
            started = time.monotonic()
            try:
                answer = self._ask(address)
            except OSError as exc:
                with self._mutex:
                    self.failures.append(f"{address}: {exc!r}")
                continue
            with self._mutex:
                self.answers[answer] = self.answers.get(answer, 0) + 1
                self.slowest = max(self.slowest, time.monotonic() - started)
            time.sleep(0.002)  # a client, not a flood


@contextmanager
def machine(user: int = USER) -> Iterator[Machine]:
    made = Machine(user)
    try:
        yield made
    finally:
        made.close()
