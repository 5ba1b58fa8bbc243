"""A running playbook, shown: a live table on a terminal, one line for each finished step elsewhere."""

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

import click
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lyttle_ops.deploy.progress import Progress, State, Step

_SHOWN = 6  # finished steps above the current one
_FEW = 6  # hosts that a line names, more are counted
_COLOURS = {
    State.OK: "green",
    State.CHANGED: "yellow",
    State.IGNORED: "magenta",
    State.FAILED: "red",
    State.UNREACHABLE: "red",
}


class Steps:
    """Shows `progress` while the `with` block runs; a reader that leaves does not disturb what is running."""

    def __init__(
        self, title: str, progress: Progress, stream: TextIO, *, lines: bool = True, raw: bool = False
    ) -> None:
        """`lines`: also when `stream` is no terminal. `raw`: Ansible's own output instead of the table."""
        self._title = title
        self._progress = progress
        self._stream = stream
        self._raw = raw
        self._silent = not (lines or raw or stream.isatty())
        self._notes: list[str] = []
        self._said = 0
        self._live: Live | None = None
        if stream.isatty() and not raw:
            self._spinner = Spinner("dots")
            self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)

    def __enter__(self) -> "Steps":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._live is not None:
            with self._watched():
                self._live.stop()

    def note(self, line: str) -> None:
        """Say something beside the steps. Safe in a signal handler: it is shown with the next tick."""
        self._notes.append(line)

    def event(self, event: Mapping[str, Any], step_ended: bool) -> None:
        """An event that the progress has taken."""
        if self._raw:
            if text := str(event.get("stdout", "")):
                self._say(text.replace("\r\n", "\n"))
        elif step_ended and self._live is None:
            step = self._progress.finished[-1]
            self._say(f"{step.state.value:<11} {step.name} ({_hosts(step)}) {step.seconds:.1f} s", step.state)
            for message in dict.fromkeys(step.messages.values()):
                hosts = _names(host for host, said in step.messages.items() if said == message)
                self._say(f"{'':<11} {hosts}: {message}")

    def tick(self) -> None:
        """Show what changed since."""
        while self._said < len(self._notes):
            line = self._notes[self._said]
            self._said += 1
            if self._live is not None:
                with self._watched():
                    self._live.console.print(Text(line, style="bold"))
            else:
                self._say(line)
        if self._live is not None:
            with self._watched():
                self._live.update(self._picture(), refresh=True)

    def _say(self, line: str, state: State | None = None) -> None:
        if self._silent:
            return
        styled = click.style(line, fg=_COLOURS.get(state)) if state in (State.FAILED, State.UNREACHABLE) else line
        with self._watched():
            click.echo(styled, file=self._stream)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Whoever looks may be gone, as with `| head` or a closed terminal: what runs must not notice."""
        try:
            yield
        except OSError as exc:
            self._silent, self._live = True, None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            gone = (sys.stdout, sys.stderr) if exc.errno == errno.EIO else (self._stream,)  # EIO: the terminal itself
            for stream in gone:
                os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

    def _picture(self) -> Group:
        progress = self._progress
        parts: list[Any] = [Text(f"{self._title}   {_clock(time.monotonic() - progress.started)}", style="bold")]
        steps = Table.grid(padding=(0, 1))
        for step in progress.finished[-_SHOWN:]:
            mark = "✗" if step.state.bad else "!" if step.state is State.IGNORED else "✓"
            took = Text(f"{step.seconds:.1f} s", style="dim")
            steps.add_row(Text(mark, style=_COLOURS.get(step.state, "")), step.name, took)
        if (current := progress.current) is not None and current.name:
            took = Text(f"{time.monotonic() - current.started:.0f} s", style="dim")
            steps.add_row(self._spinner, Text(current.name, style="bold"), took)
        parts.append(steps)
        if progress.hosts:
            hosts = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for heading in ("host", "ok", "changed", "failed", "now"):
                hosts.add_column(heading, header_style="dim", no_wrap=True, overflow="ellipsis")
            for name, host in progress.hosts.items():
                state = progress.current.hosts.get(name) if progress.current else None
                hosts.add_row(
                    name,
                    Text(str(host.ok), style="green"),
                    Text(str(host.changed), style="yellow" if host.changed else "dim"),
                    Text(str(host.failed), style="red" if host.failed else "dim"),
                    Text(state.value, style=_COLOURS.get(state, "cyan")) if state else Text("waits", style="dim"),
                )
            parts.append(hosts)
        return Group(*parts)


def _hosts(step: Step) -> str:
    by_state: dict[State, list[str]] = {}
    for host, state in step.hosts.items():
        if state is not State.SKIPPED:
            by_state.setdefault(state, []).append(host)
    if len(by_state) == 1:
        return _names(next(iter(by_state.values())))
    return ", ".join(f"{_names(hosts)} {state.value}" for state, hosts in by_state.items())


def _names(hosts: Iterable[str]) -> str:
    found = sorted(hosts)
    return ", ".join(found) if len(found) <= _FEW else f"{len(found)} hosts"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
