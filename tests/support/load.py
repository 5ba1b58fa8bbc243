"""Steady load from outside on several addresses at once, and the account of every request.

    with Load(["10.0.0.2", "10.0.0.3"], host="demo.example.test", rate=150, ca=ca_file) as load:
        …                                  # what must not cost a request
    load.report().check()                  # AssertionError with all there is to know, unless nothing failed

It runs in a process of its own, so that neither side disturbs the other, which ends with the one that started it. What
counts as failure and as retry stands in `tests.support.load_generator`. By hand, with a report as JSON:

    .venv/bin/python -m tests.support.load --host demo.example.test --ca ca.pem --seconds 20 10.0.0.2 10.0.0.3
"""

import argparse
import asyncio
import json
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.wait import until

# Shares of the requests; `websocket` is one an address, whatever its share.
MIX = {"http": 3, "https": 5, "keepalive": 6, "http2": 4, "post": 2, "websocket": 1}


@dataclass(frozen=True)
class Figures:
    """Times are milliseconds from when a request was due to its whole answer; None when nothing was answered."""

    requests: int
    failures: int
    retries: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True)
class AddressFigures(Figures):
    longest_gap_s: float  # the longest time without any good answer, pauses left out
    longest_gap_began: float  # seconds since 1970
    websocket_since: float | None  # since when the one that is open now is open; None: none is


@dataclass(frozen=True)
class Failure:
    time: float  # seconds since 1970
    address: str
    kind: str
    error: str


@dataclass(frozen=True)
class WebsocketEnd:
    """The server, or the way to it, ended a websocket."""

    address: str
    opened: float  # seconds since 1970, as is `closed`
    closed: float
    lived_s: float
    how: str


@dataclass(frozen=True)
class Report:
    seconds: float
    total: Figures
    kinds: dict[str, Figures]
    phases: dict[str, Figures]
    addresses: dict[str, AddressFigures]
    first_failures: list[Failure]
    errors: dict[str, int]  # "kind: error" → how often
    websockets: list[WebsocketEnd]
    withheld: int  # requests that were due and not made, for too many were under way or this machine was too busy
    worst_lag_ms: float  # how late the generator itself was at worst: large means that this machine was too busy

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Report":
        return cls(
            seconds=said["seconds"],
            total=Figures(**said["total"]),
            kinds={name: Figures(**figures) for name, figures in said["kinds"].items()},
            phases={name: Figures(**figures) for name, figures in said["phases"].items()},
            addresses={name: AddressFigures(**figures) for name, figures in said["addresses"].items()},
            first_failures=[Failure(**failure) for failure in said["first_failures"]],
            errors=said["errors"],
            websockets=[WebsocketEnd(**end) for end in said["websockets"]],
            withheld=said["withheld"],
            worst_lag_ms=said["worst_lag_ms"],
        )

    def check(self, failures: int = 0) -> "Report":
        """Itself, when at most `failures` requests failed and every kind was asked and answered.

        Raises AssertionError with the account."""
        silent = [kind for kind, figures in self.kinds.items() if figures.requests == figures.failures]
        assert self.total.failures <= failures, str(self)
        assert not silent, f"never answered: {', '.join(silent)}\n{self}"
        return self

    def __str__(self) -> str:
        lines = [
            f"{self.seconds:.0f} s, worst lag {self.worst_lag_ms:.0f} ms, {self.withheld} requests withheld",
            *(_line(name, figures) for name, figures in {**self.kinds, "total": self.total}.items()),
            *(_line(f"phase {name}", figures) for name, figures in self.phases.items()),
        ]
        for address, of in self.addresses.items():
            lines.append(f"{_line(address, of)}, longest gap {of.longest_gap_s:.2f} s")
        lines += [f"{count} × {error}" for error, count in self.errors.items()]
        lines += [f"{item.time:.3f} {item.address} {item.kind}: {item.error}" for item in self.first_failures]
        lines += [f"websocket {end.address} lived {end.lived_s:.1f} s: {end.how}" for end in self.websockets]
        return "\n".join(lines)


def _line(name: str, figures: Figures) -> str:
    times = f"p50 {figures.p50_ms} ms, p99 {figures.p99_ms} ms, max {figures.max_ms} ms"
    return f"{name}: {figures.failures} of {figures.requests} failed, {figures.retries} retries, {times}"


class Load:
    """A running load; `rate` is requests per second over all addresses together, websockets not counted.

    `addresses` are asked for `host` on `http_port` and `https_port`; certificates are checked against the file `ca`.
    Raises AssertionError when the generator cannot start or died, with what it said.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        host: str,
        rate: float,
        ca: Path,
        http_port: int = 80,
        https_port: int = 443,
        mix: Mapping[str, int] = MIX,
    ) -> None:
        self._arguments = [
            *(f"--host={host}", f"--rate={rate}", f"--ca={ca}"),
            *(f"--http-port={http_port}", f"--https-port={https_port}", f"--mix={json.dumps(dict(mix))}"),
            *addresses,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._report: Report | None = None

    def __enter__(self) -> "Load":
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C goes to the tests, whose end it follows
        )
        try:
            self._read()
        except AssertionError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        try:
            if self._process.poll() is None:
                self._report = Report.of(self._say(do="stop"))
        except AssertionError:
            if exc is None:
                raise
        finally:
            self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.communicate()
        self._errors.close()

    def report(self) -> Report:
        """So far, or, after the end, of all."""
        if self._process is None:
            assert self._report is not None, "the load did not come to its end"
            return self._report
        return Report.of(self._say(do="report"))

    def phase(self, name: str) -> None:
        """Count what is due from now on under `name` as well; phases of one name add up."""
        self._say(do="phase", name=name)

    def pause(self, address: str) -> None:
        """Take `address` out as a load balancer would: what is under way comes to its end, what idles is closed.

        Its websocket stays as long as the server keeps it."""
        self._say(do="pause", address=address)

    def resume(self, address: str) -> None:
        self._say(do="resume", address=address)

    def wait(self, requests: int, timeout: float) -> None:
        """Return when `requests` more requests have come to their end. AssertionError after `timeout` seconds."""
        wanted = self.report().total.requests + requests
        until(lambda: self.report().total.requests >= wanted, timeout, f"{requests} more requests", every=0.25)

    def _say(self, **command: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it died: _read tells with what words
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 30)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._errors.seek(0)
            raise AssertionError(f"the load generator does not answer: {self._errors.read().decode()[-2000:]}")
        said: dict[str, Any] = json.loads(line)
        return said


def main() -> None:
    parser = argparse.ArgumentParser(description="Load on HTTP servers; a report as JSON.")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--host", required=True, help="the site that is asked for")
    parser.add_argument("--rate", type=float, default=100, help="requests per second, all addresses together")
    parser.add_argument("--ca", type=Path, required=True, help="root certificates, a PEM file")
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--https-port", type=int, default=443)
    parser.add_argument("--mix", type=json.loads, default=MIX, help="JSON: kind to share")
    parser.add_argument("--seconds", type=float, help="how long; else until standard input ends")
    arguments = vars(parser.parse_args())
    seconds = arguments.pop("seconds")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    from tests.support.load_generator import run, say  # only the process that makes the load needs its libraries

    say(asyncio.run(run(arguments, seconds)))


if __name__ == "__main__":
    main()
