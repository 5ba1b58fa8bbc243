#!/usr/bin/python
"""Secrets: kept root-only on the managers, and handed to the Swarm under names that change with their content."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_secrets
short_description: Keep secrets on managers and publish them as Swarm secrets
description:
  - V(read) and V(write) keep one file for each secret in O(folder), mode 0600.
  - V(merge) compares what the managers keep, in O(kept). What an interrupted change of secrets left on some of them,
    NAME_new or that value as NAME, is no difference; of such a NAME the older value is meant. Nor is a manager that
    keeps nothing, as a reinstalled one, while another keeps something.
  - V(publish) makes Swarm secrets and configs named by their content, since both never change once they are made. The
    name holds 32 bits of a slow hash (PBKDF2), so it tells nothing about a password.
  - V(prune) removes what no service uses, nor would use after Swarm's own rollback.
options:
  action:
    description: What to do.
    choices: [read, write, merge, publish, prune]
    required: true
    type: str
  folder:
    description: Where the files stand.
    type: path
    default: /etc/lyttle-ops/secrets
  generate:
    description: Secrets that V(write) makes when O(values) lacks them; V(key) is 32 bytes in base64.
    type: dict
    default: {}
  values:
    description: Secrets by name.
    type: dict
    default: {}
  kept:
    description: What each manager keeps, for V(merge).
    type: list
    elements: dict
    default: []
  configs:
    description: Texts that are no secret, by name, published as configs.
    type: dict
    default: {}
  prefix:
    description: Start of the names in the Swarm.
    type: str
    default: lyttlenginx
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: Nothing is written, published or removed.
    support: full
"""

RETURN = r"""
values:
  description: The secrets by name; use no_log.
  type: dict
  returned: read, write, merge
differing:
  description: Names of secrets that some managers lack or keep with another value.
  type: list
  returned: merge
names:
  description: Name of each secret and config in the Swarm.
  type: dict
  returned: publish
removed:
  description: Names that went.
  type: list
  returned: prune
"""

import base64
import hashlib
import os
import re
import secrets
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import ARGUMENT, Engine, EngineError

_ITERATIONS = 100_000


def read(folder: str) -> dict[str, str]:
    """All secrets kept in a folder."""
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if re.fullmatch(r"[a-z_]+", name):
            with open(os.path.join(folder, name)) as file:
                found[name] = file.read().strip()
    return found


def _make(kind: str) -> str:
    if kind == "key":
        return base64.b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(20)


