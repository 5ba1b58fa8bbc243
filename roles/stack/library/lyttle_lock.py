#!/usr/bin/python
"""The deploy lock: one Docker config, so that taking it is atomic for the whole Swarm and works without PostgreSQL."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_lock
short_description: Take, refresh, read and release the deploy lock of a LyttleOps stack
description:
  - The lock is a Docker config. Swarm refuses a second one of the same name, so only one holder exists.
  - A lock whose time has passed, or that O(takeover) names, is removed by its id and taken over.
options:
  action:
    description: What to do. V(owner) and V(judge) look at the machine they run on and ask no engine.
    choices: [acquire, refresh, release, read, owner, judge]
    required: true
    type: str
  name:
    description: Name of the config.
    type: str
    default: lyttlenginx_deploy_lock
  owner:
    description: Who holds it, as V(owner) returns it.
    type: dict
    default: {}
  reason:
    description: Why, for whoever is refused.
    type: str
    default: ""
  seconds:
    description: Time until the lock expires unless it is refreshed, in seconds.
    type: int
    default: 600
  id:
    description: The lock to refresh or release.
    type: str
  takeover:
    description: Id of a lock whose holder is known to be dead.
    type: str
  lock:
    description: The lock to judge.
    type: dict
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: Nothing is taken, refreshed or released.
    support: full
"""

RETURN = r"""
lock:
  description: The lock as it is now; null when there is none.
  type: dict
  returned: acquire, refresh, read
owner:
  description: Owner, machine and process that started this.
  type: dict
  returned: owner
dead:
  description: Whether the holder's process on this very machine is gone.
  type: bool
  returned: judge
lock_lost:
  description: Whether it failed because somebody else has the lock.
  type: bool
  returned: failure
"""

import getpass
import os
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import (
    ARGUMENT,
    Engine,
    EngineError,
    HeldLock,
    LockLost,
    check_parent,
    config_data,
    now,
    timestamp,
)

_OWNER = ("owner", "host", "pid", "pid_namespace", "start_time")  # what the lock says of its owner


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Boot id and start of a process: together with the pid it names one process for ever (proc(5), field 22)."""
    stat = _read(f"/proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split()
    return f"{_read('/proc/sys/kernel/random/boot_id')}:{fields[19]}" if len(fields) > 19 else ""


def _machine() -> str:
    return _read("/etc/machine-id") or socket.gethostname()  # a container has no machine id


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def this_owner() -> dict[str, Any]:
    """The person and the ansible-playbook process above this module."""
    pid, found = os.getpid(), 0
    while pid > 1:
        if "ansible" in _read(f"/proc/{pid}/cmdline"):
            found = pid
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    user = os.environ.get("SUDO_USER") or getpass.getuser()
    return {
        "owner": f"{user}@{socket.gethostname()}",
        "host": _machine(),
        "pid": found,
        "pid_namespace": _pid_namespace(),
        "start_time": _start_time(found) if found else "",
    }


def is_dead(lock: dict[str, Any]) -> bool:
    """Whether the lock was taken from this machine by a process that is gone. Another machine's is never judged.

    Clones of a machine have one machine id, and containers see other processes under the same pids: their names and
    their pid namespaces tell them apart."""
    here = (_machine(), socket.gethostname(), _pid_namespace())
    there = (lock.get("host"), str(lock.get("owner")).rpartition("@")[2], lock.get("pid_namespace"))
    if here != there or not lock.get("pid"):
        return False
    return _start_time(int(lock["pid"])) != lock.get("start_time")


def current(engine: Engine, name: str) -> dict[str, Any] | None:
    """The lock that stands, with its id."""
    config = engine.config(name)
    return {**config_data(config), "id": config["ID"]} if config else None


def acquire(engine: Engine, options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """The lock, ours. Raises EngineError telling who holds it, since when, why and until when."""
    deadline = time.monotonic() + 20
    while True:
        held = current(engine, options["name"])
        if held and held["id"] != options["takeover"] and held.get("expires_at", "") > now():
            raise EngineError(
                f"Refused: {held.get('owner') or 'somebody'} has the deploy lock since {held.get('started_at')} "
                f"({held.get('reason') or 'no reason given'}). It is held until {held['expires_at']} unless it is "
                "refreshed: wait for that deploy to end, or for that time if it died on another machine"
            )
        lock = {
            **{key: options["owner"].get(key) for key in _OWNER},
            "reason": options["reason"],
            "started_at": now(),
        }
        state = {"expires_at": timestamp(time.time() + options["seconds"])}
        if check_mode:
            return {**lock, **state, "id": ""}
        if held:
            engine.remove_config(held["id"])
        made = engine.create_config(options["name"], {**lock, **state})
        if made:
            return {**lock, **state, "id": made, "taken_over": held}
        if time.monotonic() > deadline:
            raise EngineError("The deploy lock could not be taken within 20 s: others take it all the time")
        check_parent()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "required": True,
                "choices": ["acquire", "refresh", "release", "read", "owner", "judge"],
            },
            "name": {"type": "str", "default": "lyttlenginx_deploy_lock"},
            "owner": {"type": "dict", "default": {}},
            "reason": {"type": "str", "default": ""},
            "seconds": {"type": "int", "default": 600},
            "id": {"type": "str"},
            "takeover": {"type": "str"},
            "lock": {"type": "dict"},
            **ARGUMENT,
        },
        required_if=[("action", "refresh", ["id"]), ("action", "judge", ["lock"])],
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    action = options["action"]
    engine = Engine(options["docker_host"])
    try:
        if action == "owner":
            module.exit_json(changed=False, owner=this_owner())
        if action == "judge":
            module.exit_json(changed=False, dead=is_dead(options["lock"]))
        if action == "read":
            module.exit_json(changed=False, lock=current(engine, options["name"]))
        if action == "acquire":
            # The lock is a tool of the run and gone at its end: an unchanged run stays unchanged.
            module.exit_json(changed=False, lock=acquire(engine, options, module.check_mode))
        if action == "refresh":
            if options["id"] and not module.check_mode:
                HeldLock(engine, options["id"], options["seconds"]).hold()
            module.exit_json(changed=False, lock=current(engine, options["name"]))
        if options["id"] and not module.check_mode:
            engine.remove_config(options["id"])
        module.exit_json(changed=False)
    except EngineError as exc:
        module.fail_json(msg=str(exc), lock_lost=isinstance(exc, LockLost))


if __name__ == "__main__":
    main()
