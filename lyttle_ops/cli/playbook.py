"""`lyttle-ops playbook`: the playbooks that have no command of their own, from wherever they are installed."""

import os
import re
from pathlib import Path

import click

from lyttle_ops.cli.operator import inventory_option
from lyttle_ops.deploy import project
from lyttle_ops.deploy.runs import Control, InventoryMissing, environment, program

# Ansible takes -vi FILE as -v -i FILE: these options of one letter have no value.
_BUNDLED = re.compile("-[bhkvCDJK]+i")


class _PassesOn(click.Command):
    """Reads the one inventory, and --help; all else is Ansible's, such as the i in -lnginx1, and all but the inventory
    after `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours: list[str] = []
        theirs: list[str] = []
        inventories: list[str] = []
        help_names = ctx.help_option_names
        rest = iter(args)
        for each in rest:
            option, equals, value = each.partition("=")
            if each in help_names:
                ours.append(each)
            elif _names_inventory(option):
                named = value if equals else next(rest, None)
                if named is None:
                    raise click.BadOptionUsage(option, f"Option '{option}' requires an argument.", ctx)
                inventories.append(named)
            elif each.startswith("-i"):
                inventories.append(each[2:])
            elif _BUNDLED.match(each):
                raise click.BadOptionUsage("-i", f"The inventory stands alone, as -i FILE, not as in {each}.", ctx)
            elif each == "--":
                help_names = []
            else:
                theirs.append(each)
        if len(inventories) > 1:
            told = f"Only one inventory can be named, not {' and '.join(inventories)}; a folder holds several."
            raise click.BadOptionUsage("-i", told, ctx)
        return super().parse_args(ctx, [*ours, *(f"--inventory={each}" for each in inventories), "--", *theirs])


def _names_inventory(option: str) -> bool:
    """Whether ansible-playbook takes it for the inventory: -i, --inventory, --inventory-file, beginnings of the two."""
    return option == "-i" or (option.startswith("--i") and "--inventory-file".startswith(option))


@click.command(cls=_PassesOn)
@inventory_option
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def playbook(inventory: Path, name: str | None, arguments: tuple[str, ...]) -> None:
    """Run the playbook NAME as ansible-playbook does, with its output, its exit code and its ARGUMENTS.

    There is one inventory, a file or a folder that holds several; all other options are ansible-playbook's.

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
