"""The command line: the only place that prints, and where errors become exit codes.

0: done · 1: it could not be done, and one sentence on standard error says why · 2: wrong usage · 130: Ctrl-C. The
operator's commands have two more, see operator.py, and `import` has 3 for rows that it did not take.
A command's module is imported when that command runs, so that `lyttle-ops local status` loads no web framework.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from lyttle_ops import __version__
from lyttle_ops.errors import LyttleOpsError

# Section of --help -> command -> the module:attribute that holds it, and its line.
_SECTIONS = {
    "The cluster": {
        "deploy": ("lyttle_ops.cli.deploy:deploy", "Bring a version to every node, each proven."),
        "rollback": ("lyttle_ops.cli.deploy:rollback", "Go back to an earlier release, or to one node for a while."),
        "status": ("lyttle_ops.cli.status:status", "Nodes, versions, leader, certificates, drift."),
        "history": ("lyttle_ops.cli.history:history", "What was deployed, by whom, and how it ended."),
        "node": ("lyttle_ops.cli.node:node", "Add or remove a node; alone: run this machine's node (the container)."),
        "playbook": ("lyttle_ops.cli.playbook:playbook", "Run a playbook by name: site, backup, restore, and more."),
        "doctor": ("lyttle_ops.cli.doctor:doctor", "Look for what is wrong or will be, and how to mend it."),
    },
    "In a node's container": {
        "certificates": ("lyttle_ops.cli.certificates:certificates", "Show every certificate, or have some renewed."),
        "domains": ("lyttle_ops.cli.domains:domains", "Show what this machine's node serves now."),
        "import": ("lyttle_ops.cli.importing:import_", "Take over a LyttleNGINX database: entries, certificates."),
        "migrate": ("lyttle_ops.cli.migrate:migrate", "Bring the database's schema to this version."),
        "ports": ("lyttle_ops.cli.ports:ports", "Hold this machine's listening sockets and lend them to its node."),
        "rotate-master-key": (
            "lyttle_ops.cli.master_key:rotate_master_key",
            "Encrypt all stored keys with the new MASTER_KEY.",
        ),
        "settings": ("lyttle_ops.cli.settings:settings", "Show every setting, its source and value; secrets masked."),
        "user": ("lyttle_ops.cli.user:user", "Manage the API's users."),
    },
    "On this machine": {
        "local": ("lyttle_ops.cli.local:local", "A whole cluster here: up, status, down, kill, start, logs."),
    },
}
_COMMANDS = {name: place for section in _SECTIONS.values() for name, (place, _) in section.items()}


class _Commands(click.Group):
    """Loads a command when it is used; --help lists them all without loading any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in _SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lyttle-ops")
def lyttle_ops() -> None:
    """HTTPS on every node of a Docker Swarm, coordinated through PostgreSQL alone."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and give its exit code."""
    try:
        result: Any = lyttle_ops.main(
            args=None if arguments is None else list(arguments), prog_name="lyttle-ops", standalone_mode=False
        )
        sys.stdout.flush()
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except LyttleOpsError as exc:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {exc}", err=True)
        return 1
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:  # a file or address of the machine; the rooms' own errors say more
        about = f"{exc.filename}: " if exc.filename else ""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {about}{exc.strerror or exc}", err=True)
        return 1
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    sys.exit(run())
