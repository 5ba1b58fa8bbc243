"""The health check of the service `ports`: does this container's holder answer, and what does it hold?

healthcheck.sh runs this file by itself and without site-packages, so it imports nothing of ours. Exit code 0: it
answers. 1: it does not, or the holder of another container does: this one has yet to take over, or was replaced.
Without a node the ports are closed on purpose, which is a note: a restart would not bring a node.
"""

import json
import os
import socket
import struct
import sys

USER = 7443  # lyttle_ops.ports.privileges.USER: the holder listens to nobody else
PATIENCE = 1.5  # seconds


def ask(path: str) -> tuple[int, str]:
    """Exit code, and the line that says why."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(path)
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            # Zero: a process that this container does not see. During an update two holders share the socket's name.
            if struct.unpack("3i", found)[0] == 0:
                return 1, "FAILED  ports: another container's holder answers; this one starts, or was replaced"
            connection.send(b'{"request": "status"}')
            answer = connection.recv(65536)
        status = json.loads(answer)
        held = [str(each["address"]) for each in status["listeners"]]
        nodes = [str(each) for each in status["nodes"]]
    except TimeoutError:
        return 1, f"FAILED  ports: the holder is silent for {PATIENCE} s"
    except OSError as exc:
        return 1, f"FAILED  ports: no holder answers on {path}: {exc.strerror or exc}"
    except (ValueError, KeyError, TypeError):
        return 1, "FAILED  ports: the holder hung up, or said what this version does not understand"
    if not nodes:
        return 0, "note    ports: no node has them, so clients are refused"
    return 0, f"ok      ports: {', '.join(held)}, lent to {', '.join(nodes)}"


def main() -> int:
    """Print what is so; the exit code says whether it is healthy."""
    if os.geteuid() == 0:  # as the service is, which also started its holder as root
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    code, line = ask(os.environ.get("PORTS_SOCKET") or "/run/lyttle-ports/ports.sock")
    print(line)  # noqa: T201 - Docker keeps what a health check prints
    return code


if __name__ == "__main__":
    sys.exit(main())
