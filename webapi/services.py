"""What a request needs from the process: settings, database, keys; made once by create_app."""

import ipaddress
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Request, current_app

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import Database, DatabaseUnavailable
from lyttle_ops.settings import Settings

_SLOW_FAILURE = 1.0  # seconds
_GATE_CLOSED = 1.0  # seconds


class DatabaseGate:
    """Fails requests at once for a second after one has waited in vain.

    With PostgreSQL away each request would hold one of the few threads for the pool's time-out, and health
    checks would queue behind them. One request a second still tries.
    """

    def __init__(self) -> None:
        self._closed_until = 0.0

    def check(self) -> None:
        """Raises DatabaseUnavailable while the gate is closed."""
        if time.monotonic() < self._closed_until:
            raise DatabaseUnavailable("PostgreSQL could not be reached a moment ago")

    def report_failure(self, started: float) -> None:
        """Close the gate if the request that began at `started` (monotonic) lost time; a quick failure is cheap."""
        now = time.monotonic()
        if now - started > _SLOW_FAILURE:
            self._closed_until = now + _GATE_CLOSED


@dataclass(frozen=True)
class Services:
    """The process's parts."""

    settings: Settings
    database: Database
    keyring: Keyring
    instance_dir: Path | None  # the instance's run directory; None when started without a node
    gate: DatabaseGate = field(default_factory=DatabaseGate)


def services() -> Services:
    """The parts of the app that handles the current request."""
    found: Services = current_app.extensions["lyttle_ops"]
    return found


def client_address(request: Request) -> str:
    """The client's IP address; "" over a unix socket.

    X-Forwarded-For is believed when it comes from TRUSTED_LOAD_BALANCERS, and from nowhere else: anybody on this
    machine can write a header, and would get a fresh log-in limit with each address in it. The address is the last
    one that is not trusted itself: what stands further left is the client's own claim. A proxy on this machine that
    passes the API on is named there too (127.0.0.0/8), or its clients share one limit.
    """
    address = request.remote_addr or ""
    trusted = [ipaddress.ip_network(network) for network in services().settings.trusted_load_balancers]
    forwarded = ",".join(request.headers.getlist("X-Forwarded-For")).split(",")
    for hop in reversed([hop.strip() for hop in forwarded if hop.strip()]):
        if not _is_trusted(address, trusted):
            break
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            break
        address = hop
    return address


def read_status() -> dict[str, Any] | None:
    """The node's status file; None when it is missing or unreadable. It is replaced atomically."""
    folder = services().instance_dir
    if folder is None:
        return None
    try:
        status = json.loads((folder / "status.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def _is_trusted(address: str, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False  # a unix socket has no address that could be named
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # how a listener on [::] sees an IPv4 client
    return any(parsed in network for network in networks)
