#!/usr/bin/python
"""Looks at a host, or at what was seen on all hosts, and says what is wrong and how to mend it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_doctor
short_description: Look for what keeps a LyttleOps cluster from working
description:
  - Reads only. Every look ends within seconds, so a hanging disk, network or engine is a finding.
options:
  action:
    description: >-
      V(host) looks at the machine it runs on; V(needs) only at whether PostgreSQL and the NFS folder answer there;
      V(compare) at what was seen on all machines.
    choices: [host, needs, compare]
    required: true
    type: str
  member:
    description: The host is to be in the Swarm.
    type: bool
    default: true
  manager:
    description: The host is to be a manager.
    type: bool
    default: false
  edge:
    description: The host is to serve HTTP and HTTPS.
    type: bool
    default: false
  peers:
    description: Name and address of the other hosts of the Swarm.
    type: dict
    default: {}
  managers:
    description: Name and address of the other managers.
    type: dict
    default: {}
  ports:
    description: Ports that the stack serves.
    type: list
    elements: int
    default: [80, 443, 3003]
  service:
    description: Name of the node service.
    type: str
    default: lyttlenginx_lyttlenginx
  database:
    description: Host, port and, for V(host), authority (PEM) of PostgreSQL. V(host) tries it when no node runs there.
    type: dict
    default: {}
  shared:
    description: The NFS folder; empty when there is none.
    type: str
    default: ""
  hosts:
    description: What was seen of each host, for V(compare).
    type: dict
    default: {}
  clock_seconds:
    description: Difference of the clocks that is still in order, in seconds.
    type: float
    default: 2
  addresses:
    description: Addresses beside the nodes' that domains may lead to.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: It only reads.
    support: full
"""

RETURN = r"""
findings:
  description: What was found; check, ok, level (ok, warning, error), message, remedy.
  type: list
  returned: always
facts:
  description: What V(compare) needs of this host.
  type: dict
  returned: host
"""

import time
from typing import Any

from ansible.module_utils import lyttle_checks as checks
from ansible.module_utils import lyttle_compare
from ansible.module_utils.basic import AnsibleModule


def look(options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All looks at this host, those that another failure makes pointless left out."""
    found, info = checks.docker(options["member"], options["manager"])
    swarm = info.get("Swarm") or {}
    active = swarm.get("LocalNodeState") == "active"
    facts: dict[str, Any] = {"node_id": swarm.get("NodeID", "")}
    container = ""
    if active:
        label = f"label=com.docker.swarm.service.name={options['service']}"
        _, out, _ = checks.run(["docker", "ps", "--quiet", "--no-trunc", "--filter", label])
        container = (out.split() or [""])[0]
        images = checks.run(
            ["docker", "image", "ls", "--digests", "--format", "{{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}"]
        )
        facts["images"] = sorted(set(images[1].split()))
    if swarm.get("ControlAvailable"):
        facts["cluster_id"] = (swarm.get("Cluster") or {}).get("ID", "")
        facts["nodes"] = nodes()
        spec = checks.read_json(["docker", "service", "inspect", "--format", "{{json .Spec}}", options["service"]])
        facts["service_image"] = ((spec or {}).get("TaskTemplate") or {}).get("ContainerSpec", {}).get("Image", "")
    if options["edge"]:
        found += checks.ports(options["ports"], deployed=bool(container))
    if options["member"]:
        found += checks.peers(options["peers"], options["managers"], active)
    if container:
        found += checks.database_inside(container, len(options["peers"]) + 1)
        found += checks.overlay(container, options["service"])
        told = checks.read_json(["docker", "exec", container, "lyttle-ops", "domains", "--json"])
        facts["domains"] = [each["domain"] for each in (told or {}).get("domains", [])]
    elif options["member"] and options["database"].get("host"):
        database = options["database"]
        found += checks.database_handshake(database["host"], int(database["port"]), database.get("authority", ""))
    if options["shared"] and options["member"]:
        found += checks.shared_folder(options["shared"])
    found += checks.disk(["/", info.get("DockerRootDir") or "/var/lib/docker", "/var/lib/lyttle-ops"])
    return found + checks.synchronised(), facts


def needs(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether what a node needs of others answers. What does not is asked twice, for a deploy depends on it."""
    found: list[dict[str, Any]] = []
    for seconds in (0, 2):
        time.sleep(seconds)
        database = options["database"]
        found = checks.database_answers(database["host"], int(database["port"])) if database.get("host") else []
        found += checks.shared_folder(options["shared"]) if options["shared"] else []
        if all(each["ok"] for each in found):
            break
    return found


def nodes() -> list[dict[str, Any]]:
    """The Swarm's nodes, as this manager sees them."""
    _, out, _ = checks.run(["docker", "node", "ls", "--quiet"])
    listed = checks.read_json(["docker", "node", "inspect", *out.split()]) if out.split() else None
    return [
        {
            "id": node["ID"],
            "hostname": node["Description"]["Hostname"],
            "role": node["Spec"]["Role"],
            "availability": node["Spec"]["Availability"],
            "state": node["Status"]["State"],
            "edge": node["Spec"].get("Labels", {}).get("lyttle.edge") == "true",
            "reachable": (node.get("ManagerStatus") or {}).get("Reachability", "reachable") == "reachable",
        }
        for node in listed or ()
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["host", "needs", "compare"]},
            "member": {"type": "bool", "default": True},
            "manager": {"type": "bool", "default": False},
            "edge": {"type": "bool", "default": False},
            "peers": {"type": "dict", "default": {}},
            "managers": {"type": "dict", "default": {}},
            "ports": {"type": "list", "elements": "int", "default": [80, 443, 3003]},
            "service": {"type": "str", "default": "lyttlenginx_lyttlenginx"},
            "database": {"type": "dict", "default": {}},
            "shared": {"type": "str", "default": ""},
            "hosts": {"type": "dict", "default": {}},
            "clock_seconds": {"type": "float", "default": 2},
            "addresses": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    if options["action"] == "compare":
        seen = lyttle_compare.findings(options["hosts"], options["clock_seconds"], options["addresses"])
        module.exit_json(changed=False, findings=seen)
    if options["action"] == "needs":
        module.exit_json(changed=False, findings=needs(options))
    found, facts = look(options)
    module.exit_json(changed=False, findings=found, facts=facts)


if __name__ == "__main__":
    main()
