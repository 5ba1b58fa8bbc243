"""What a playbook is doing, read from ansible-runner's events: steps, hosts, failures, and what it says of itself.

A playbook tells its outcome by `set_stats`, not by words that somebody would have to parse:

- `lyttle_result`: what it found or did, an object; for people and programs.
- `lyttle_outcome`: how far it is, the last one counts. `refused`: nothing was changed so far; `failed`: changes have
  begun; `put_back`: the old version serves again. A failure without it counts as `failed`.

They are read as they happen, so they are known of a playbook that was interrupted as well.
"""

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SET_STATS = {"set_stats", "ansible.builtin.set_stats", "ansible.legacy.set_stats"}
_FAIL = {"fail", "ansible.builtin.fail", "ansible.legacy.fail"}
_VALIDATE = {"validate_argument_spec", "ansible.builtin.validate_argument_spec"}  # added by Ansible to each role
_HIDDEN = "its message is hidden, since it may hold secrets"


class State(enum.Enum):
    """What a step did on a host."""

    RUNNING = "running"
    OK = "ok"
    CHANGED = "changed"
    SKIPPED = "skipped"
    IGNORED = "ignored"  # it failed, and the playbook does not mind
    FAILED = "failed"
    UNREACHABLE = "unreachable"

    @property
    def bad(self) -> bool:
        return self in (State.FAILED, State.UNREACHABLE)


@dataclass(slots=True)
class Step:
    """One task of the playbook, nameless when people need not see it; times on the monotonic clock, in seconds."""

    name: str
    started: float
    hosts: dict[str, State] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)  # of the hosts where it failed
    seconds: float = 0.0

    @property
    def ran(self) -> bool:
        """Whether it did something somewhere."""
        return any(state is not State.SKIPPED for state in self.hosts.values())

    @property
    def state(self) -> State:
        """The worst of its hosts."""
        for state in (State.UNREACHABLE, State.FAILED, State.RUNNING, State.IGNORED, State.CHANGED, State.OK):
            if state in self.hosts.values():
                return state
        return State.SKIPPED


@dataclass(slots=True)
class Host:
    """Counts of one host's steps."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    step: str = ""  # the one it is in or was in last


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the playbook failed on a host."""

    host: str
    step: str
    message: str
    unreachable: bool = False  # the connection to it was lost: no rescue of the playbook ran there


