"""The two programs that a node runs: NGINX and the API, as the supervisor starts them."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lyttle_ops.nginx.process import read_log_line
from lyttle_ops.nginx.releases import NGINX
from lyttle_ops.node.supervisor import Child

_nginx_log = logging.getLogger("nginx")


def api_child(
    instance_id: str, folder: Path, sockets: Callable[[], tuple[int, ...]], may_be_given_up: Callable[[], bool]
) -> Child:
    """gunicorn, with `sockets` (one or none) instead of a port of its own where LISTEN is held."""

    def environment() -> dict[str, str]:
        return {
            **os.environ,
            "LYTTLE_INSTANCE_ID": instance_id,
            "LYTTLE_INSTANCE_DIR": str(folder),
            "LYTTLE_API_SOCKET": "".join(str(descriptor) for descriptor in sockets()),
        }

    command = [sys.executable, "-m", "gunicorn", "-c", "python:webapi.gunicorn_conf", "webapi.app:create_app()"]
    return Child("api", lambda: command, environment, descriptors=sockets, may_be_given_up=may_be_given_up)


def nginx_child(nginx: NGINX, sockets: Callable[[], tuple[int, ...]]) -> Child:
    """NGINX, with `sockets` instead of ports of its own where LISTEN is held."""

    def environment() -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), **nginx.environment()}

    return Child(
        "nginx",
        nginx.command,
        environment,
        descriptors=sockets,
        prepare=nginx.prepare_start,
        read_line=_log_nginx,
        graceful=signal.SIGQUIT,
    )


def _log_nginx(line: str) -> None:
    """A line of NGINX's error log as a record of ours."""
    level, message = read_log_line(line)
    _nginx_log.log(logging.getLevelName(level), "%s", message, extra={"source": "nginx"})
