"""Are the addresses free, and if not, who holds them?"""

import errno
import socket
import time
from collections.abc import Iterable

import psutil

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.local.layout import Endpoint

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound


class AddressBusy(LyttleOpsError):
    """An address that the local cluster needs is in use."""


def check_free(endpoints: Iterable[Endpoint], patience: float = 0.0) -> None:
    """Bind each once, the way servers do (SO_REUSEADDR). Raises AddressBusy naming port, holder and way out.

    `patience`: seconds for a process that is just ending to let go.
    """
    deadline = time.monotonic() + patience
    for endpoint in endpoints:
        while True:
            try:
                _bind(endpoint)
                break
            except OSError as exc:
                if time.monotonic() > deadline:
                    raise AddressBusy(_explain(endpoint, exc)) from None
            time.sleep(0.05)


def _bind(endpoint: Endpoint) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((endpoint.host, endpoint.port))
    if endpoint.udp:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind((endpoint.host, endpoint.port))


def _explain(endpoint: Endpoint, error: OSError) -> str:
    where = f"port {endpoint.port} on {endpoint.host} ({endpoint.purpose})"
    if error.errno != errno.EADDRINUSE:
        return f"{where} cannot be used: {error.strerror}; choose other addresses, as --base 127.78.0"
    holder, everywhere = _holder(endpoint)
    if everywhere:
        return f"{where} is held on all addresses by {holder}: stop that, or move every port, as --port-offset 1000"
    return f"{where} is held by {holder}: stop that, or choose other addresses, as --base 127.78.0"


def _holder(endpoint: Endpoint) -> tuple[str, bool]:
    """Who listens there, for people, and whether on all addresses."""
    for connection in psutil.net_connections("inet" if endpoint.udp else "tcp"):
        # A UDP socket has no state; a client's TCP socket is no holder.
        if connection.status not in (psutil.CONN_LISTEN, psutil.CONN_NONE) or not connection.laddr:
            continue
        ip, port = connection.laddr
        host = ip.removeprefix("::ffff:")
        if port != endpoint.port:
            continue
        if host not in (endpoint.host, *_WILDCARDS):
            continue
        if connection.pid is None:
            return "a process of another user", host in _WILDCARDS
        try:
            name = psutil.Process(connection.pid).name()
        except psutil.Error:
            name = "a process"
        return f"{name} (process {connection.pid})", host in _WILDCARDS
    return "a process that cannot be seen from here", False
