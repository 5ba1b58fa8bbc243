"""Calls to a CA on a bad network: the whole call has an end, not only each silence in it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import requests

from lyttle_ops.certificates.network import Deadline, Transport
from lyttle_ops.clock import SystemClock
from tests.support import loopback


@pytest.fixture(params=["in the header", "in the body"])
def trickler(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that sends a byte every 50 ms and never ends; its URL."""
    host = loopback.address()
    listener = socket.create_server((host, loopback.port(host)))
    stop = threading.Event()
    begin = b"HTTP/1.1 200 OK\r\n"
    if request.param == "in the body":
        begin += b"Content-Length: 1000000\r\n\r\n"

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(begin)
                while not stop.wait(0.05):
                    connection.sendall(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://{host}:{listener.getsockname()[1]}/dir"
    stop.set()
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_ca_that_trickles_is_cut_off_at_the_deadline(trickler: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        transport = Transport(Deadline(1.0, threading.Event(), SystemClock()))
        session.mount("http://", transport)
        started = time.monotonic()
        with pytest.raises(requests.RequestException):
            session.get(trickler)
        assert time.monotonic() - started < 5
        transport.close()
