"""Addresses are looked at before a start, with patience for a process that is just ending."""

import socket
import threading
import time

import pytest

from lyttle_ops.local.layout import Endpoint
from lyttle_ops.local.listeners import AddressBusy, check_free
from tests.support import loopback


def test_a_port_whose_holder_is_just_ending_is_waited_for() -> None:
    host = loopback.address()
    holder = socket.create_server((host, loopback.port(host)))
    endpoint = Endpoint(host, holder.getsockname()[1], "API of n1")
    with pytest.raises(AddressBusy, match="API of n1"):
        check_free([endpoint])
    ending = threading.Timer(0.3, holder.close)
    ending.start()
    started = time.monotonic()
    check_free([endpoint], patience=5)
    assert time.monotonic() - started < 4
    ending.join()
