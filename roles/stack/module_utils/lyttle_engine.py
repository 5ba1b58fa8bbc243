"""The Docker Engine's API over its socket: what the modules of this role need of it, with nothing but the stdlib.

Paths carry no version, so an engine answers with its newest (https://docs.docker.com/reference/api/engine/). Swarm's
configs are the cluster's notebook here: creating one is atomic in Swarm's raft store, and of an existing one only
the labels may change.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import select
import socket
import time
from typing import Any
from urllib.parse import quote, urlencode

DEFAULT_HOST = "unix:///var/run/docker.sock"
ARGUMENT = {"docker_host": {"type": "str"}}

PATIENCE = 20.0  # seconds; managers elect a new leader in about 3

# The result of a release and the expiry of a lock stand here, since the data of a config never changes.
STATE_LABEL = "lyttle.state"

LOCK_REFRESH = 15.0  # seconds between two refreshes of the deploy lock


class EngineError(Exception):
    """The engine refused or could not be reached. `status` is its HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Orphaned(Exception):
    """Whoever started this module is gone."""


class LockLost(EngineError):
    """Somebody else has the deploy lock: whoever worked under it must not change anything any more."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """One engine. Each call has a time-out of its own (seconds); raises EngineError."""

    def __init__(self, host: str | None = None, timeout: float = 30) -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._timeout = timeout

    def call(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The decoded JSON answer, None for an empty one."""
        content = self.raw(method, path, query, body, headers)
        return json.loads(content) if content.strip() else None

    def raw(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """The answer's bytes. While the Swarm has no leader (one of its managers was lost), or the engine does not
        answer a question, it is asked again for PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._once(method, path, query, body, headers)
            except EngineError as exc:
                # 503: without a leader nothing was done. Without any answer a change may have been.
                again = exc.status == 503 or (exc.status == 0 and method == "GET")
                if not again or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def _once(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: Any,
        headers: dict[str, str] | None,
    ) -> bytes:
        connection = self._connection()
        target = path + ("?" + urlencode(query) if query else "")
        try:
            connection.request(
                method,
                target,
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json", **(headers or {})},
            )
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise EngineError(f"The Docker engine at {self.host} does not answer: {exc}") from exc
        finally:
            connection.close()
        if answer.status >= 400:
            try:
                message = json.loads(content)["message"]
            except (ValueError, KeyError, TypeError):
                message = content.decode(errors="replace")[:300]
            raise EngineError(message, answer.status)
        return content

    def _connection(self) -> http.client.HTTPConnection:
        if self.host.startswith("unix://"):
            return _UnixConnection(self.host[len("unix://") :], self._timeout)
        raise EngineError(f"DOCKER_HOST {self.host} is not supported; accepted: unix:///path")

    # Configs

    def configs(self, prefix: str) -> list[dict[str, Any]]:
        """All configs whose name starts with `prefix`, as Swarm tells them."""
        found = self.call("GET", "/configs", {"filters": json.dumps({"name": [prefix]})}) or []
        return [config for config in found if config["Spec"]["Name"].startswith(prefix)]

    def config(self, name: str) -> dict[str, Any] | None:
        """The config of exactly this name."""
        return next((config for config in self.configs(name) if config["Spec"]["Name"] == name), None)

    def create_config(self, name: str, data: Any, labels: dict[str, str] | None = None) -> str | None:
        """The new config's id; None when the name is taken."""
        content = base64.b64encode(json.dumps(data).encode()).decode()
        try:
            made = self.call("POST", "/configs/create", body={"Name": name, "Data": content, "Labels": labels or {}})
        except EngineError as exc:
            if exc.status == 409:
                return None
            raise
        return str(made["ID"])

    def label_config(self, config_id: str, state: dict[str, Any]) -> None:
        """Replace the state label. A concurrent change is repeated upon; raises EngineError 404 when it is gone."""
        for _ in range(5):
            config = self.call("GET", f"/configs/{config_id}")
            spec = config["Spec"]
            spec["Labels"] = {**(spec.get("Labels") or {}), STATE_LABEL: json.dumps(state)}
            try:
                self.call("POST", f"/configs/{config_id}/update", {"version": config["Version"]["Index"]}, spec)
                return
            except EngineError as exc:
                if "out of sequence" not in str(exc):
                    raise
        raise EngineError(f"The config {config_id} changes faster than it can be written")

    def remove_config(self, config_id: str) -> bool:
        """False when it was gone already."""
        try:
            self.call("DELETE", f"/configs/{config_id}")
        except EngineError as exc:
            if exc.status == 404:
                return False
            raise
        return True

    # Services, nodes, tasks

    def service(self, name: str) -> dict[str, Any] | None:
        """The service of this name, None when there is none."""
        try:
            found: dict[str, Any] = self.call("GET", f"/services/{quote(name, safe='')}")
        except EngineError as exc:
            if exc.status == 404:
                return None
            raise
        return found

    def stack_services(self, stack: str) -> list[dict[str, Any]]:
        """The services of a stack."""
        filters = {"label": [f"com.docker.stack.namespace={stack}"]}
        return self.call("GET", "/services", {"filters": json.dumps(filters)}) or []

    def update_service(self, service: dict[str, Any], spec: dict[str, Any], rollback: bool = False) -> None:
        """Give the service another spec, or with `rollback` the one before."""
        query: dict[str, Any] = {"version": service["Version"]["Index"]}
        if rollback:
            query["rollback"] = "previous"
        self.call("POST", f"/services/{service['ID']}/update", query, spec)

    def nodes(self) -> list[dict[str, Any]]:
        """The Swarm's nodes."""
        return self.call("GET", "/nodes") or []

    def tasks(self, service_name: str) -> list[dict[str, Any]]:
        """The tasks of a service, newest first."""
        found = self.call("GET", "/tasks", {"filters": json.dumps({"service": [service_name]})}) or []
        return sorted(found, key=lambda task: task["CreatedAt"], reverse=True)

    def task_logs(self, task_id: str, lines: int = 200) -> list[str]:
        """The last lines that a task wrote; empty when its node or log driver does not give them."""
        try:
            query = {"stdout": 1, "stderr": 1, "tail": lines}
            raw = Engine(self.host, 5)._once("GET", f"/tasks/{task_id}/logs", query, None, None)
        except EngineError:
            return []
        text, at = b"", 0
        while at + 8 <= len(raw):  # each frame: stream, 3 zeros, length (4 bytes, big endian)
            length = int.from_bytes(raw[at + 4 : at + 8], "big")
            text += raw[at + 8 : at + 8 + length]
            at += 8 + length
        return [line[:1000] for line in text.decode(errors="replace").splitlines() if line.strip()][-lines:]


class HeldLock:
    """The deploy lock that a module works under; without an id there is none to look after."""

    def __init__(self, engine: Engine, lock_id: str | None, seconds: int) -> None:
        self._engine, self._id, self._seconds = engine, lock_id, seconds
        self._refreshed: float | None = None

    def keep(self) -> None:
        """Now and then while waiting: move the expiry. Raises LockLost."""
        if self._refreshed is None or time.monotonic() - self._refreshed > LOCK_REFRESH:
            self.hold()

    def hold(self) -> None:
        """Right before a change: the lock is still ours, and stays so for its whole time. Raises LockLost."""
        if not self._id:
            return
        try:
            self._engine.label_config(self._id, {"expires_at": timestamp(time.time() + self._seconds)})
        except EngineError as exc:
            if exc.status == 404:
                raise LockLost(
                    "The deploy lock was taken over by somebody else, since it had expired: this deploy stops here", 404
                ) from exc
            raise
        self._refreshed = time.monotonic()


def config_data(config: dict[str, Any]) -> dict[str, Any]:
    """What a config made by `create_config` holds, with its state label laid over it."""
    try:
        data = json.loads(base64.b64decode(config["Spec"].get("Data") or "") or b"{}")
        state = json.loads((config["Spec"].get("Labels") or {}).get(STATE_LABEL) or "{}")
        return {**data, **state}
    except (ValueError, TypeError) as exc:
        raise EngineError(f"The config {config['Spec']['Name']} was not written by LyttleOps: {exc}") from exc


def digest(value: Any) -> str:
    """A short name for a JSON value: 16 hex digits of SHA-256 of its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def spec_digest(spec: dict[str, Any]) -> str:
    """Names what a service's spec runs. Registry credentials are no part of it, nor how often it was restarted."""
    spec = json.loads(json.dumps(spec))
    template = spec.get("TaskTemplate") or {}
    (template.get("ContainerSpec") or {}).pop("PullOptions", None)
    # `docker service update --image` writes down what the image runs on; our stack files do not.
    (template.get("Placement") or {}).pop("Platforms", None)
    if "ForceUpdate" in template:
        template["ForceUpdate"] = 0  # `docker service update --force` counts there, and runs the same
    # `docker stack deploy` sets it after the image that was asked for; the image itself is compared.
    (spec.get("Labels") or {}).pop("com.docker.stack.image", None)
    return digest(spec)


def mode_of(spec: dict[str, Any]) -> str:
    """`global`, or `replicated`."""
    return "global" if "Global" in (spec.get("Mode") or {}) else "replicated"


def image_version(image: str) -> str:
    """The tag of an image reference, else the start of its digest."""
    name, _, checksum = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return tag or checksum.removeprefix("sha256:")[:12] or "latest"


def now() -> str:
    """This machine's time, ISO 8601 in UTC."""
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def check_parent() -> None:
    """Raise Orphaned when nobody reads this module's output any more (ansible-playbook was killed)."""
    poll = select.poll()
    poll.register(1, 0)
    for _, event in poll.poll(0):
        if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            raise Orphaned
