#!/usr/bin/python
"""What the node's container on this host says about itself."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_instance
short_description: Read the status of the LyttleOps instance on this host
description:
  - Reads the status file and the metrics in the running container, and the domains it serves. No SQL, no API, so it
    answers with PostgreSQL away. On the leader alone it asks for the ledger of the certificates as well.
options:
  service:
    description: The node service.
    type: str
    default: lyttlenginx_lyttlenginx
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: It only reads.
    support: full
"""

RETURN = r"""
instance:
  description: >-
    Node, container, task, status, domains, certificates and ledger (the leader's, empty when PostgreSQL is away); null
    when none runs here.
  type: dict
  returned: success
"""

import json
import os
import re
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import ARGUMENT, Engine, EngineError

_DEADLINE = 15  # seconds for one docker exec
_METRIC = re.compile(r'^lyttle_certificate_not_after_seconds\{domains="([^"]*)"\} (\S+)$', re.MULTILINE)
# The newest instance folder that holds the file, since an earlier instance in this container may have left one.
_NEWEST = 'cat "$(ls -t /run/lyttle-ops/*/{0} | head -n 1)"'


def inside(docker_host: str | None, container: str, command: list[str]) -> str:
    """What a command in the container prints; empty when it fails."""
    argv = ["docker", *(["--host", docker_host] if docker_host else []), "exec", container, *command]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
            stdin=subprocess.DEVNULL,
            env={key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def decoded(text: str) -> Any:
    """The JSON, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={"service": {"type": "str", "default": "lyttlenginx_lyttlenginx"}, **ARGUMENT},
        supports_check_mode=True,
    )
    host = module.params["docker_host"]
    filters = {"label": [f"com.docker.swarm.service.name={module.params['service']}"], "status": ["running"]}
    try:
        found = Engine(host).call("GET", "/containers/json", {"filters": json.dumps(filters)}) or []
    except EngineError as exc:
        module.fail_json(msg=str(exc))
    instances = []
    for container in sorted(found, key=lambda each: each["Created"], reverse=True):
        labels = container["Labels"]
        status = decoded(inside(host, container["Id"], ["sh", "-c", _NEWEST.format("status.json")]))
        instances.append(
            {
                "container": container["Id"],
                "node_id": labels.get("com.docker.swarm.node.id", ""),
                "task_id": labels.get("com.docker.swarm.task.id", ""),
                "image": container["Image"],
                "status": status,
            }
        )
    # During an update there are two: the one that is ready counts, the newest when both are.
    ready = [each for each in instances if (each["status"] or {}).get("state") == "ready"]
    instance = next(iter(ready or instances), None)
    if instance:
        container = instance["container"]
        told = decoded(inside(host, container, ["lyttle-ops", "domains", "--json"]))
        instance["domains"] = (told or {}).get("domains", [])
        metrics = inside(host, container, ["sh", "-c", _NEWEST.format("metrics.prom")])
        instance["certificates"] = {name: float(until) for name, until in _METRIC.findall(metrics)}
        leads = (instance["status"] or {}).get("leader", False)
        command = ["lyttle-ops", "certificates", "list", "--json"]
        ledger = decoded(inside(host, container, command)) if leads else None
        instance["ledger"] = (ledger or {}).get("certificates", [])
    module.exit_json(changed=False, instance=instance)


if __name__ == "__main__":
    main()
