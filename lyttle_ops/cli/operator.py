"""What the operator's commands share: their options, a playbook run that is shown, exit codes, JSON.

0: done · 1: it failed, and the reason is said · 2: wrong usage · 3: refused, nothing was changed (another deploy
holds the lock, PostgreSQL does not answer, the rollback's target does not exist, a host does not answer before anything
began) · 4: it failed, and the old version was put back · 130: Ctrl-C.
"""

import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from lyttle_ops.deploy.runs import Control, End, Ended, InventoryMissing, Playbook
from lyttle_ops.errors import LyttleOpsError

EXIT = {End.DONE: 0, End.FAILED: 1, End.REFUSED: 3, End.PUT_BACK: 4, End.INTERRUPTED: 130}
EXIT_CODES = """Exit codes: 0 done; 1 failed, with the reason; 2 wrong usage; 3 refused, nothing was changed;
4 failed, and the old version was put back; 130 Ctrl-C."""
_AFTER_CTRL_C = {
    "refused": "Nothing was changed.",
    "put_back": "The old version had been put back before.",
}
_GOES_ON = (
    "Swarm goes on by itself with an update it has begun: node by node, and back to the old version when a new task"
    " does not become healthy; the nodes' proof is missing. `lyttle-ops status` shows where it stands; the same command"
    " again goes on, `lyttle-ops rollback` goes back. The deploy lock stays: the next command from this machine takes"
    " it over, for other machines it is free when it expires."
)


inventory_option = click.option(
    "-i",
    "--inventory",
    type=click.Path(path_type=Path),
    default=Path("inventory.ini"),
    envvar="LYTTLE_INVENTORY",
    show_default="./inventory.ini",
    show_envvar=True,
    help="Ansible's inventory of the cluster.",
)


class Stop(Exception):
    """Ends a command with `code`; everything has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Operator:
    """One command of an operator: runs playbooks, shows them, prints the result or the error."""

    def __init__(self, control: Control, as_json: bool) -> None:
        self.control = control
        self.as_json = as_json

    def change(self, name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Run a playbook that changes the cluster, shown on the way; its result.

        Raises:
            Stop: it did not end well; the reason has been said.
        """
        ended = self._run(name, variables, quiet=False)
        if ended.end is not End.DONE or ended.result is None:
            self._fail(ended, updates=name in ("deploy", "rollback"))
        if self.as_json:
            self.print_json(ended.result)
        return ended.result

    def ask(self, name: str) -> dict[str, Any]:
        """Run a playbook that only looks and print its JSON if that is wanted; its result.

        Raises:
            Stop: there is no result; the reason has been said.
        """
        result = self.look(name)
        if self.as_json:
            self.print_json(result)
        return result

    def look(self, name: str) -> dict[str, Any]:
        """Run a playbook that only looks; its result, also when some hosts did not answer.

        Raises:
            Stop: there is no result; the reason has been said.
        """
        ended = self._run(name, {}, quiet=True)
        if ended.result is None or ended.end is End.INTERRUPTED:
            self._fail(ended, looked=True)
        for failure in ended.failures:
            click.echo(f"{failure.host}: {failure.message}", err=True)
        return ended.result

    def confirm(self, question: str, yes: bool) -> None:
        """Go on only with a yes. Programs say --yes."""
        if yes:
            return
        if self.as_json or not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here: say --yes")
        click.confirm(question, abort=True)

    def print_json(self, document: Mapping[str, Any]) -> None:
        """The command's one JSON document."""
        click.echo(json.dumps(document, indent=2))

    def error(self, code: str, message: str, **more: Any) -> None:
        """Say why it did not work, in JSON on standard output when that was asked for."""
        if self.as_json:
            self.print_json({"error": {"code": code, "message": message, **more}})
        else:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)

    def _run(self, name: str, variables: Mapping[str, Any], quiet: bool) -> Ended:
        from lyttle_ops.cli.steps import Steps  # rich, which the container's node has no use for

        playbook = Playbook(name, variables, self.control)
        stream = sys.stderr if quiet or self.as_json else sys.stdout
        title = f"lyttle-ops {name.replace('_', ' ')}"
        raw = self.control.verbosity > 0
        steps = Steps(title, playbook.progress, stream, lines=not quiet, raw=raw)
        with _signals(playbook, steps.note), steps:
            return playbook.run(steps)

    def _fail(self, ended: Ended, looked: bool = False, updates: bool = False) -> NoReturn:
        message, log = ended.message, _short(ended.log)
        if ended.end is End.INTERRUPTED and not looked:
            message = f"interrupted. {_AFTER_CTRL_C.get(ended.outcome or '', _GOES_ON)}"
        # The machine that works for all was lost, and with it the playbook's own way back.
        left = updates and ended.outcome == "failed" and bool(ended.failures) and ended.failures[-1].unreachable
        if self.as_json:
            failures = [{"host": each.host, "step": each.step, "message": each.message} for each in ended.failures]
            message = f"{message}. {_GOES_ON}" if left else message
            self.error(ended.end.value, message, failures=failures, result=ended.result, log=str(ended.log))
            raise Stop(EXIT[ended.end])
        if ended.end is End.INTERRUPTED or not ended.failures:
            self.error(ended.end.value, message)
        else:
            for message, step, hosts in _by_message(ended):
                self.error(ended.end.value, f"{hosts}: {message}\n       in the step: {step}")
        if left:
            click.echo(_GOES_ON, err=True)
        if ended.end is End.REFUSED and not looked:
            click.echo("Nothing was changed.", err=True)
        elif ended.end is End.PUT_BACK:
            click.echo("The old version was put back and serves.", err=True)
        click.echo(f"The full log: {log}", err=True)
        raise Stop(EXIT[ended.end])


