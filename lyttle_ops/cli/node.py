"""`lyttle-ops node`: what a container runs; with `add` and `remove`, the operator's hand on the cluster's nodes."""

import click

from lyttle_ops.cli.operator import EXIT_CODES, Operator, operator
from lyttle_ops.deploy.owner import owner


@click.group(invoke_without_command=True)
@click.pass_context
def node(context: click.Context) -> None:
    """Without a command: run this machine's node (control plane, API and NGINX) until SIGTERM; a container does that.

    Settings then come from the environment; `lyttle-ops settings` shows them. Exit code 0 after a clean stop, 1 when
    the node cannot run (the last log line says why).
    """
    if context.invoked_subcommand is None:
        _run()


@node.command(epilog=EXIT_CODES, short_help="Make HOST a node of the cluster, and prove it.")
@click.argument("host")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the history and whoever meets the lock.")
@operator
def add(session: Operator, host: str, reason: str) -> None:
    """Make HOST, which stands in the inventory, a node of the cluster, and prove it."""
    result = session.change("node_add", {"node": host, "deploy_reason": reason, "deploy_owner": owner()})
    if not session.as_json:
        click.secho(str(result.get("message") or f"{host} is a node of the cluster"), fg="green", bold=True)
        click.echo("Next: send traffic to its address; `lyttle-ops status` shows the nodes.")


@node.command(epilog=EXIT_CODES)
@click.argument("host")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the history and whoever meets the lock.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@operator
def remove(session: Operator, host: str, reason: str, yes: bool) -> None:
    """Drain HOST and take it out of the cluster. Take its address out of DNS or the load balancer first."""
    session.confirm(f"Remove {host} from the cluster? No traffic may be sent to it any more.", yes)
    result = session.change("node_remove", {"node": host, "deploy_reason": reason, "deploy_owner": owner()})
    if not session.as_json:
        click.secho(str(result.get("message") or f"{host} is no node of the cluster any more"), fg="green", bold=True)
        click.echo(
            "Next: take it out of the inventory, run `lyttle-ops playbook site`. `lyttle-ops status` shows the nodes."
        )


def _run() -> None:
    import logging
    import os
    import sys

    from lyttle_ops import logs, settings  # here, since the operator's machine has no node's settings

    loaded = settings.load()
    logs.set_up("node", loaded.log_format, loaded.log_level)
    from lyttle_ops.node.node import Node

    code = Node(loaded).run()
    logging.shutdown()
    sys.stdout.flush()
    # Not by way of the interpreter's end, which would wait for threads that wait for a CA.
    os._exit(code)
