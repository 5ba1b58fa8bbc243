#!/usr/bin/python
"""The history of releases: one Docker config each, so that it works with PostgreSQL down."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_release
short_description: Record what was deployed, and find what to go back to
description:
  - Each release is a Docker config whose data holds what is needed to deploy it again, without secrets. The outcome
    stands in a label, since the data of a config never changes.
options:
  action:
    description:
      - V(start) writes a record with the result C(running), after a change by hand got a record of its own.
      - V(finish) writes its outcome and removes all but the newest O(keep), what should run, and what to go back to.
      - V(interrupt) marks records that still run while nobody holds the lock.
      - V(list) tells all, newest first; V(find) the one that O(to) names.
      - V(plan) tells whether deploying O(record) would change anything, and what an earlier deploy left there.
    choices: [start, finish, interrupt, list, find, plan]
    required: true
    type: str
  prefix:
    description: Start of the configs' names.
    type: str
    default: lyttlenginx_release_
  stack:
    description: The stack whose services' specs are compared.
    type: str
    default: lyttlenginx
  service:
    description: The service whose image counts.
    type: str
    default: lyttlenginx_lyttlenginx
  record:
    description: What V(start) writes, and what V(plan) compares with what is deployed. Its C(baseline), what nodes
      answered before, is kept for the deploy that goes on from this one.
    type: dict
    default: {}
  number:
    description: The record to finish.
    type: int
  result:
    description: How it ended.
    choices: [succeeded, failed, interrupted]
    type: str
    default: succeeded
  message:
    description: What happened, for people.
    type: str
    default: ""
  nodes:
    description: The proof of each node.
    type: list
    elements: dict
    default: []
  to:
    description: An image, a version or a release number; empty means the release before the one that runs, or before
      the one that was gone back to.
    type: str
    default: ""
  keep:
    description: Records that stay.
    type: int
    default: 50
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: Nothing is written.
    support: full
"""

RETURN = r"""
release:
  description: The record written or found.
  type: dict
  returned: start, finish, find
newest:
  description: The newest record that succeeded, before the one written.
  type: dict
  returned: start, list, find, plan
releases:
  description: All records without what a deploy needs, newest first.
  type: list
  returned: list
drift:
  description: How the services differ from the newest release that succeeded, in words.
  type: list
  returned: list, find, plan
live_mode:
  description: The mode of the service as it is; empty when there is none.
  type: str
  returned: plan
left:
  description: Whether a deploy without success, which did not put the good release back either, left what runs now.
  type: bool
  returned: plan
before:
  description: The baseline of the first such deploy, when it is not too old.
  type: list
  returned: plan
unchanged:
  description: Whether the newest release that succeeded is O(record) and still stands.
  type: bool
  returned: plan
"""

import base64
import calendar
import contextlib
import itertools
import json
import time
import zlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import (
    ARGUMENT,
    Engine,
    EngineError,
    config_data,
    digest,
    image_version,
    mode_of,
    now,
    spec_digest,
)

SUCCEEDED, FAILED, RUNNING, INTERRUPTED = "succeeded", "failed", "running", "interrupted"
_BASELINE_BYTES = 100_000  # of a config's 500 kB
_BASELINE_AGE = 900  # seconds; upstreams change

UNSHOWN = ("inputs", "id", "specs", "inputs_digest", "baseline")


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """A record for people: without its stack file."""
    return {key: value for key, value in record.items() if key not in UNSHOWN}


def records(engine: Engine, prefix: str) -> list[dict[str, Any]]:
    """All records, newest first."""
    found = []
    for config in engine.configs(prefix):
        if config["Spec"]["Name"][len(prefix) :].isdigit():
            found.append({**config_data(config), "id": config["ID"]})
    return sorted(found, key=lambda record: record["number"], reverse=True)


