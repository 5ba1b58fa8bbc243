"""The load generator's account: how many requests ended how, and what each address is in the middle of."""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.load_clients import Http1, Http2


@dataclass
class Tally:
    """Requests of one kind in one phase."""

    requests: int = 0
    failures: int = 0
    retries: int = 0
    milliseconds: "array[float]" = field(default_factory=lambda: array("f"))  # of those that did not fail

    def figures(self) -> dict[str, Any]:
        times = sorted(self.milliseconds)

        def share(part: float) -> float | None:
            return round(times[min(len(times) - 1, int(len(times) * part))], 2) if times else None

        figures = {"requests": self.requests, "failures": self.failures, "retries": self.retries}
        return {**figures, "p50_ms": share(0.5), "p99_ms": share(0.99), "max_ms": share(1.0)}

    def add(self, other: "Tally") -> None:
        self.requests += other.requests
        self.failures += other.failures
        self.retries += other.retries
        self.milliseconds.extend(other.milliseconds)


class Target:
    """One address under load."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.tally = Tally()
        self.active = asyncio.Event()
        self.active.set()
        self.underway = 0
        self.kept: deque[Http1] = deque()
        self.http2: Http2 | None = None
        self.connecting: asyncio.Task[Http2] | None = None
        self.longest_gap = 0.0
        self.gap_began = 0.0  # wall clock, of the longest gap
        self.last_answer = time.monotonic()
        self.websocket_since: float | None = None

    def answered(self) -> None:
        now = time.monotonic()
        if now - self.last_answer > self.longest_gap:
            self.longest_gap = now - self.last_answer
            self.gap_began = time.time() - self.longest_gap
        self.last_answer = now

    def pause(self) -> None:
        self.answered()
        self.active.clear()

    def hang_up(self) -> None:
        """Close what idles, as a load balancer does with an address that it took out."""
        while self.kept:
            self.kept.pop().close()
        if self.http2 is not None:
            self.http2.close()

    def resume(self) -> None:
        self.last_answer = time.monotonic()
        self.active.set()

    def figures(self) -> dict[str, Any]:
        if self.active.is_set():
            began, gap = self.last_answer, time.monotonic() - self.last_answer
            if gap > self.longest_gap:
                self.longest_gap, self.gap_began = gap, time.time() - (time.monotonic() - began)
        return {
            **self.tally.figures(),
            "longest_gap_s": round(self.longest_gap, 3),
            "longest_gap_began": round(self.gap_began, 3),
            "websocket_since": self.websocket_since,
        }


def total(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    whole = Tally()
    for tally in tallies.values():
        whole.add(tally)
    return whole.figures()
