"""One node of the local cluster: the environment it is started with, and what it says about itself.

It runs the same command as in production; only addresses and folders are local.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lyttle_ops.local.credentials import ADMIN_USERNAME, Credentials
from lyttle_ops.local.layout import NodeLayout
from lyttle_ops.local.packages import SEARCH_PATH

COMMAND = [sys.executable, "-m", "lyttle_ops.cli", "node"]
FRESH = 10.0  # seconds; a node writes its status every 2 s
_INHERITED = ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no HTTP proxy lies before loopback


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node's status file and its /health/ready say; the defaults are those of one that does not run."""

    pid: int | None = None
    leader: bool = False
    ready: bool = False
    instance: str | None = None  # uuid of this start
    state: str = "stopped"  # starting, ready, failed, stopping; stopped when the process is gone
    failure: str | None = None
    nginx: bool = False
    release: str | None = None


def environment(
    node: NodeLayout,
    credentials: Credentials,
    *,
    state_folder: Path,
    run_folder: Path,
    acme_directory: str,
    acme_ca_file: Path,
    settings: Mapping[str, str],
) -> dict[str, str]:
    """A node's whole environment: nothing of the caller's shell changes what it does.

    `settings` are further settings by variable name and win over those made here.
    """
    made = {
        "NODE_NAME": node.name,
        "NODE_MACHINE_ID": f"local-{node.name}",
        "DATABASE_URL_FILE": str(credentials.database_url_file),
        "MASTER_KEY_FILE": str(credentials.master_key_file),
        "ADMIN_USERNAME": ADMIN_USERNAME,
        "ADMIN_PASSWORD_FILE": str(credentials.admin_password_file),
        "STATE_DIR": str(state_folder),
        "RUN_DIR": str(run_folder),
        "HTTP_LISTEN": f"{node.host}:{node.http_port}",
        "HTTPS_LISTEN": f"{node.host}:{node.https_port}",
        "API_LISTEN": f"{node.host}:{node.api_port}",
        "ACME_DIRECTORY_URL": acme_directory,
        "ACME_CA_FILE": str(acme_ca_file),
        "LOG_FORMAT": "text",
    }
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, "PATH": SEARCH_PATH, "PYTHONUNBUFFERED": "1", **made, **settings}


def read_status(run_folder: Path, pid: int | None) -> NodeStatus:
    """What the node with this supervisor says in its status file; its predecessors' files are passed over."""
    if pid is None:
        return NodeStatus()
    for file in run_folder.glob("*/status.json"):
        try:
            raw = json.loads(file.read_text("utf-8"))
            if raw["pid"] != pid:
                continue
            fresh = time.time() - raw["written_at"] < FRESH
            return NodeStatus(
                pid=pid,
                leader=bool(raw["leader"]) and fresh,
                ready=raw["state"] == "ready" and fresh,
                instance=str(raw["instance_id"]),
                state=str(raw["state"]) if fresh else "silent",
                failure=raw["failure"],
                nginx=bool(raw["nginx"]["running"]),
                release=raw["nginx"]["release"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being replaced, or of another version
    return NodeStatus(pid=pid, state="starting")


def answers_ready(node: NodeLayout, timeout: float = 2.0) -> bool:
    """Whether /health/ready says 200."""
    try:
        with _direct.open(f"{node.api}/health/ready", timeout=timeout) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, urllib.error.HTTPError):
        return False


def forgive_restarts(state_folder: Path) -> None:
    """What a person does by starting a node: its restart guard counts from zero again."""
    (state_folder / "restart.count").unlink(missing_ok=True)
