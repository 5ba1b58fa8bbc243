"""One node of the local cluster: the environment it is started with, and what it says about itself.

It runs the same command as in production; only addresses and folders are local.
"""

import base64
import difflib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lyttle_ops.errors import ConfigurationError
from lyttle_ops.local.credentials import ADMIN_USERNAME, Credentials
from lyttle_ops.local.layout import NodeLayout
from lyttle_ops.local.packages import SEARCH_PATH
from lyttle_ops.local.state import State
from lyttle_ops.settings import Settings, load

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
    problems: tuple[tuple[str, str], ...] = ()  # (failing check, its message) of one that runs and is not ready


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
    for name in settings:  # NAME replaces a NAME_FILE made here, and the other way round
        made.pop(f"{name}_FILE", None)
        made.pop(name.removesuffix("_FILE"), None)
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, "PATH": SEARCH_PATH, "PYTHONUNBUFFERED": "1", **made, **settings}


def check_settings(given: Mapping[str, str]) -> None:
    """Raises ConfigurationError when a node would not start with these further settings."""
    names = [name.upper() for name in Settings.model_fields]
    accepted = {*names, *(f"{name}_FILE" for name in names if not name.endswith("_FILE"))}
    for name in given:
        if name not in accepted:
            near = difflib.get_close_matches(name, sorted(accepted), 1)
            meant = (
                f"did you mean {near[0]}?" if near else f"the settings are {', '.join(names)}, each also as NAME_FILE"
            )
            raise ConfigurationError(f"{name}: there is no such setting; {meant}")
    # The required ones, which the start makes: any good value tells as much about the others.
    made = {"DATABASE_URL": "postgresql://localhost/lyttle", "MASTER_KEY": base64.b64encode(bytes(32)).decode()}
    load({**{name: value for name, value in made.items() if f"{name}_FILE" not in given}, **given})


def read_status(run_folder: Path, pid: int | None) -> NodeStatus:
    """What the node with this supervisor says in its status file; its predecessors' files are passed over."""
    if pid is None:
        return NodeStatus()
    for file in run_folder.glob("*/status.json"):
        try:
            raw = json.loads(file.read_text("utf-8"))
            if raw["pid"] != pid:
                continue
            age = time.time() - raw["written_at"]
            fresh = age < FRESH
            return NodeStatus(
                pid=pid,
                leader=bool(raw["leader"]) and fresh,
                ready=raw["state"] == "ready" and fresh,
                instance=str(raw["instance_id"]),
                state=str(raw["state"]) if fresh else "silent",
                failure=raw["failure"],
                nginx=bool(raw["nginx"]["running"]),
                release=raw["nginx"]["release"],
                problems=_problems(raw) if fresh else (("node", f"its status is {age:.0f} s old: it hangs"),),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being replaced, or of another version
    return NodeStatus(pid=pid, state="starting", problems=(("node", "is starting"),))


def statuses(state: State, prove: bool = False) -> dict[str, NodeStatus]:
    """By node name; with `prove` ready also means that /health/ready says so."""
    layout = state.layout.all_nodes()

    def look(node: NodeLayout) -> NodeStatus:
        status = status_of(state, node)
        if prove and status.ready and (problems := ask_ready(node)):
            return replace(status, ready=False, problems=problems)
        return status

    with ThreadPoolExecutor(min(16, len(layout))) as pool:
        return {node.name: status for node, status in zip(layout, pool.map(look, layout), strict=True)}


def status_of(state: State, node: NodeLayout) -> NodeStatus:
    """What one node's status file says."""
    process = state.processes.get(node.name)
    pid = process.pid if process is not None and process.is_alive() else None
    return read_status(state.run_folder / node.name, pid)


def _problems(raw: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    failing = [(name, str(check["message"])) for name, check in raw["checks"].items() if not check["ok"]]
    if raw["state"] != "ready":
        failing.insert(0, ("node", str(raw["failure"] or f"is {raw['state']}")))
    return tuple(failing)


def ask_ready(node: NodeLayout, timeout: float = 2.0) -> tuple[tuple[str, str], ...]:
    """What /health/ready finds failing, as (check, message); nothing when it says 200."""
    url = f"{node.api}/health/ready"
    try:
        with _direct.open(url, timeout=timeout) as response:
            return () if response.status == 200 else (("api", f"{url} answers {response.status}"),)
    except urllib.error.HTTPError as exc:
        try:
            fields = json.load(exc)["error"]["fields"]
            found = tuple((str(field["field"]), str(field["message"])) for field in fields)
        except (OSError, ValueError, KeyError, TypeError):
            found = ()
        return found or (("api", f"{url} answers {exc.code}"),)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return (("api", f"{url} does not answer: {getattr(exc, 'reason', exc)}"),)


def forgive_restarts(state_folder: Path) -> None:
    """What a person does by starting a node: its restart guard counts from zero again."""
    (state_folder / "restart.count").unlink(missing_ok=True)
