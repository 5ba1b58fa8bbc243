"""Looks at what this instance consists of: NGINX, the API, PostgreSQL. None asks PostgreSQL anything."""

import errno
import http.client
import ipaddress
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lyttle_ops.clock import Clock
from lyttle_ops.nginx.releases import NGINX

log = logging.getLogger(__name__)

DATABASE_SILENCE = 45.0  # seconds without an accepted heartbeat that count as PostgreSQL being away

Check = dict[str, Any]  # {"ok": bool, "message": str}


def look_at_nginx(nginx: NGINX, addresses: Iterable[str]) -> Check:
    """Whether it runs and answers on its own socket, has the ports that were lent to it, and those in `addresses`."""
    if not nginx.is_running():
        return _bad("NGINX does not run")
    if nginx.live_release() is None:
        return _bad("NGINX does not answer")
    # Its unix socket says nothing about the ports.
    if not nginx.has_held_sockets():
        return _bad("NGINX does not have the ports that this node took")
    for address in addresses:
        error = _connect(address)
        if error:
            return _bad(f"nothing answers on {address}: {error}")
    return _good("NGINX answers")


def look_at_release(nginx: NGINX, applied: str | None, error: str | None) -> Check:
    """Whether NGINX serves the release that was applied last, and nothing newer failed."""
    live = nginx.live_release() if nginx.is_running() else None
    if live is None or live != applied:
        return _bad(f"NGINX serves release {live}, applied is {applied}")
    return _bad(error) if error else _good(f"release {live}")


def look_at_api(path: Path) -> Check:
    """Whether this instance's API answers on its own unix socket; a shared port might be another's."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        answer.read()
        return _good("the API answers") if answer.status == 200 else _bad(f"the API answers {answer.status}")
    except (OSError, http.client.HTTPException) as exc:
        return _bad(f"the API does not answer: {exc}")
    finally:
        connection.close()


class DatabaseHealth:
    """What is known of PostgreSQL from what was asked anyway."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answered_at: float | None = None  # monotonic seconds
        self.error: str | None = "not asked yet"
        self.last_ok_at: float | None = None  # unix seconds, for people

    def answered(self) -> None:
        if self._answered_at is not None and self.error is not None:
            log.info("PostgreSQL is back")
        self._answered_at = self._clock.monotonic()
        self.last_ok_at = self._clock.now().timestamp()
        self.error = None

    def failed(self, error: Exception) -> None:
        text = " ".join(str(error).split())  # libpq's has lines; here it is part of one
        if self.error is None:
            log.warning("PostgreSQL: %s", text)
        self.error = text

    def look(self, listening: bool) -> Check:
        """`listening`: whether the session that listens for events lives."""
        if self.error is not None or self._answered_at is None:
            return _bad(self.error or "not asked yet")
        silence = self._clock.monotonic() - self._answered_at
        if silence > DATABASE_SILENCE:
            return _bad(f"PostgreSQL has not answered for {silence:.0f} s")
        return _good("PostgreSQL answers") if listening else _bad("the session that listens for events is lost")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=2)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _good(message: str) -> Check:
    return {"ok": True, "message": message}


def _bad(message: str) -> Check:
    return {"ok": False, "message": message}


def _connect(address: str) -> str | None:
    """Why a TCP connection to a listen address of this machine fails, None when it does not."""
    host, _, port = address.rpartition(":")
    ip = ipaddress.ip_address(host.strip("[]"))
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    try:
        socket.create_connection((str(ip), int(port)), timeout=2).close()
        return None
    except OSError as exc:
        if exc.errno == errno.EADDRNOTAVAIL and str(ip) == "::1":
            return None  # as in most containers: the kernel has IPv6, this network does not, so nobody comes that way
        return exc.strerror or str(exc)
