"""Calls to a CA: each with a deadline, none retried but for a refused nonce, the answer's headers remembered."""

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from acme import client, messages
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from lyttle_ops.certificates.problems import CAUnreachable
from lyttle_ops.clock import Clock

log = logging.getLogger(__name__)

CALL_TIMEOUT = 10.0  # seconds to connect, and for each silence while reading
CALL_TOTAL = 30.0  # seconds for one call, however busily the CA trickles
ORDER_TIMEOUT = 90.0  # seconds for everything one call of ensure_certificate does with the CA
NONCE_TRIES = 10


class Stopping(Exception):
    """This node is stopping; the order stays as it is for whoever comes next."""


class Deadline:
    """Asked before each call: how many seconds may it take? Raises what forbids it.

    `seconds` is for the whole conversation (None: each call for itself); `also` is called before each call.
    """

    def __init__(
        self,
        seconds: float | None,
        stop: threading.Event,
        clock: Clock,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self.clock = clock
        self._seconds = seconds
        self._end = None if seconds is None else clock.monotonic() + seconds
        self._stop = stop
        self._also = also

    def check(self) -> float:
        """Seconds the next call may take, at most CALL_TIMEOUT. Raises Stopping, CAUnreachable, what `also` raises."""
        if self._stop.is_set():
            raise Stopping
        self._also()
        return min(CALL_TIMEOUT, self.left())

    def left(self) -> float:
        """Seconds until the end. Raises CAUnreachable when there are none."""
        if self._end is None:
            return CALL_TIMEOUT
        left = self._end - self.clock.monotonic()
        if left <= 0:
            raise CAUnreachable(f"the CA was not done within {self._seconds:.0f} s; the order will be resumed")
        return left

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end or when the node stops."""
        self._stop.wait(min(seconds, self.left()))


class Transport(HTTPAdapter):
    """Checks the deadline before each call, ends a call that outlives it, and remembers what errors need of the answer.

    The library's time-outs are for each silence; a CA that sends a byte now and then would never meet one, so the
    connection is cut when the whole call takes too long.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._connections: list[HTTPConnection] = []
        self._was_cut = False
        super().__init__(max_retries=0)
        self._deadline = deadline
        self.status: int | None = None
        self.retry_after: float | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        opened = self._connections

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                opened.append(self)

        class Secured(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                opened.append(self)

        self.poolmanager.pool_classes_by_scheme = {
            "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
            "https": type("Pool", (HTTPSConnectionPool,), {"ConnectionCls": Secured}),
        }

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self.status = self.retry_after = None
        self._was_cut = False
        kwargs["timeout"] = self._deadline.check()
        cut = threading.Timer(min(CALL_TOTAL, self._deadline.left()), self._cut)
        cut.daemon = True
        cut.start()
        try:
            response = super().send(request, *args, **kwargs)
            response.content  # noqa: B018 - reads the body, while the timer watches
        finally:
            cut.cancel()
        if self._was_cut:  # what came until then may look like a whole answer
            raise requests.ReadTimeout(request=request)
        self.status, self.retry_after = response.status_code, _retry_after(response)
        return response

    def _cut(self) -> None:
        self._was_cut = True
        for connection in self._connections:
            if connection.sock is not None:
                with suppress(OSError):
                    # Past the TLS layer, which another thread is using: it sees the end of the stream.
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        # urllib3 leaves closing to the garbage collector, and an error's traceback keeps its pool alive.
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 - urllib3's container forbids iteration
            self.poolmanager.pools[key].close()
        super().close()


class Network(client.ClientNetwork):
    """The library tries a bad nonce once more; a CA under load may refuse several in a row (RFC 8555 6.5)."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as exc:
                if exc.code != "badNonce":
                    raise
                log.debug("The CA refused a nonce, trying another")
        return super().post(*args, **kwargs)


def _retry_after(response: requests.Response) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110 10.2.3)."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def reason(exc: requests.RequestException) -> str:
    if isinstance(exc, requests.ConnectTimeout):
        return f"did not accept a connection within {CALL_TIMEOUT:.0f} s"
    if isinstance(exc, requests.Timeout):
        return "did not answer within the time it has"
    deepest: BaseException = exc
    seen = set()
    while (inner := deepest.__cause__ or deepest.__context__ or getattr(deepest, "reason", None)) is not None:
        if not isinstance(inner, BaseException) or id(inner) in seen:
            break
        seen.add(id(inner))
        deepest = inner
    words = getattr(deepest, "strerror", None) or str(deepest) or type(deepest).__name__
    return f"does not prove who it is: {words}" if isinstance(exc, requests.exceptions.SSLError) else f"failed: {words}"
