"""The doctor's looks at the control machine and the inventory; role `doctor` looks at the hosts."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lyttle_ops.deploy import project
from lyttle_ops.deploy.runs import Control, ControlMissing, InventoryMissing, environment, program

HOST = "control"  # what the findings about this machine are filed under
_COLLECTIONS = ("ansible.posix", "community.crypto", "community.docker", "community.postgresql")
_INSTALL = "pip install 'lyttle-ops[control]'"
_PARSE = 60  # seconds for ansible-inventory


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; without a remedy it is in order."""

    host: str
    check: str
    ok: bool
    level: str  # ok, warning, error
    message: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def finding(check: str, message: str, remedy: str = "", level: str = "error") -> Finding:
    """A finding about this machine or the inventory."""
    return Finding(HOST, check, not remedy, level if remedy else "ok", message, remedy)


def look(control: Control) -> tuple[list[Finding], bool]:
    """What is found here, and whether the hosts can be looked at."""
    found = _ansible()
    try:
        control.check()
    except ControlMissing:
        return found, False
    except InventoryMissing:
        remedy = f"copy {project.content() / 'inventory.example.ini'} there, or name another with -i"
        return [*found, finding("inventory", f"there is no inventory {control.inventory}", remedy)], False
    inventory, complaint = _inventory(control)
    if inventory is None:
        remedy = "mend that file; for encrypted variables say --ask-vault-pass or --vault-password-file"
        return [*found, finding("inventory", complaint, remedy)], False
    return [*found, *_groups(inventory)], bool(_members(inventory, "swarm"))


def _ansible() -> list[Finding]:
    if importlib.util.find_spec("ansible_runner") is None or program("ansible-playbook") is None:
        return [finding("ansible", "Ansible is not installed here", _INSTALL)]
    if Path(str(program("ansible-playbook"))).parent != Path(sys.executable).parent:
        return [finding("ansible", f"Ansible is there: {program('ansible-playbook')}")]  # its collections are its own
    missing = [name for name in _COLLECTIONS if not _has(name)]
    if missing:
        remedy = f"{_INSTALL}, or ansible-galaxy collection install -r {project.content()}/playbooks/requirements.yml"
        return [finding("ansible", f"collections are missing: {', '.join(missing)}", remedy)]
    return [finding("ansible", f"ansible-core {importlib.metadata.version('ansible-core')} and its collections")]


def _has(collection: str) -> bool:
    namespace, _, name = collection.partition(".")
    places = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "~/.ansible/collections:/usr/share/ansible/collections")
    folders = [Path(entry) for entry in sys.path]
    folders += [Path(place).expanduser() for place in places.split(":")]
    return any((folder / "ansible_collections" / namespace / name).is_dir() for folder in folders)


def _inventory(control: Control) -> tuple[dict[str, Any] | None, str]:
    """What Ansible reads of the inventory, or why it does not. Secrets in it stay in this process."""
    with control.arguments() as arguments:
        argv = [str(program("ansible-inventory")), "--list", *arguments]
        strict = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True", "ANSIBLE_VERBOSE_TO_STDERR": "True"}
        try:
            done = subprocess.run(
                argv,
                env={**os.environ, **environment(), **strict},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PARSE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, f"the inventory was not read within {_PARSE} s"
    if done.returncode == 0:
        try:
            parsed = json.loads(done.stdout)
        except ValueError:
            return None, "ansible-inventory printed no JSON"
        return (parsed, "") if isinstance(parsed, dict) else (None, "ansible-inventory printed no object")
    # The warnings before the error tell what each way of reading it stumbled over.
    lines = [line.strip() for line in done.stderr.splitlines()]
    marked = [line.split("]: ", 1)[1] for line in lines if line.startswith(("[ERROR]: ", "[WARNING]: Failed to parse"))]
    return None, "; ".join(dict.fromkeys(marked)) or next(filter(None, reversed(lines)), "it cannot be read")


def _groups(inventory: Mapping[str, Any]) -> list[Finding]:
    managers, workers = _members(inventory, "managers"), _members(inventory, "workers")
    swarm = _members(inventory, "swarm")
    variables: Mapping[str, Mapping[str, Any]] = inventory.get("_meta", {}).get("hostvars", {})
    found = []
    if not managers:
        found.append(finding("inventory", "the group managers has no host", "write one, three or five hosts into it"))
    elif len(managers) % 2 == 0:
        message = f"there are {len(managers)} managers: no safer than {len(managers) - 1}"
        found.append(finding("inventory", message, "use one, three or five managers", "warning"))
    elif len(managers) == 1 and workers:
        message = "there is one manager: without it nothing can be deployed or moved"
        found.append(finding("inventory", message, "use three managers", "warning"))
    both = sorted(managers & workers)
    if both:
        remedy = "leave each in one of them"
        found.append(finding("inventory", f"{', '.join(both)}: in managers and in workers", remedy))
    if swarm != managers | workers:
        remedy = "write [swarm:children] with managers and workers, and nothing else"
        found.append(finding("inventory", "the group swarm is not managers and workers together", remedy))
    for group, hosts in (("postgres", _members(inventory, "postgres")), ("nfs", _members(inventory, "nfs"))):
        if len(hosts) > 1:
            found.append(finding("inventory", f"the group {group} has {len(hosts)} hosts", "leave one in it, or none"))
    if not _members(inventory, "postgres") and not any(
        variables.get(each, {}).get("stack_database_url") for each in swarm
    ):
        message = "there is no database: the group postgres is empty and stack_database_url is not set"
        found.append(finding("inventory", message, "write a host into postgres, or set stack_database_url in a vault"))
    if swarm and all(str(variables.get(each, {}).get("swarm_edge", True)).lower() in ("false", "no") for each in swarm):
        found.append(
            finding("inventory", "no host serves: swarm_edge is false everywhere", "let one have swarm_edge=true")
        )
    return found or [finding("inventory", f"{len(managers)} managers, {len(workers)} workers")]


def _members(inventory: Mapping[str, Any], group: str) -> set[str]:
    """The hosts of a group and of the groups in it."""
    entry: Mapping[str, Any] = inventory.get(group, {})
    found = set(entry.get("hosts", ()))
    for child in entry.get("children", ()):
        found |= _members(inventory, child)
    return found
