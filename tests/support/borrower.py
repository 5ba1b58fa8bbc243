"""A program that borrows listening sockets and serves them: each connection gets the program's name and is closed.

`python -m tests.support.borrower SOCKET NAME ADDRESS…`. SIGTERM: gives the lease up, then stops serving, and ends.
"""

import logging
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.ports import client, privileges
from lyttle_ops.ports.client import HeldPorts
from lyttle_ops.ports.protocol import listener

log = logging.getLogger("borrower")


def serve(listeners: list[socket.socket], name: str, told_to_stop: socket.socket) -> None:
    """Until SIGTERM, between two connections: one that was accepted gets its answer."""
    while True:
        ready = select.select([told_to_stop, *listeners], [], [])[0]
        if told_to_stop in ready:
            return
        for each in ready:
            with suppress(BlockingIOError, ConnectionError):
                connection, _ = each.accept()
                with connection:
                    connection.setblocking(True)
                    connection.sendall(name.encode())


def main() -> int:
    path, name, *addresses = sys.argv[1:]
    client.PATIENCE = float(os.environ.get("PATIENCE", client.PATIENCE))
    privileges.give_up_root()  # the holder listens to the stack's own user alone
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    ports = HeldPorts(Path(path), [listener("http", address) for address in addresses], name)
    try:
        ports.take()
    except LyttleOpsError as exc:
        log.error("%s", exc)
        return 1
    told_to_stop, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(wake.fileno())
    # As NGINX does: copies of its own, which stay when the lease is given up.
    listeners = [socket.socket(fileno=socket.dup(fd)) for fd in ports.descriptors(addresses)]
    log.info("serving")
    serve(listeners, name, told_to_stop)
    ports.release()
    for each in listeners:
        each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
