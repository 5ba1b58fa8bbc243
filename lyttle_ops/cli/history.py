"""`lyttle-ops history`: what was deployed, by whom, why, and how it ended."""

import click

from lyttle_ops.cli.columns import BAD, DOUBTFUL, GOOD, print_columns, text
from lyttle_ops.cli.operator import EXIT_CODES, Operator, operator

_COLOURS = {"succeeded": GOOD, "failed": BAD, "running": DOUBTFUL, "interrupted": DOUBTFUL}


@click.command(epilog=EXIT_CODES)
@operator
def history(session: Operator) -> None:
    """The releases, newest first. They are kept in the Swarm itself, so this works with PostgreSQL away."""
    result = session.ask("history")
    if session.as_json:
        return
    releases = result.get("releases") or []
    if not releases:
        click.echo("Nothing was deployed yet: run `lyttle-ops playbook site`, then `lyttle-ops deploy`.")
        return
    rows = [
        (
            text(release.get("number")),
            text(release.get("action")),
            text(release.get("version")),
            (text(release.get("result")), _COLOURS.get(str(release.get("result")))),
            _minute(release.get("started_at")),
            text(release.get("operator")),
            text(release.get("reason")),
        )
        for release in releases
    ]
    print_columns(("number", "action", "version", "result", "started (UTC)", "by", "reason"), rows)
    for release in releases:
        if release.get("result") not in ("succeeded", "running") and release.get("message"):
            click.echo(f"{release.get('number')}: {release['message']}")


def _minute(moment: object) -> str:
    return text(moment)[:16].replace("T", " ")
