"""`lyttle-ops status`: the nodes, what each runs, who leads, the certificates, drift from the last release."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
        click.echo("The stack is not deployed: run `lyttle-ops playbook site`.")
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
    wrong = _wrong(result, service, nodes, datetime.now(UTC))
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
    ready: Cell = "–" if node.get("ready") is None else ("yes", GOOD) if node["ready"] else ("no", BAD)
    return (
        text(node.get("hostname")),
        text(node.get("address")),
        text(node.get("role")),
        (state, None if up else DOUBTFUL),
        text(node.get("version")),
        (text(task.get("state")), BAD if task.get("error") else None),
        ready,
        text(node.get("release"))[:10],
        text(node.get("revision")),
    )


def _certificate(certificate: Mapping[str, Any]) -> tuple[Cell, ...]:
    installed, nodes = certificate.get("installed"), certificate.get("nodes")
    return (
        _names(certificate),
        text(certificate.get("not_after"))[:16].replace("T", " "),
        text(certificate.get("stage")),
        (f"{text(installed)} of {text(nodes)}", GOOD if installed == nodes else DOUBTFUL),
    )


def _wrong(
    result: Mapping[str, Any], service: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], now: datetime
) -> list[str]:
    """What a person has to look after, one sentence each."""
    everywhere = service.get("replicas") is None  # global mode: one on each node
    found = [problem for node in nodes for problem in _problems(node, everywhere)]
    running = sum((node.get("task") or {}).get("state") == "running" for node in nodes)
    if not everywhere and running < int(service["replicas"]):
        found.append(f"{running} of {service['replicas']} tasks run: see `docker service ps {service.get('name')}`")
    if str(service.get("update_state")) in ("paused", "rollback_paused"):
        found.append("the update stopped half-way: `lyttle-ops deploy` goes on, `lyttle-ops rollback` goes back")
    up = {node.get("hostname") for node in nodes if node.get("state") == "ready"}
    for each in result.get("ports") or ():
        if each.get("hostname") in up and (each.get("error") or each.get("task_state") != "running"):
            said = text(each.get("error") or each.get("task_state"))
            found.append(f"{each['hostname']}: the holder of the ports does not run: {said}")
    if not result.get("leader"):
        found.append("nobody leads: PostgreSQL is away, or no node is ready")
    for certificate in result.get("certificates") or ():
        found += _not_in_order(certificate, now)
    return found + [f"drift: {each}" for each in result.get("drift") or ()]


def _not_in_order(certificate: Mapping[str, Any], now: datetime) -> list[str]:
    """Why a certificate protects nobody, or soon will not."""
    names, until, error = _names(certificate), certificate.get("not_after"), certificate.get("error")
    why = f"{text(certificate.get('stage'))}{f': {error}' if error else ''}"
    if not until:
        return [f"{names}: {why}" if why.startswith("served by another") else f"{names}: no certificate: {why}"]
    if datetime.fromisoformat(until) < now:
        return [f"{names}: the certificate expired at {until}: {why}"]
    return [f"{names}: {why}"] if error else []


def _names(certificate: Mapping[str, Any]) -> str:
    domains = certificate.get("domains") or ()
    return domains if isinstance(domains, str) else ", ".join(domains)


def _problems(node: Mapping[str, Any], everywhere: bool) -> list[str]:
    name, task = text(node.get("hostname")), node.get("task") or {}
    if node.get("state") != "ready":
        return [f"{name}: the Swarm says {text(node.get('state'))}: is the machine on, does Docker run there?"]
    if not node.get("edge") or node.get("availability") != "active":
        return []
    if task.get("state") != "running":
        why = text(task.get("error") or task.get("state"), "none was started")
        return [f"{name}: no running task: {why}"] if everywhere else []
    found = []
    if node.get("ready") is None:
        found.append(f"{name}: it cannot be reached by ssh, so what its node says is unknown")
    elif not node["ready"]:
        found.append(f"{name}: not ready: `curl http://localhost:3003/health/ready` there names the check")
    if node.get("database_ok") is False:
        found.append(f"{name}: PostgreSQL cannot be used from there")
    if node.get("api_ok") is False:
        found.append(f"{name}: its API does not answer: `docker service logs lyttlenginx_lyttlenginx` says why")
    return found
