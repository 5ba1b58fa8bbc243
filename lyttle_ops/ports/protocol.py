"""How the listening sockets of a machine outlive the programs that serve them.

Two tasks of a start-first update cannot both bind a port, so neither does. The holder (`lyttle-ops ports`) binds every
address once and lends copies of the *listening sockets* over a UNIX socket (SCM_RIGHTS, unix(7)). All copies are one
accept queue: a connection waits there for whichever program takes it next, and no program's end refuses it while
another copy is open.

Messages are JSON objects, one per packet (SOCK_SEQPACKET), with sockets attached. A list of listeners names each
attached socket in order, as {"kind": "http", "address": "0.0.0.0:80"}. Only the holder's own user may speak
(SO_PEERCRED); everybody else is hung up on.

    node → holder     {"request": "take", "name": …, "listeners": […]} + copies that the node has
    holder → node     {"listeners": […]} + every listener
    successor → holder    {"request": "takeover"}        holder → successor    {"listeners": […]} + every open listener
    successor → holder    {"request": "mine"}            holder → successor    {"yours": true}
    anybody → holder      {"request": "status"}          holder → anybody      {"listeners": […], "nodes": […]}

Lease. The connection that took is the lease: it lasts until it is closed, by a node that gives the ports back or by the
kernel when the node dies. Without any lease for LEASE seconds the holder closes its sockets, so that clients are
refused instead of waiting in a queue that nobody empties; the next node that takes makes it bind again. A node that
stops gives its lease up and closes its copies first of all, and then finishes what is in flight.

The holder dies. The nodes' copies stay open, so clients notice nothing, and nobody else can bind the addresses. The
nodes look for a new holder every RETRY seconds and attach their copies to `take`; the new holder keeps those that it
lacks. When an address is still neither free nor handed back after ACQUIRE seconds, a stranger has it: the holder ends
with the address and exit code 1.

The holder is replaced (a start-first update of its own). The successor asks the one that answers on the socket for its
listeners, binds what is new, and only then says "mine": the predecessor closes its copies and its socket, hangs up on
all nodes, confirms, and waits to be stopped. The successor puts its own socket in place, and the nodes take again. From
first to last a copy of each socket that stays is open. A successor that fails before "mine" changes nothing; when it
dies later, its predecessor ends with exit code 1, so that a new holder is started. An address that went is closed; one
that overlaps an old address (0.0.0.0:80 after 10.0.0.1:80) can be bound only once no node holds the old one.

Two holders at once. Whoever becomes the holder has a file lock (flock(2)) on PORTS_SOCKET.lock from its first question
until its socket stands in place, so starts happen one after the other. A holder whose socket was replaced or removed
without a word (it had been frozen, or somebody deleted the file) ends with exit code 1: its nodes then turn to
whoever answers, with their copies.
"""

import array
import ipaddress
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.settings import PortsSettings

LEASE = 10.0  # seconds without a node, after which the listeners are closed
ACQUIRE = 15.0  # seconds an address may be in use before that counts as a stranger's
RETRY = 0.5  # seconds between looks for a holder
ANSWER = 5.0  # seconds a holder that lives takes at most to answer its successor

_MOST_BYTES = 65_536
_MOST_SOCKETS = 253  # SCM_MAX_FD, unix(7)


class PortsUnavailable(LyttleOpsError):
    """The listening sockets cannot be had."""


class Ended(Exception):
    """The other side hung up, or said what is no message."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One address to listen on; `kind` is http, https or api, for people."""

    kind: str
    address: str  # canonical: 0.0.0.0:80 or [::]:80


def listener(kind: str, address: str) -> Listener:
    """A listener for an address as settings write it (any spelling of IPv6)."""
    host, port = split(address)
    return Listener(kind, join(host, port))


def listeners(settings: PortsSettings) -> list[Listener]:
    """Every address that a node with these settings serves."""
    return [
        *(listener("http", address) for address in settings.http_listen),
        *(listener("https", address) for address in settings.https_listen),
        listener("api", settings.api_listen),
    ]


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of an address that settings accept."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join(host: str, port: int) -> str:
    """The canonical spelling of an address."""
    ip = ipaddress.ip_address(host)
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def listening_address(found: socket.socket) -> str | None:
    """Where a socket listens, canonical; None when it is no listening TCP socket."""
    with suppress(OSError, ValueError):
        inet = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
        if inet and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            name = found.getsockname()
            return join(name[0], name[1])
    return None


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the process at the other end. The pid is 0 when it cannot be seen from this container."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def describe(listeners: Iterable[Listener]) -> list[dict[str, str]]:
    """A list of listeners as messages have it."""
    return [{"kind": each.kind, "address": each.address} for each in listeners]


def send(connection: socket.socket, message: Mapping[str, Any], sockets: Iterable[socket.socket] = ()) -> None:
    """Raises OSError (BlockingIOError when a non-blocking connection's reader does not read)."""
    descriptors = [each.fileno() for each in sockets]
    if descriptors:
        socket.send_fds(connection, [json.dumps(message).encode()], descriptors)
    else:
        connection.send(json.dumps(message).encode())


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[socket.socket]]:
    """One message and the sockets attached to it, close-on-exec. Raises Ended and OSError."""
    room = socket.CMSG_SPACE(_MOST_SOCKETS * array.array("i").itemsize)
    content, ancillary, flags, _ = connection.recvmsg(_MOST_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    sockets = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            for descriptor in descriptors:
                try:
                    sockets.append(socket.socket(fileno=descriptor))
                except OSError:  # no socket at all
                    os.close(descriptor)
    try:
        if not content or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Ended
        message = json.loads(content)
        if not isinstance(message, dict):
            raise Ended
    except (ValueError, Ended) as exc:
        close(sockets)
        raise Ended from exc
    return message, sockets


def close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()