class Progress:
    """Takes events in, answers what is going on."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.current: Step | None = None
        self.finished: list[Step] = []  # those that ran somewhere
        self.hosts: dict[str, Host] = {}
        self.outcome: str | None = None
        self.result: dict[str, Any] | None = None
        self.errors: list[str] = []  # Ansible's own, outside of tasks
        self.unmatched: list[str] = []  # host patterns that match nobody
        self._pattern = ""
        self._last_failure: dict[str, Failure] = {}
        self._failed_hosts: set[str] | None = None  # by the closing statistics; None before them

    def take(self, event: Mapping[str, Any]) -> bool:
        """Take one event; True when it finished a step that ran somewhere (the last of `finished`)."""
        data: Mapping[str, Any] = event.get("event_data") or {}
        match str(event.get("event", "")):
            case "playbook_on_play_start":
                self._pattern = str(data.get("pattern", ""))
                return self.end_step()
            case "playbook_on_task_start":
                ended = self.end_step()
                unseen = data.get("task_action") in (*_SET_STATS, *_VALIDATE)
                self.current = Step("" if unseen else _name(data), time.monotonic())
                return ended
            case "runner_on_start":
                self._host(data, State.RUNNING)
            case "runner_on_ok":
                response = _response(data)
                self._host(data, State.CHANGED if response.get("changed") is True else State.OK)
                if data.get("task_action") in _SET_STATS:
                    self._told(response.get("ansible_stats", {}).get("data", {}))
            case "runner_on_skipped":
                self._host(data, State.SKIPPED)
            case "runner_on_failed":
                self._failed(data, State.IGNORED if data.get("ignore_errors") else State.FAILED)
            case "runner_on_unreachable":
                self._failed(data, State.UNREACHABLE)
            case "playbook_on_no_hosts_matched":
                self.unmatched.append(self._pattern)
            case "error":
                if not data.get("task"):  # a task's own comes with the task
                    self.errors.append(_text(event.get("stdout", "")))
            case "playbook_on_stats":
                self._failed_hosts = {*data.get("failures", {}), *data.get("dark", {})}
                said = data.get("artifact_data", {})
                if self.result is None:  # it may have been too large for an event of its own
                    self._told({name: value for name, value in said.items() if name != "lyttle_outcome"})
                return self.end_step()
        return False

    def end_step(self) -> bool:
        """End the current step, if any; True when it ran somewhere."""
        step, self.current = self.current, None
        if step is None or not step.name or not step.ran:
            return False
        step.seconds = time.monotonic() - step.started
        self.finished.append(step)
        return True

    @property
    def failures(self) -> list[Failure]:
        """The last failure of each host that failed in the end; those that a rescue dealt with are not among them."""
        hosts = self._last_failure if self._failed_hosts is None else self._failed_hosts
        return [failure for host, failure in self._last_failure.items() if host in hosts]

    def _host(self, data: Mapping[str, Any], state: State) -> None:
        name = str(data.get("host", ""))
        host = self.hosts.setdefault(name, Host())
        if self.current is not None:
            self.current.hosts[name] = state
            host.step = self.current.name
        host.ok += state in (State.OK, State.CHANGED, State.IGNORED)
        host.changed += state is State.CHANGED
        host.failed += state.bad

    def _failed(self, data: Mapping[str, Any], state: State) -> None:
        self._host(data, state)
        host, message = str(data.get("host", "")), explain(_response(data))
        if message == _HIDDEN and (place := data.get("task_path")):
            message += f"; the task stands in {place}"
        if self.current is not None:
            self.current.messages[host] = message
        if state.bad:
            before = self._last_failure.pop(host, None)  # so that the newest stands last
            step = _name(data) or (self.current.name if self.current else "")
            if before is not None and data.get("task_action") in _FAIL:
                step = before.step  # a rescue that ends with its own words: what failed is what it came to rescue
            self._last_failure[host] = Failure(host, step, message, state is State.UNREACHABLE)

    def _told(self, data: Any) -> None:
        if not isinstance(data, Mapping):
            return
        if isinstance(data.get("lyttle_outcome"), str):
            self.outcome = data["lyttle_outcome"]
        if isinstance(data.get("lyttle_result"), Mapping):
            self.result = dict(data["lyttle_result"])


def explain(response: Mapping[str, Any]) -> str:
    """A failed task's result in a sentence or a few: its message, and what a command or a crash said."""
    if "censored" in response:
        return _HIDDEN
    items = [item for item in response.get("results") or () if isinstance(item, Mapping) and _bad(item)]
    if items:
        said = dict.fromkeys(explain(item) for item in items)  # each once
        return "; ".join(said)
    if isinstance(late := response.get("timedout"), Mapping):  # the task's own `timeout`
        return f"no answer within {late.get('period')} s: the host or its Docker engine hangs, or is overloaded"
    message = _text(response.get("msg", ""))
    if "module_stderr" in response or message.startswith("MODULE FAILURE"):
        # A module that crashed, or no Python on the host: the last line is the exception or the shell's complaint.
        last = _last_line(response.get("module_stderr") or response.get("module_stdout") or response.get("exception"))
        return f"{message.splitlines()[0] if message else 'the module failed'}: {last}" if last else message
    if response.get("rc") not in (None, 0) and "cmd" in response:
        last = _last_line(response.get("stderr") or response.get("stdout"))
        return f"{message}: {last}" if last and last not in message else message
    return message or "it failed without a message"


def _bad(item: Mapping[str, Any]) -> bool:
    return bool(item.get("failed") or item.get("unreachable"))


def _response(data: Mapping[str, Any]) -> Mapping[str, Any]:
    response = data.get("res")
    return response if isinstance(response, Mapping) else {}


def _name(data: Mapping[str, Any]) -> str:
    """The task's own name, without that of its role."""
    return str(data.get("task") or data.get("name") or "").removeprefix(f"{data.get('role')} : ")


def _text(value: Any) -> str:
    """Ansible's message as a sentence, without the prefixes that say only who said it."""
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = text.replace("\r\n", "\n").strip()
    for prefix in ("[ERROR]: ", "ERROR! ", "Task failed: ", "Action failed: ", "Module failed: "):
        text = text.removeprefix(prefix)
    return text


def _last_line(value: Any) -> str:
    lines = [line.strip() for line in str(value or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""
