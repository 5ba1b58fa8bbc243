"""Addresses nobody else uses: a random /24 of 127.0.0.0/8 a test run, so that ports never collide."""

import random
import socket
from itertools import count

_random = random.SystemRandom()
_BASE = f"127.{_random.randrange(16, 250)}.{_random.randrange(1, 250)}"
_next = count(1)
_given: set[tuple[str, int]] = set()


def address() -> str:
    """A loopback address that no other test of this run gets."""
    return f"{_BASE}.{next(_next)}"


def port(host: str) -> int:
    """A free port on `host`, below 32768 (above lies the kernel's own range), that was not given to anybody before."""
    while True:
        candidate = _random.randrange(10000, 32000)
        if (host, candidate) in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
        _given.add((host, candidate))
        return candidate
