"""`lyttle-ops ports`: what the stack's service `ports` runs on each machine."""

import sys

import click

from lyttle_ops import logs, settings
from lyttle_ops.clock import SystemClock
from lyttle_ops.ports import privileges
from lyttle_ops.ports.holder import Holder
from lyttle_ops.ports.protocol import listeners


@click.command()
def ports() -> int:
    """Hold this machine's listening sockets and lend them to its node, until SIGTERM.

    Reads HTTP_LISTEN, HTTPS_LISTEN, API_LISTEN, PORTS_SOCKET, LOG_FORMAT and LOG_LEVEL. As root it becomes user 7443
    first. Exit code 0 after a stop, 1 when the ports cannot be held (the last log line says why).
    """
    loaded = settings.load_ports()
    logs.set_up("ports", loaded.log_format, loaded.log_level)
    privileges.give_up_root()
    code = Holder(loaded.ports_socket, listeners(loaded), SystemClock()).run()
    sys.stdout.flush()
    return code
