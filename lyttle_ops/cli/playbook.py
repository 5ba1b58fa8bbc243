"""`lyttle-ops playbook`: the playbooks that have no command of their own, from wherever they are installed."""

import os
from pathlib import Path

import click

from lyttle_ops.cli.operator import inventory_option
from lyttle_ops.deploy import project
from lyttle_ops.deploy.runs import Control, InventoryMissing, environment, program


@click.command(context_settings={"ignore_unknown_options": True})
@inventory_option
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def playbook(inventory: Path, name: str | None, arguments: tuple[str, ...]) -> None:
    """Run the playbook NAME as ansible-playbook does, with its output, its exit code and its ARGUMENTS.

    Without NAME: list the playbooks. site provisions the hosts and deploys the stack:

    \b
      lyttle-ops playbook site
      lyttle-ops playbook site --tags nfs --check
      lyttle-ops playbook backup -e backup_folder=/safe/place
    """
    if name is None:
        for each, line in project.playbooks().items():
            click.echo(f"{each:<16} {line}")
        return
    if name not in project.playbooks():
        raise click.UsageError(f"there is no playbook {name}; `lyttle-ops playbook` lists them")
    control = Control(inventory)
    try:
        control.check()
    except InventoryMissing as exc:
        raise click.UsageError(str(exc)) from exc
    ansible = str(program("ansible-playbook"))
    argv = [ansible, "-i", str(inventory), *arguments, str(project.playbook(name))]
    # Its own output, colours included, as ansible-playbook decides.
    settings = {key: value for key, value in environment().items() if "COLOR" not in key}
    os.execve(ansible, argv, {**os.environ, **settings})  # noqa: S606 - a list, no shell
