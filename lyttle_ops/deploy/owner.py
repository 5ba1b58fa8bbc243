"""Who deploys: what stands in the deploy lock, so that others can ask that person, and tell whether it still runs."""

import getpass
import json
import os
import socket
from pathlib import Path


def owner() -> str:
    """This process as JSON: owner (user@host), host (machine id), pid, pid_namespace, start_time ("<boot id>:<ticks
    since boot>").

    A pid that was given to another process since has another start time (field 22 of proc(5)'s stat), so whoever
    finds the lock on the same machine knows whether its owner is dead. The process has to live as long as the playbook.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ticks = Path(f"/proc/{os.getpid()}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    return json.dumps(
        {
            "owner": f"{_user()}@{socket.gethostname()}",
            "host": _machine_id(),
            "pid": os.getpid(),
            "pid_namespace": os.readlink("/proc/self/ns/pid"),
            "start_time": f"{boot}:{ticks}",
        }
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return str(os.getuid())


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or socket.gethostname()
    except OSError:  # a container has none
        return socket.gethostname()
