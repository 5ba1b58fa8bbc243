"""gunicorn's settings, from the node's environment: `gunicorn -c python:webapi.gunicorn_conf`.

LYTTLE_INSTANCE_DIR, which the supervisor sets, is where the unix socket goes: a probe over it reaches this
instance and no other. With LISTEN=held the port is the inherited socket LYTTLE_API_SOCKET (a file descriptor), and
without one there is none.
"""

import os
import socket
import struct
from contextlib import suppress
from typing import Any

from gunicorn.glogging import Logger

from lyttle_ops import logs
from lyttle_ops.settings import load

_settings = load()
_instance_dir = os.environ.get("LYTTLE_INSTANCE_DIR")


class RootLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's own messages through the same handler and format as everything else of this process."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        logs.set_up("api", _settings.log_format, _settings.log_level)
        for log in (self.error_log, self.access_log):
            log.handlers.clear()
            log.propagate = True


umask = 0o007  # the unix socket is for this user and group


def _own_socket(path: str) -> int:
    """A socket of ours as a descriptor: beside one that is inherited, gunicorn opens none by itself."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(umask)
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(128)
    finally:
        os.umask(before)
    return listener.detach()


def _bind() -> list[str]:
    own = f"{_instance_dir}/api.sock" if _instance_dir else None
    inherited = os.environ.get("LYTTLE_API_SOCKET")
    if _settings.listen == "held" and inherited:
        return [f"fd://{inherited}", *([f"fd://{_own_socket(own)}"] if own else [])]
    return [*([_settings.api_listen] if _settings.listen == "bind" else []), *([f"unix:{own}"] if own else [])]


bind = _bind()
workers = 1  # one process: one pool of connections, one set of counters
worker_class = "gthread"
threads = 8
graceful_timeout = 20  # seconds for requests in flight after SIGTERM
timeout = 60  # seconds without a sign of life from the worker
keepalive = 5  # seconds
READ_TIMEOUT = 5  # seconds of silence within a request
worker_tmp_dir = "/dev/shm"  # noqa: S108 - the worker's sign of life must not wait on a disk
control_socket_disable = True  # its default path is one per user, and several nodes may share a machine
loglevel = _settings.log_level.lower()
logger_class = RootLogger
accesslog = None  # the application logs what changes something
proc_name = "lyttle-api"


def when_ready(server: Any) -> None:
    """Accepted sockets inherit it (socket(7)): a request that stops half-way must not keep its thread for ever."""
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", READ_TIMEOUT, 0))


def worker_exit(_server: Any, worker: Any) -> None:
    """Close the pool: its threads would hold up the interpreter's end."""
    from webapi.app import close

    close(worker.wsgi)
