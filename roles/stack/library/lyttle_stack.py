#!/usr/bin/python
"""`docker stack deploy`, honest about what it changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_stack
short_description: Deploy a stack and tell which services that changed
description:
  - Runs C(docker stack deploy) with the given files and compares the services' specs before and after, since an
    unchanged spec restarts no task.
  - An image put there by C(docker service update) is replaced too. C(docker stack deploy) alone leaves it, because
    it only looks at the label with the image that the last stack file asked for.
options:
  stack:
    description: The stack's name.
    type: str
    required: true
  compose:
    description: The stack files' text, the later ones laid over the first.
    type: list
    elements: str
    required: true
  variables:
    description: What the stack files' variables stand for.
    type: dict
    default: {}
  registry:
    description: The registry whose credentials the nodes need.
    type: str
    default: ""
  username:
    description: User of the registry; without one the nodes pull without credentials.
    type: str
    default: ""
  password:
    description: The user's password or token. It stands in a file of a temporary folder while docker runs.
    type: str
    default: ""
  lock_id:
    description: The deploy lock, refreshed before anything is changed.
    type: str
    default: ""
  lock_seconds:
    description: Its time.
    type: int
    default: 600
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: Nothing is deployed. C(docker stack deploy) has no dry run, so the task is skipped.
    support: none
"""

RETURN = r"""
services:
  description: Names of the services whose spec changed.
  type: list
  returned: success
specs:
  description: Digest of each service's spec before the deploy.
  type: dict
  returned: success
wanted:
  description: Digest of each service's spec after it, for M(lyttle_rollout) to hold the service to.
  type: dict
  returned: success
known_tasks:
  description: Ids of each service's tasks before it.
  type: dict
  returned: success
lock_lost:
  description: Whether it failed because somebody else has the deploy lock.
  type: bool
  returned: failure
"""

import base64
import json
import os
import subprocess
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import ARGUMENT, Engine, EngineError, HeldLock, LockLost, spec_digest

_LABEL = "com.docker.stack.image"
_DEADLINE = 120  # seconds for docker stack deploy, which only writes specs


def digests(engine: Engine, stack: str) -> dict[str, str]:
    """Each service's spec digest by name."""
    return {service["Spec"]["Name"]: spec_digest(service["Spec"]) for service in engine.stack_services(stack)}


def tell_images(engine: Engine, stack: str) -> None:
    """Let the label say which image runs: a change of the service's labels restarts no task."""
    for service in engine.stack_services(stack):
        spec = service["Spec"]
        image = spec["TaskTemplate"]["ContainerSpec"]["Image"]
        if (spec.get("Labels") or {}).get(_LABEL, image) != image:
            spec["Labels"][_LABEL] = image
            engine.update_service(service, spec)


def deploy(options: dict[str, Any]) -> None:
    """Run docker stack deploy. Raises EngineError with its message."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment.update({key: str(value) for key, value in options["variables"].items()})
    with tempfile.TemporaryDirectory(prefix="lyttle-stack-") as folder:
        environment["DOCKER_CONFIG"] = folder
        command = ["docker"]
        host = options["docker_host"] or os.environ.get("DOCKER_HOST")
        if host:
            command += ["--host", host]
        # The image is named by its digest, or loaded onto the nodes: no registry is asked again.
        command += ["stack", "deploy", "--resolve-image", "never"]
        if options["username"]:
            login = base64.b64encode(f"{options['username']}:{options['password']}".encode()).decode()
            with open(os.path.join(folder, "config.json"), "w") as file:  # the folder is for its owner only
                json.dump({"auths": {options["registry"]: {"auth": login}}}, file)
            command.append("--with-registry-auth")
        for number, text in enumerate(options["compose"]):
            path = os.path.join(folder, f"{number}.yml")
            with open(path, "w") as file:
                file.write(text)
            command += ["--compose-file", path]
        try:
            done = subprocess.run(
                [*command, options["stack"]],
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_DEADLINE,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise EngineError(f"docker stack deploy did not end within {_DEADLINE} s") from exc
        except OSError as exc:
            raise EngineError(f"The docker command cannot be run: {exc}") from exc
    if done.returncode:
        noise = ("Ignoring unsupported", "Since --detach", "In a future release")
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(noise)]
        raise EngineError(f"docker stack deploy failed: {' '.join(lines[-3:])[:500]}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "stack": {"type": "str", "required": True},
            "compose": {"type": "list", "elements": "str", "required": True},
            "variables": {"type": "dict", "default": {}},
            "registry": {"type": "str", "default": ""},
            "username": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "lock_id": {"type": "str", "default": ""},
            "lock_seconds": {"type": "int", "default": 600},
            **ARGUMENT,
        },
    )
    options: dict[str, Any] = module.params
    engine = Engine(options["docker_host"])
    problem, begun = "", False
    try:
        HeldLock(engine, options["lock_id"], options["lock_seconds"]).hold()
        tell_images(engine, options["stack"])
        before = digests(engine, options["stack"])
        tasks = {name: [task["ID"] for task in engine.tasks(name)] for name in before}
        begun = True
        try:
            deploy(options)
        except EngineError as exc:
            problem = str(exc)
        after = digests(engine, options["stack"])
    except EngineError as exc:
        lost = isinstance(exc, LockLost)
        # When it does not answer any more, whether a service was changed cannot be told.
        module.fail_json(msg=f"The stack {options['stack']} was not deployed. {exc}", changed=begun, lock_lost=lost)
    changed = sorted(name for name in after if before.get(name) != after[name])
    known = {name: tasks.get(name, []) for name in after}
    result = {"changed": bool(changed), "services": changed, "specs": before, "wanted": after, "known_tasks": known}
    if problem:
        # Some of its services may have been changed before it stopped.
        module.fail_json(msg=f"The stack {options['stack']} was not deployed. {problem}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
