"""`lyttle-ops deploy` and `lyttle-ops rollback`: change what the cluster runs, each node proven."""

from collections.abc import Mapping
from typing import Any

import click

from lyttle_ops.cli.columns import BAD, DOUBTFUL, print_columns, text
from lyttle_ops.cli.operator import EXIT_CODES, Operator, operator
from lyttle_ops.deploy.owner import owner

_reason = click.option("--reason", default="", metavar="TEXT", help="Why, for the history and whoever meets the lock.")


@click.command(epilog=EXIT_CODES)
@click.option("--version", metavar="V", help="Deploy this version: that tag of the inventory's stack_image.")
@click.option("--image", metavar="REF", help="Deploy this image, as registry.example.com/lyttle-ops:1.2.3.")
@click.option("--no-preflight", is_flag=True, help="Also while PostgreSQL or the shared folder does not answer.")
@_reason
@operator
def deploy(session: Operator, version: str | None, image: str | None, no_preflight: bool, reason: str) -> None:
    """Bring a version to every node, one after the other, without losing a request.

    Without --version and --image: what the inventory says. It is refused while PostgreSQL or the shared folder does not
    answer on a node. Each node is proven by real requests before the next one begins; a node that answers worse than
    before stops the update, and the old version is put back.
    """
    if version and image:
        raise click.UsageError("--version and --image: only one of them")
    if "" in (version, image):
        raise click.UsageError("--version or --image is given and empty")
    variables: dict[str, Any] = {"deploy_reason": reason, "deploy_owner": owner()}
    if no_preflight:
        variables["stack_preflight"] = False
    if version:
        variables["stack_version"] = version
    if image:
        variables |= {"stack_image": image, "stack_version": ""}  # a version that the inventory names would win
    _tell(session, session.change("deploy", variables))


@click.command(epilog=EXIT_CODES)
@click.option("--to", metavar="X", help="A version, a release number or an image of `lyttle-ops history`.")
@click.option("--scale-one", is_flag=True, help="Run on one node only, for a while.")
@click.option("--replicated", is_flag=True, help="From global to replicated mode.")
@click.option("--global", "everywhere", is_flag=True, help="Back to global mode: one on every node.")
@_reason
@operator
def rollback(
    session: Operator, to: str | None, scale_one: bool, replicated: bool, everywhere: bool, reason: str
) -> None:
    """Go back to the release before, or to the one that --to names, proven as in a deploy.

    What does not exist changes nothing and fails with exit code 3. It works with PostgreSQL away, and says so.
    """
    given = {"--to": to is not None, "--scale-one": scale_one, "--replicated": replicated, "--global": everywhere}
    chosen = [option for option, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)}: only one of them")
    if to == "":
        raise click.UsageError("--to is given and empty")
    variables = {
        "rollback_to": to or "",
        "rollback_mode": chosen[0].removeprefix("--") if chosen and to is None else "version",
        "deploy_reason": reason,
        "deploy_owner": owner(),
    }
    _tell(session, session.change("rollback", variables))


def _tell(session: Operator, result: Mapping[str, Any]) -> None:
    if session.as_json:
        return
    release: Mapping[str, Any] = result.get("release") or {}
    name = f"release {text(release.get('number'))}: {text(release.get('image') or release.get('version'))}"
    click.secho(text(result.get("message"), f"{name} is deployed"), fg="green", bold=True)
    if result.get("message"):
        click.echo(name)
    for warning in result.get("warnings") or ():
        click.secho(f"warning: {warning}", fg="yellow")
    rows = []
    for node in result.get("nodes") or ():
        seconds, failures = node.get("proved_after_seconds"), int(node.get("failures") or 0)
        rows.append(
            (
                text(node.get("hostname")),
                text(node.get("address")),
                f"{seconds:.1f} s" if isinstance(seconds, int | float) else "–",
                text(node.get("requests")),
                (text(node.get("retries")), DOUBTFUL if node.get("retries") else None),
                (str(failures), BAD if failures else None),
            )
        )
    print_columns(("node", "address", "proven after", "requests", "retries", "failures"), rows)
    click.echo("Next: `lyttle-ops status` shows the nodes; `lyttle-ops rollback` goes back.")
