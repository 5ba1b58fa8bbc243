"""The node's side: takes the listening sockets, keeps the lease, hands the sockets back to a holder that lacks them."""

import logging
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from lyttle_ops.ports import protocol
from lyttle_ops.ports.protocol import ACQUIRE, RETRY, Ended, Listener, PortsUnavailable

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds without a holder, after which a node gives up
_CONNECT = 2.0  # seconds


class HeldPorts:
    """Copies of the listeners in `wanted`, borrowed from the holder on `path`. Safe to use from several threads.

    `take` before use; `release` once, after which nothing can be taken any more. `name` is how the holder's log calls
    this node.
    """

    def __init__(self, path: Path, wanted: Iterable[Listener], name: str) -> None:
        self._path = path
        self._wanted = {each.address: each for each in wanted}
        self._name = name
        self._taking = threading.Lock()
        self._mutex = threading.Lock()  # for what follows; never held while somebody else is waited for
        self._sockets: dict[str, socket.socket] = {}
        self._connection: socket.socket | None = None
        self._released = threading.Event()

    def take(self) -> None:
        """Borrow the listeners; nothing happens when they are here already.

        Raises PortsUnavailable when no holder gave all of them within PATIENCE seconds.
        """
        with self._taking:
            if self._sockets:
                return
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    self._borrow(deadline - time.monotonic())
                    break
                except (Ended, OSError, PortsUnavailable) as exc:
                    if time.monotonic() > deadline or self._released.is_set():
                        raise PortsUnavailable(self._why(exc)) from exc
                self._released.wait(RETRY)
            log.info("Took the ports from their holder: %s", ", ".join(self._wanted))
            threading.Thread(target=self._keep, name="ports", daemon=True).start()

    def descriptors(self, addresses: Iterable[str]) -> tuple[int, ...]:
        """File descriptors of what listens on these addresses; empty before `take` and after `release`."""
        with self._mutex:
            places = [protocol.listener("", address).address for address in addresses]
            return tuple(self._sockets[place].fileno() for place in places if place in self._sockets)

    def release(self) -> None:
        """Give the lease up and close this process's copies; copies of programs it started are theirs to close."""
        with self._mutex:
            if self._released.is_set():
                return
            self._released.set()
            held = bool(self._sockets)
            protocol.close(self._sockets.values())
            self._sockets = {}
            if self._connection is not None:
                # It is closed by whoever waits on it; this wakes them.
                _hang_up(self._connection)
        if held:
            log.info("Gave the ports back to their holder")

    def _borrow(self, patience: float = ACQUIRE + _CONNECT) -> None:
        """Take from the holder, with our copies attached; it has `patience` seconds to answer.

        Raises Ended, OSError and PortsUnavailable.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        received: list[socket.socket] = []
        try:
            connection.settimeout(_CONNECT)
            connection.connect(str(self._path))
            with self._mutex:
                if self._released.is_set():
                    raise PortsUnavailable("they were given back")
                request = {"request": "take", "name": self._name, "listeners": self._described(self._sockets)}
                protocol.send(connection, request, self._sockets.values())
                self._connection = connection
            connection.settimeout(max(_CONNECT, patience))
            _, received = protocol.receive(connection)
            connection.settimeout(None)
            self._keep_wanted(received)
        except BaseException:
            with self._mutex:
                if self._connection is connection:
                    self._connection = None
                connection.close()
            raise
        finally:
            kept = self._sockets.values()
            protocol.close(each for each in received if each not in kept)

    def _keep_wanted(self, received: Iterable[socket.socket]) -> None:
        found = {protocol.listening_address(each): each for each in received}
        with self._mutex:
            if self._released.is_set():
                raise PortsUnavailable("they were given back")
            if self._sockets:
                return  # a holder that came later: ours are as good as its
            missing = [address for address in self._wanted if address not in found]
            if missing:
                held = ", ".join(str(address) for address in found) or "none"
                raise PortsUnavailable(
                    f"it does not hold {', '.join(missing)}, but {held}; "
                    "give it and the node the same HTTP_LISTEN, HTTPS_LISTEN and API_LISTEN"
                )
            self._sockets = {address: found[address] for address in self._wanted}

    def _keep(self) -> None:
        """Wait for the holder's end, then find the next one; until `release`."""
        while not self._released.is_set():
            connection = self._connection
            if connection is not None:
                try:
                    protocol.receive(connection)  # nothing is ever said on a lease
                except (Ended, OSError):
                    with self._mutex:
                        self._connection = None
                        connection.close()
                    if self._released.is_set():
                        return
                    log.warning("The holder of the ports is gone; this node serves on and looks for the next holder")
                else:
                    continue
            try:
                self._borrow()
                log.info("The ports have a holder again")
            except (Ended, OSError, PortsUnavailable):
                self._released.wait(RETRY)

    def _described(self, sockets: Mapping[str, socket.socket]) -> list[dict[str, str]]:
        return protocol.describe(self._wanted[address] for address in sockets)

    def _why(self, exc: BaseException) -> str:
        if self._released.is_set():
            return "this node gave its ports back for good"
        reason = "it hung up" if isinstance(exc, Ended) else str(getattr(exc, "strerror", None) or exc)
        return (
            f"the ports could not be had from their holder at {self._path} within {PATIENCE:.0f} s: {reason}. "
            "Does `lyttle-ops ports` (service `ports`) run on this machine, and does its log say why not?"
        )


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
