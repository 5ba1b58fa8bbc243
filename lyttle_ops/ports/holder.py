"""The holder: binds the ports of this machine and lends them to the node. protocol.py tells what is said and why."""

import errno
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import NoReturn

from lyttle_ops.clock import Clock
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.ports import protocol
from lyttle_ops.ports.protocol import ACQUIRE, ANSWER, LEASE, Ended, Listener

log = logging.getLogger(__name__)

BACKLOG = 65_535  # connections that wait to be taken; the kernel caps it at net.core.somaxconn
_TAKING_TURNS = 30.0  # seconds to wait for another holder that is just starting
_PAUSE = 0.1  # seconds between two tries to bind
_FAREWELL = 2.0  # seconds after its successor's end in which this holder may be told to stop as well


class PortTaken(LyttleOpsError):
    """An address cannot be bound."""


class HolderDisplaced(LyttleOpsError):
    """This holder cannot be reached any more."""


class _Stop(BaseException):
    """SIGTERM: raised wherever the holder is."""


@dataclass(eq=False)
class _Peer:
    connection: socket.socket
    name: str = ""  # of a node that asked for the listeners
    waiting: bool = False  # its answer needs addresses that are not bound yet
    leases: bool = False


class Holder:
    """Holds `listeners` and speaks on `path`. `run` returns the process's exit code."""

    def __init__(self, path: Path, listeners: Iterable[Listener], clock: Clock) -> None:
        self._path = path
        self._wanted = {each.address: each for each in listeners}
        self._clock = clock
        self._open: dict[str, socket.socket] = {}
        self._peers: set[_Peer] = set()
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._predecessor: socket.socket | None = None  # open for life: it tells that holder that this one is there
        self._place: tuple[int, int] | None = None  # device and inode of our socket's name
        self._acquire_until: float | None = None  # some address is not open and should be
        self._idle_since: float | None = None  # no node has a lease

    def run(self) -> int:
        """Until SIGTERM or SIGINT (0), or until the ports cannot be held (1; the last log line says why)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        try:
            with _alone(self._path):
                self._succeed()
            while True:
                self._turn()
        except _Stop:
            log.info("Stopped; nodes that serve keep their copies")
            return 0
        except LyttleOpsError as exc:
            log.critical("The ports cannot be held: %s", exc)
        except OSError as exc:
            log.critical("The ports cannot be held: %s: %s", exc.filename or self._path, exc.strerror or exc)
        return 1

    # -- becoming the holder ---------------------------------------------------------------------------

    def _succeed(self) -> None:
        """Take over from the holder that answers, or begin anew; then let nodes find this one."""
        predecessor = self._find_predecessor()
        if predecessor is None:
            self._bind()
            if len(self._open) < len(self._wanted):
                log.info("In use: %s. Waiting for nodes to hand back what they have", ", ".join(self._missing()))
        else:
            self._take_over(predecessor)
        self._acquire_until = self._clock.monotonic() + ACQUIRE
        self._publish()

    def _find_predecessor(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWER)
        try:
            connection.connect(str(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        return connection

    def _take_over(self, predecessor: socket.socket) -> None:
        deadline = self._clock.monotonic() + ACQUIRE
        try:
            while True:
                protocol.send(predecessor, {"request": "takeover"})
                _, sockets = protocol.receive(predecessor)
                self._adopt(sockets)
                self._bind()
                if not self._missing():
                    break
                if self._clock.monotonic() > deadline:
                    self._refuse()
                time.sleep(_PAUSE)
            protocol.send(predecessor, {"request": "mine"})
            protocol.receive(predecessor)
            self._predecessor = predecessor
            log.info("Took over from the previous holder")
        except (Ended, OSError) as exc:
            predecessor.close()
            if isinstance(exc, TimeoutError):
                log.warning("The holder that has %s does not answer within %.0f s", self._path, ANSWER)
            # It is gone or useless; what it gave is ours, the rest is free or comes back from the nodes.

    def _publish(self) -> None:
        """Put a socket of ours in place, in one step; what stood there before is nobody's any more."""
        beside = self._path.with_name(f".{self._path.name}")
        beside.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.setblocking(False)
        before = os.umask(0o177)
        try:
            self._server.bind(str(beside))
        finally:
            os.umask(before)
        self._server.listen(64)
        beside.replace(self._path)
        self._place = _identity(self._path)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)

    # -- one turn --------------------------------------------------------------------------------------

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._pause()):
            key.data()
        now = self._clock.monotonic()
        if self._acquire_until is not None:
            self._acquire(now)
        self._watch_leases(now)
        if _identity(self._path) != self._place:
            raise HolderDisplaced(f"{self._path} was replaced or removed, so no node finds this holder")

    def _pause(self) -> float:
        """Seconds until something is due: a bind to try, a lease's end, or a look at the socket's name."""
        if self._acquire_until is not None:
            return _PAUSE
        if self._idle_since is None or not self._open:
            return 1.0
        return min(1.0, max(0.0, self._idle_since + LEASE - self._clock.monotonic()) + 0.01)

    def _acquire(self, now: float) -> None:
        self._bind()
        if self._missing():
            if self._acquire_until is not None and now > self._acquire_until:
                self._refuse()
            return
        self._acquire_until = None
        log.info("Holding %s", ", ".join(f"{each.address} ({each.kind})" for each in self._wanted.values()))
        for peer in list(self._peers):
            if peer.waiting:
                self._lend(peer)

    def _watch_leases(self, now: float) -> None:
        if any(peer.leases or peer.waiting for peer in self._peers):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
            log.info("No node has the ports: without one for %.0f s, clients are refused", LEASE)
        elif self._open and self._acquire_until is None and now - self._idle_since > LEASE:
            log.warning("No node took the ports for %.0f s: they are closed until one does", LEASE)
            self._close_all()

    # -- what others say -------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._server is not None  # it is what the selector watches
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        pid, uid = protocol.peer_of(connection)
        if uid != os.geteuid():
            log.warning("Refused process %d of user %d: only user %d may ask for the ports", pid, uid, os.geteuid())
            connection.close()
            return
        connection.setblocking(False)
        peer = _Peer(connection)
        self._peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._listen_to(peer))

    def _listen_to(self, peer: _Peer) -> None:
        try:
            message, sockets = protocol.receive(peer.connection)
        except BlockingIOError:
            return
        except (Ended, OSError):
            self._drop(peer)
            return
        try:
            request = message.get("request")
            if request == "take":
                self._take(peer, str(message.get("name", ""))[:100], sockets)
            elif request == "takeover":
                log.info("A successor asks for the listeners")
                protocol.send(peer.connection, self._listeners(), self._open.values())
            elif request == "mine":
                self._hand_over(peer)
            elif request == "status":
                nodes = [each.name for each in self._peers if each.leases]
                protocol.send(peer.connection, {**self._listeners(), "nodes": nodes})
            else:
                log.warning("A request that this version does not know: %r", request)
                self._drop(peer)
        except OSError:
            self._drop(peer)
        finally:
            protocol.close(each for each in sockets if each not in self._open.values())

    def _take(self, peer: _Peer, name: str, copies: Sequence[socket.socket]) -> None:
        peer.name = name
        handed = self._adopt(copies)
        if handed:
            log.info("Node %s handed back %s", name, ", ".join(handed))
        if self._missing():
            peer.waiting = True
            if self._acquire_until is None:
                self._acquire_until = self._clock.monotonic() + ACQUIRE
        else:
            self._lend(peer)

    def _lend(self, peer: _Peer) -> None:
        peer.waiting = False
        try:
            protocol.send(peer.connection, self._listeners(), self._open.values())
        except OSError:
            self._drop(peer)
            return
        peer.leases = True
        log.info("Node %s has the ports", peer.name)

    def _drop(self, peer: _Peer) -> None:
        if peer.leases:
            log.info("Node %s has the ports no more", peer.name)
        self._selector.unregister(peer.connection)
        self._peers.discard(peer)
        peer.connection.close()

    def _hand_over(self, successor: _Peer) -> NoReturn:
        """Close everything and wait to be stopped. What was lent goes on being served meanwhile."""
        self._close_all()
        if self._server is not None:
            self._selector.unregister(self._server)
            self._server.close()
        for peer in self._peers - {successor}:
            peer.leases = False
            self._drop(peer)
        log.info("Handed over to a successor; waiting to be stopped")
        connection = successor.connection
        with suppress(OSError, Ended):
            protocol.send(connection, {"yours": True})
            connection.setblocking(True)
            while True:
                protocol.receive(connection)
        time.sleep(_FAREWELL)
        raise HolderDisplaced("the holder that took over is gone, and this one has nothing any more")

    # -- sockets ---------------------------------------------------------------------------------------

    def _listeners(self) -> dict[str, object]:
        return {"listeners": protocol.describe(self._wanted[address] for address in self._open)}

    def _missing(self) -> list[str]:
        return [address for address in self._wanted if address not in self._open]

    def _adopt(self, sockets: Iterable[socket.socket]) -> list[str]:
        """Keep those that are wanted and not open yet; their addresses. Closes the others."""
        adopted = []
        for each in sockets:
            address = protocol.listening_address(each)
            if address in self._wanted and address not in self._open:
                self._open[address] = each
                adopted.append(address)
            else:
                each.close()
        return adopted

    def _bind(self) -> None:
        """Open what is missing and free. Raises PortTaken for what will never be."""
        for address in self._missing():
            opened = _open_listener(self._wanted[address])
            if opened is not None:
                self._open[address] = opened

    def _refuse(self) -> NoReturn:
        taken = self._missing()
        ports = " or ".join(f"sport = :{protocol.split(address)[1]}" for address in taken)
        raise PortTaken(
            f"{', '.join(taken)} is in use on this machine, and no node handed it back within {ACQUIRE:.0f} s: "
            f"another program has it (ss -ltnp '{ports}'), or a node still has an address that overlaps it"
        )

    def _close_all(self) -> None:
        protocol.close(self._open.values())
        self._open.clear()


def _open_listener(listener: Listener) -> socket.socket | None:
    """None while the address is in use. Raises PortTaken."""
    host, port = protocol.split(listener.address)
    opened = None
    try:
        opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((host, port))
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except OSError as exc:
        if opened is not None:
            opened.close()
        if exc.errno == errno.EADDRINUSE:
            return None
        remedy = "; give the service cap_add NET_BIND_SERVICE" if exc.errno == errno.EACCES else ""
        variable = f"{listener.kind.upper()}_LISTEN"
        raise PortTaken(f"{variable}: {listener.address} cannot be bound: {exc.strerror}{remedy}") from exc
    return opened


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One holder at a time begins. Raises HolderDisplaced after half a minute in the queue, and OSError."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(int(_TAKING_TURNS / _PAUSE)):
            with suppress(BlockingIOError):
                flock(lock, LOCK_EX | LOCK_NB)
                break
            time.sleep(_PAUSE)
        else:
            raise HolderDisplaced(f"another holder has been starting for {_TAKING_TURNS:.0f} s ({path}.lock)")
        yield
    finally:
        os.close(lock)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _stop(number: int, frame: object) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise _Stop
