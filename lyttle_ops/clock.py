"""Time as a dependency: production reads the machine's clocks, tests pass a clock of their own.

Durations inside one process are measured on the monotonic clock (seconds as float). Points in time
that nodes compare come from PostgreSQL (timestamptz), never from here.
"""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean something."""
        ...

    def now(self) -> datetime:
        """The wall clock, UTC and timezone-aware."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        # BOOTTIME also counts while a machine is suspended (clock_gettime(2)); MONOTONIC would let a
        # resumed leader trust a lock that is long gone.
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> datetime:
        return datetime.now(UTC)