def write(folder: str, values: dict[str, str], check_mode: bool) -> bool:
    """Keep the secrets; whether a file changed."""
    known = read(folder)
    changed = {name: value for name, value in values.items() if known.get(name) != value}
    if check_mode or not changed:
        return bool(changed)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    for name, value in changed.items():
        path = os.path.join(folder, name)
        temporary = os.path.join(folder, f".{name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return True


def merge(kept: list[dict[str, str]]) -> tuple[dict[str, str], list[str]]:
    """What the managers keep, and the names on which they do not agree."""
    values: dict[str, str] = {}
    differing = []
    kept = [each for each in kept if each]  # a reinstalled manager is given all of it
    names = {name for each in kept for name in each}
    for name in sorted(name for name in names if name.endswith("_new")):  # on all, or on those that it came to
        found = {each[name] for each in kept if name in each}
        if len(found) > 1:
            differing.append(name)
        values[name] = found.pop()
    coming = {name.removesuffix("_new"): value for name, value in values.items()}
    # The one that an interrupted change has come least far on.
    behind = min(kept, key=lambda each: sum(each.get(name) == value for name, value in coming.items()), default={})
    for name in sorted(names - set(values)):
        found = {each.get(name) for each in kept}
        if name in coming:
            found = found - {coming[name]} or found
        if name.endswith("_login") and len(found) > 1 and "database_app_password" in coming:
            # It goes with the password. A manager that has none never saw a change: it means the role itself.
            found = {behind.get(name) or name.removesuffix("_login").replace("database_", "lyttle_")}
        if len(found) > 1 or None in found:
            differing.append(name)
        values[name] = max(value or "" for value in found)
    return values, differing


def swarm_name(prefix: str, name: str, value: str) -> str:
    """The name in the Swarm: prefix_name_<8 hex digits>."""
    hashed = hashlib.pbkdf2_hmac("sha256", value.encode(), f"lyttle-ops {prefix} {name}".encode(), _ITERATIONS, 4)
    return f"{prefix}_{name}_{hashed.hex()}"


def publish(engine: Engine, options: dict[str, Any], check_mode: bool) -> tuple[dict[str, str], bool]:
    """The names, and whether something new was made."""
    names, changed = {}, False
    for kind, items in (("secrets", options["values"]), ("configs", options["configs"])):
        have = {item["Spec"]["Name"] for item in engine.call("GET", f"/{kind}") or []}
        for name, value in items.items():
            if not value:
                continue
            names[name] = swarm_name(options["prefix"], name, value)
            if names[name] in have:
                continue
            changed = True
            if not check_mode:
                body = {
                    "Name": names[name],
                    "Data": base64.b64encode(value.encode()).decode(),
                    "Labels": {"lyttle.kind": name},
                }
                engine.call("POST", f"/{kind}/create", body=body)
    return names, changed


def _used(engine: Engine) -> set[str]:
    """Names of secrets and configs that a service uses, or would use after a rollback by Swarm."""
    used = set()
    for service in engine.call("GET", "/services") or []:
        for spec in (service["Spec"], service.get("PreviousSpec") or {}):
            container = spec.get("TaskTemplate", {}).get("ContainerSpec", {})
            used.update(item["SecretName"] for item in container.get("Secrets") or [])
            used.update(item["ConfigName"] for item in container.get("Configs") or [])
    return used


def prune(engine: Engine, prefix: str, check_mode: bool) -> list[str]:
    """Remove what this module published and nobody uses any more."""
    removed, used = [], _used(engine)
    pattern = re.compile(re.escape(prefix) + r"_(.+)_[0-9a-f]{8}")
    for kind in ("secrets", "configs"):
        for item in engine.call("GET", f"/{kind}") or []:
            spec = item["Spec"]
            found = pattern.fullmatch(spec["Name"])
            ours = found and (spec.get("Labels") or {}).get("lyttle.kind") == found.group(1)
            if ours and spec["Name"] not in used:
                removed.append(spec["Name"])
                if not check_mode:
                    engine.call("DELETE", f"/{kind}/{item['ID']}")
    return removed


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["read", "write", "merge", "publish", "prune"]},
            "folder": {"type": "path", "default": "/etc/lyttle-ops/secrets"},
            "generate": {"type": "dict", "default": {}},
            # Not no_log, which would mask them in this module's answer, and the next task would keep the mask as a
            # secret: the tasks have no_log, so nothing is logged on either side.
            "values": {"type": "dict", "default": {}, "no_log": False},
            "kept": {"type": "list", "elements": "dict", "default": [], "no_log": False},
            "configs": {"type": "dict", "default": {}},
            "prefix": {"type": "str", "default": "lyttlenginx"},
            **ARGUMENT,
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    action, engine = options["action"], Engine(options["docker_host"])
    try:
        if action == "read":
            module.exit_json(changed=False, values=read(options["folder"]))
        if action == "merge":
            values, differing = merge(options["kept"])
            module.exit_json(changed=False, values=values, differing=differing)
        if action == "write":
            made = {name: _make(kind) for name, kind in options["generate"].items() if not options["values"].get(name)}
            values = {**{name: value for name, value in options["values"].items() if value}, **made}
            module.exit_json(changed=write(options["folder"], values, module.check_mode), values=values)
        if action == "publish":
            names, changed = publish(engine, options, module.check_mode)
            module.exit_json(changed=changed, names=names)
        removed = prune(engine, options["prefix"], module.check_mode)
        module.exit_json(changed=bool(removed), removed=removed)
    except (EngineError, OSError) as exc:
        module.fail_json(msg=f"Secrets: {exc}")


if __name__ == "__main__":
    main()