def operator(function: Callable[..., int | None]) -> Callable[..., int]:
    """Decorator of a command: adds the shared options, passes an `Operator` first, makes errors exit codes."""

    @functools.wraps(function)
    def run(
        inventory: Path,
        as_json: bool,
        verbosity: int,
        ask_vault_pass: bool,
        vault_password_file: Path | None,
        **arguments: Any,
    ) -> int:
        if ask_vault_pass and vault_password_file:
            raise click.UsageError("--ask-vault-pass and --vault-password-file: only one of them")
        password = click.prompt("Vault password", hide_input=True, err=True) if ask_vault_pass else None
        session = Operator(Control(inventory, verbosity, vault_password_file, password), as_json)
        try:
            return function(session, **arguments) or 0
        except Stop as stop:
            return stop.code
        except InventoryMissing as exc:
            session.error("usage", str(exc))
            return 2
        except click.UsageError as exc:
            if not as_json:
                raise
            session.error("usage", exc.format_message())
            return 2
        except LyttleOpsError as exc:
            session.error("failed", str(exc))
            return 1

    options = [
        inventory_option,
        click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs."),
        click.option("-v", "verbosity", count=True, help="Show Ansible's own output; -vv and more: in detail."),
        click.option("--ask-vault-pass", is_flag=True, help="Ask for the password of encrypted variables."),
        click.option(
            "--vault-password-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Where that password stands.",
        ),
    ]
    for option in reversed(options):
        run = option(run)
    return run


@contextmanager
def _signals(playbook: Playbook, note: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal ask the playbook to end; a second one kills it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        note("killing the playbook" if playbook.interrupted else "ending the playbook; Ctrl-C again kills it")
        playbook.interrupt()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _by_message(ended: Ended) -> list[tuple[str, str, str]]:
    """(message, step, hosts) of each distinct failure: what fails alike everywhere is said once."""
    found: dict[tuple[str, str], list[str]] = {}
    for failure in ended.failures:
        found.setdefault((failure.message, failure.step), []).append(failure.host)
    return [(message, step, ", ".join(sorted(hosts))) for (message, step), hosts in found.items()]


def _short(path: Path) -> str:
    """The path as a shell takes it, with ~ for this user's home."""
    home = os.path.expanduser("~")
    text = str(path)
    return "~" + shlex.quote(text[len(home) :]) if text.startswith(home + os.sep) else shlex.quote(text)
