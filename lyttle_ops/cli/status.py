"""`lyttle-ops status`: the nodes, what each runs, who leads, the certificates, drift from the last release."""

from collections.abc import Mapping
from typing import Any

import click

from lyttle_ops.cli.columns import BAD, DOUBTFUL, GOOD, Cell, print_columns, text
from lyttle_ops.cli.operator import EXIT_CODES, Operator, operator


@click.command(epilog=f"{EXIT_CODES} Without --json it is 1 as well when something below is wrong.")
@operator
def status(session: Operator) -> int:
    """Where the cluster is: nodes, versions, leader, certificates, drift."""
    result = session.ask("status")
    if session.as_json:
        return 0
    service: Mapping[str, Any] = result.get("service") or {}
    if not service:
        click.echo("The stack is not deployed: run `ansible-playbook playbooks/site.yml`.")
        return 1
    mode = text(service.get("mode"))
    update = text(service.get("update_state"), "")
    said = text(service.get("update_message"), "")
    click.echo(f"service  {text(service.get('name'))}, {mode}, {text(service.get('image'))}")
    if update and update != "completed":
        click.echo(f"update   {update}{f': {said}' if said else ''}")
    click.echo(f"leader   {text(result.get('leader'), 'nobody')}\n")
    nodes = list(result.get("nodes") or ())
    print_columns(
        ("node", "address", "role", "state", "version", "task", "ready", "release", "revision"), map(_node, nodes)
    )
    certificates = list(result.get("certificates") or ())
    if certificates:
        click.echo()
        print_columns(("certificate", "until (UTC)", "stage", "installed"), map(_certificate, certificates))
    wrong = [problem for node in nodes for problem in _problems(node)]
    wrong += [
        f"{text(each.get('hostname'))}: ports: {text(each.get('error') or each.get('task_state'))}"
        for each in result.get("ports") or ()
        if each.get("error") or each.get("task_state") != "running"
    ]
    if not result.get("leader"):
        wrong.append("nobody leads: PostgreSQL is away, or no node is ready")
    wrong += [f"drift: {each}" for each in result.get("drift") or ()]
    if lock := result.get("lock"):
        reason = f" ({lock['reason']})" if lock.get("reason") else ""
        click.echo(f"\nlock     {text(lock.get('owner'))}{reason}, until {text(lock.get('expires_at'))}")
    if wrong:
        click.echo()
    for problem in wrong:
        click.secho(problem, fg="red")
    return 1 if wrong else 0


def _node(node: Mapping[str, Any]) -> tuple[Cell, ...]:
    task: Mapping[str, Any] = node.get("task") or {}
    up = node.get("state") == "ready" and node.get("availability") == "active"
    state = text(node.get("state")) if up else f"{text(node.get('state'))}, {text(node.get('availability'))}"
    ready = {True: ("yes", GOOD), False: ("no", BAD)}.get(node.get("ready"), ("–", None))  # type: ignore[arg-type]
    return (
        text(node.get("hostname")),
        text(node.get("address")),
        "leader" if node.get("leader") is True else text(node.get("role")),
        (state, None if up else DOUBTFUL),
        text(node.get("version")),
        (text(task.get("state")), BAD if task.get("error") else None),
        ready,
        text(node.get("release"))[:10],
        text(node.get("revision")),
    )


def _certificate(certificate: Mapping[str, Any]) -> tuple[Cell, ...]:
    domains = certificate.get("domains") or ()
    names = domains if isinstance(domains, str) else ", ".join(domains)
    installed, nodes = certificate.get("installed"), certificate.get("nodes")
    return (
        names,
        text(certificate.get("not_after"))[:16].replace("T", " "),
        text(certificate.get("stage")),
        (f"{text(installed)} of {text(nodes)}", GOOD if installed == nodes else DOUBTFUL),
    )


def _problems(node: Mapping[str, Any]) -> list[str]:
    name, task = text(node.get("hostname")), node.get("task") or {}
    if node.get("state") != "ready":
        return [f"{name}: the Swarm says {text(node.get('state'))}: is the machine on, does Docker run there?"]
    if not node.get("edge") or node.get("availability") != "active":
        return []
    if not task or task.get("state") != "running":
        return [f"{name}: no running task: {text(task.get('error') or task.get('state'), 'none was started')}"]
    found = []
    if node.get("ready") is not True:
        found.append(f"{name}: not ready: `curl http://localhost:3003/health/ready` there names the check")
    if node.get("database_ok") is False:
        found.append(f"{name}: PostgreSQL cannot be used from there")
    return found
