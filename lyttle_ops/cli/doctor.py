"""`lyttle-ops doctor`: what is wrong with the cluster or will be, and how to mend it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lyttle_ops.cli.columns import BAD, DOUBTFUL, GOOD
from lyttle_ops.cli.operator import EXIT_CODES, Operator, operator
from lyttle_ops.deploy import doctor as control

_COLOURS = {"error": BAD, "warning": DOUBTFUL}


@click.command(epilog=f"{EXIT_CODES} Here 1 means: there are errors to mend. Warnings alone are 0.")
@operator
def doctor(session: Operator) -> int:
    """Look at this machine, the inventory and every host, and say what to mend. Changes nothing.

    Works before anything is provisioned as well: then it says what is missing.
    """
    local, reachable = control.look(session.control)
    findings = [each.as_dict() for each in local]
    if reachable:
        findings += session.look("doctor").get("findings") or []
    if session.as_json:
        session.print_json({"findings": findings})
    else:
        _show(findings)
    return 1 if any(each["level"] == "error" for each in findings) else 0


def _show(findings: Sequence[Mapping[str, Any]]) -> None:
    good: dict[str, list[str]] = {}
    bad: dict[tuple[str, str, str, str], list[str]] = {}  # what is the same on several hosts is said once
    for each in findings:
        if each["ok"]:
            good.setdefault(each["host"], []).append(each["check"])
        else:
            said = (each["level"], each["check"], each["message"], each["remedy"])
            bad.setdefault(said, []).append(each["host"])
    for (level, check, message, remedy), hosts in sorted(bad.items(), key=lambda item: item[0][0]):  # errors first
        mark = click.style(f"{level:<8}", fg=_COLOURS.get(level))
        click.echo(f"{mark} {', '.join(hosts)}: {check}: {message}\n         → {remedy}")
    if bad:
        click.echo()
    for host, checks in good.items():
        click.echo(f"{click.style('in order', fg=GOOD)} {host}: {', '.join(dict.fromkeys(checks))}")
    counts = Counter(each["level"] for each in findings)
    click.echo(f"\n{_count(counts['error'], 'error')}, {_count(counts['warning'], 'warning')}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