def newest_good(everything: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest record that succeeded: what should run."""
    return next((record for record in everything if record.get("result") == SUCCEEDED), None)


def inputs_digest(record: dict[str, Any]) -> str:
    """Names what a record deploys. Secrets are left out: a release goes back in code and settings, not in passwords."""
    inputs = record.get("inputs") or {}
    variables = {k: v for k, v in (inputs.get("variables") or {}).items() if not k.startswith(("SECRET_", "CONFIG_"))}
    return digest([record.get("image"), inputs.get("compose"), variables])


def same(newest: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether a record would deploy exactly what the newest good one did, secrets included."""
    variables = [(r.get("inputs") or {}).get("variables") for r in (newest, record)]
    return (
        inputs_digest(newest) == inputs_digest(record)
        and variables[0] == variables[1]
        and newest.get("mode") == record.get("mode")
    )


def live(engine: Engine, stack: str) -> dict[str, dict[str, Any]]:
    """The specs of the stack's services by name."""
    return {service["Spec"]["Name"]: service["Spec"] for service in engine.stack_services(stack)}


def image_of(spec: dict[str, Any]) -> str:
    """The image that a service's spec names."""
    return str(spec["TaskTemplate"]["ContainerSpec"]["Image"])


def unfinished(everything: list[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """The records, newest first, of deploys since the good release was last there that did not put it back."""
    good = ((newest_good(everything) or {}).get("specs") or {}).get(service)

    def left(record: dict[str, Any]) -> bool:
        ended_with = (record.get("specs") or {}).get(service)
        return record.get("result") != SUCCEEDED and (good is None or ended_with != good)

    return list(itertools.takewhile(left, everything))


def left_by(everything: list[dict[str, Any]], image: str, service: str) -> dict[str, Any] | None:
    """The newest of them that deployed this image: it was left there, and put there by nobody's hand."""
    return next((record for record in unfinished(everything, service) if record.get("image") == image), None)


def answers_before(everything: list[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """What nodes answered before the first of them, while that was a short time ago: nodes that run what they left are
    no measure any more."""
    for record in reversed(unfinished(everything, service)):
        kept = record.get("baseline")
        if kept:
            started = calendar.timegm(time.strptime(record["started_at"], "%Y-%m-%dT%H:%M:%SZ"))
            found: list[dict[str, Any]] = json.loads(zlib.decompress(base64.b64decode(kept)))
            return found if 0 <= time.time() - started <= _BASELINE_AGE else []
    return []


def packed(baseline: list[dict[str, Any]]) -> str:
    """A baseline as a record keeps it; empty when it is too long."""
    text = base64.b64encode(zlib.compress(json.dumps(baseline).encode())).decode()
    return text if baseline and len(text) <= _BASELINE_BYTES else ""


def drift(everything: list[dict[str, Any]], specs: dict[str, dict[str, Any]], service: str) -> list[str]:
    """How the live services differ from the newest good record, in words."""
    newest = newest_good(everything)
    if newest is None:
        return []
    number, told = newest["number"], []
    unfinished = left_by(everything, image_of(specs[service]), service) if service in specs else None
    why = f"left by release {unfinished['number']}, {unfinished.get('result')}" if unfinished else "changed by hand"
    for name, known in newest["specs"].items():
        spec = specs.get(name)
        if spec is None:
            told.append(f"the service {name} of release {number} is gone")
        elif name == service and image_of(spec) != newest["image"]:
            told.append(f"{name} runs {image_of(spec)}, release {number} is {newest['image']}: {why}")
        elif spec_digest(spec) != known:
            told.append(f"the settings of {name} differ from release {number}: {why}")
    told += [
        f"the service {name} is no part of release {number}" for name in specs if name not in newest.get("specs", {})
    ]
    return told


def write(engine: Engine, prefix: str, record: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """A new record under the next free number."""
    for _ in range(20):
        taken = records(engine, prefix)
        number = (taken[0]["number"] if taken else 0) + 1
        data = {**record, "number": number, "started_at": record.get("started_at") or now()}
        data["inputs_digest"] = inputs_digest(data)
        data["baseline"] = packed(data.get("baseline") or [])
        identifier = engine.create_config(f"{prefix}{number}", data, {"lyttle.release": str(number)})
        if identifier:
            engine.label_config(identifier, state)
            return {**data, **state, "id": identifier}
        time.sleep(0.1)
    raise EngineError("No number was free for this release's record within 20 tries")


def adopt(engine: Engine, options: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an image put there by hand, when there was one. Settings changed by hand cannot be told as
    inputs: the next deploy mends them."""
    everything = records(engine, options["prefix"])
    newest, service = newest_good(everything), engine.service(options["service"])
    if newest is None or service is None or image_of(service["Spec"]) == newest["image"]:
        return None
    if left_by(everything, image_of(service["Spec"]), options["service"]):
        return None
    specs = live(engine, options["stack"])
    image = image_of(service["Spec"])
    inputs = newest.get("inputs") or {}
    record = {
        "action": "by hand",
        "image": image,
        "version": next((r["version"] for r in everything if r["image"] == image), image_version(image)),
        "operator": "unknown",
        "reason": "; ".join(drift(everything, specs, options["service"])),
        "started_at": service["UpdatedAt"][:19] + "Z",
        "mode": newest.get("mode"),
        "inputs": {**inputs, "variables": {**(inputs.get("variables") or {}), "LYTTLE_IMAGE": image}},
    }
    state = {
        "result": SUCCEEDED,
        "finished_at": now(),
        "message": "found and written down by the next deploy",
        "nodes": [],
        "specs": {name: spec_digest(spec) for name, spec in specs.items()},
    }
    return write(engine, options["prefix"], record, state)


def interrupt(engine: Engine, prefix: str, check_mode: bool) -> list[int]:
    """Mark each record that still runs. The caller holds the lock, so nobody works on them."""
    marked = []
    for record in records(engine, prefix):
        if record.get("result", RUNNING) == RUNNING:
            marked.append(record["number"])
            if not check_mode:
                state = {
                    "result": INTERRUPTED,
                    "finished_at": now(),
                    "message": "its command was killed or lost its connection before the end",
                    "nodes": record.get("nodes", []),
                }
                engine.label_config(record["id"], state)
    return marked


def finish(engine: Engine, options: dict[str, Any]) -> dict[str, Any]:
    """Write the outcome of a record; forget the oldest ones."""
    all_records = records(engine, options["prefix"])
    record = next((r for r in all_records if r["number"] == options["number"]), None)
    if record is None:
        raise EngineError(f"Release {options['number']} has no record to finish")
    state = {
        "result": options["result"],
        "finished_at": now(),
        "message": options["message"],
        "nodes": options["nodes"],
        "specs": {name: spec_digest(spec) for name, spec in live(engine, options["stack"]).items()},
    }
    engine.label_config(record["id"], state)
    record.update(state)
    for old in forgotten(all_records, options["keep"]):
        with contextlib.suppress(EngineError):  # the outcome is written; the next release forgets it
            engine.remove_config(old["id"])
    return record


def forgotten(all_records: list[dict[str, Any]], keep: int) -> list[dict[str, Any]]:
    """Records beyond the newest `keep`. What should run, the good one before it and what a rollback goes to stay,
    however many failed since."""
    good = [record for record in all_records if record.get("result") == SUCCEEDED]
    stay = [*good[:2], find(all_records, "")]
    return [record for record in all_records[max(keep, 0) :] if record not in stay]


def find(all_records: list[dict[str, Any]], to: str) -> dict[str, Any] | None:
    """The record that `to` names: an image, else a version (newest first), else a number: a version may be one. Without
    `to`: the one before what the newest good one deployed."""
    good = [record for record in all_records if record.get("result") == SUCCEEDED and record.get("inputs")]
    if not to:
        return before(good)
    good = [record for record in good if not record.get("transient")]
    named = [r for r in good if to in (r["image"], r["image"].partition("@")[0])]
    named = named or [r for r in good if r["version"] == to]
    if not named and to.isdigit():
        named = [r for r in all_records if r["number"] == int(to) and r.get("inputs")]
    return next(iter(named), None)


def before(good: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of good records, newest first, the one before what the newest deployed. A release that was gone back to stands
    where it stood: what came after it is not gone back to, so that one rollback after the other walks back."""
    at = good[0]["number"] if good else 0
    same_release = {good[0]["inputs_digest"]} if good else set()
    for record in good:
        if record["number"] > at:
            continue
        if record["number"] == at or record["inputs_digest"] in same_release:
            same_release.add(record["inputs_digest"])
            at = int(record.get("back_to") or record["number"])
        elif not record.get("transient"):
            return record
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "required": True,
                "choices": ["start", "finish", "interrupt", "list", "find", "plan"],
            },
            "prefix": {"type": "str", "default": "lyttlenginx_release_"},
            "stack": {"type": "str", "default": "lyttlenginx"},
            "service": {"type": "str", "default": "lyttlenginx_lyttlenginx"},
            "record": {"type": "dict", "default": {}},
            "number": {"type": "int"},
            "result": {"type": "str", "choices": [SUCCEEDED, FAILED, INTERRUPTED], "default": SUCCEEDED},
            "message": {"type": "str", "default": ""},
            "nodes": {"type": "list", "elements": "dict", "default": []},
            "to": {"type": "str", "default": ""},
            "keep": {"type": "int", "default": 50},
            **ARGUMENT,
        },
        required_if=[("action", "finish", ["number"])],
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    engine, prefix, action = Engine(options["docker_host"]), options["prefix"], options["action"]
    try:
        if action == "interrupt":
            marked = interrupt(engine, prefix, module.check_mode)
            module.exit_json(changed=bool(marked), interrupted=marked)
        if action == "start":
            if module.check_mode:
                newest = newest_good(records(engine, prefix))
                module.exit_json(changed=False, release={**options["record"], "number": 0}, newest=newest)
            by_hand = adopt(engine, options)
            newest = newest_good(records(engine, prefix))
            record = write(engine, prefix, options["record"], {"result": RUNNING, "nodes": []})
            # A record says that something is going on; whether anything changed, the services tell.
            module.exit_json(changed=False, release=record, newest=newest, by_hand=by_hand and shown(by_hand))
        if action == "finish":
            if module.check_mode:
                module.exit_json(changed=False, release={})
            module.exit_json(changed=False, release=shown(finish(engine, options)))
        everything = records(engine, prefix)
        newest = newest_good(everything)
        told = drift(everything, live(engine, options["stack"]), options["service"])
        if action == "list":
            module.exit_json(changed=False, releases=[shown(r) for r in everything], drift=told, newest=newest)
        service = engine.service(options["service"])
        if action == "plan":
            left = left_by(everything, image_of(service["Spec"]), options["service"]) if service and told else None
            module.exit_json(
                changed=False,
                drift=told,
                newest=newest,
                first=newest is None,
                live_mode=mode_of(service["Spec"]) if service else "",
                left=bool(left),
                before=answers_before(everything, options["service"]) if left else [],
                unchanged=newest is not None and not told and same(newest, options["record"]),
            )
        wanted = find(everything, options["to"])
        if not options["to"] and newest and service and image_of(service["Spec"]) != newest["image"]:
            wanted = newest  # what runs was put there by hand: the release before it is the newest good one
        module.exit_json(changed=False, release=wanted, drift=told, newest=newest)
    except EngineError as exc:
        module.fail_json(msg=f"The history of releases cannot be used: {exc}")


if __name__ == "__main__":
    main()
