"""`lyttle-ops playbook`: the playbooks that have no command of their own, from wherever they are installed."""

import os
from pathlib import Path

import click

from lyttle_ops.cli.operator import inventory_option
from lyttle_ops.deploy import project
from lyttle_ops.deploy.runs import Control, InventoryMissing, environment, program

_INVENTORY = ("-i", "--inventory", "--inventory-file")  # as ansible-playbook calls it


class _PassesOn(click.Command):
    """Reads the inventory and --help where they stand alone; all else is Ansible's, such as the i in -lnginx1."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours: list[str] = []
        theirs: list[str] = []
        rest = iter(args)
        for each in rest:
            option, equals, value = each.partition("=")
            if each in ctx.help_option_names:
                ours.append(each)
            elif option in _INVENTORY:
                named = value if equals else next(rest, None)
                if named is None:
                    raise click.BadOptionUsage(option, f"Option '{option}' requires an argument.", ctx)
                ours.append(f"--inventory={named}")
            elif each.startswith("-i"):
                ours.append(each)
            elif each == "--":
                theirs += rest
            else:
                theirs.append(each)
        return super().parse_args(ctx, [*ours, "--", *theirs])


@click.command(cls=_PassesOn)
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
