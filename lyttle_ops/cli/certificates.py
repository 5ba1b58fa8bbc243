"""`lyttle-ops certificates`: the ledger at a terminal, for whoever can reach the database."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from lyttle_ops import settings
from lyttle_ops.certificates import store
from lyttle_ops.certificates.model import CertificateNotWanted, CertificateView
from lyttle_ops.cli.columns import BAD, DOUBTFUL, GOOD, Cell, print_columns
from lyttle_ops.db import Database
from lyttle_ops.db.connection import Connection
from lyttle_ops.proxies.domains import normalise_domain

_COLOURS = {"issued": GOOD, "failed": BAD}


@click.group()
def certificates() -> None:
    """Look at certificates, or have some renewed. Needs the settings of a node (DATABASE_URL, MASTER_KEY)."""


@certificates.command("list")
@click.option("--json", "as_json", is_flag=True, help='Print {"certificates": [...]}, times in UTC.')
def list_(as_json: bool) -> None:
    """Show every certificate: until when, how far its order is, and in the CA's words why the last try failed."""
    with _connection() as connection:
        found = store.list_certificates(connection)
    if as_json:
        click.echo(json.dumps({"certificates": [_document(each) for each in found]}))
        return
    print_columns(("certificate", "until (UTC)", "state", "stage"), map(_row, found))
    for each in found:
        if each.last_error and each.last_error_at:
            click.echo(
                f"\n{', '.join(each.domains)}: the last try failed at {each.last_error_at:%Y-%m-%d %H:%M:%S} UTC"
            )
            click.echo(f"  {each.last_error}")


@certificates.command()
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Every certificate that an enabled entry wants.")
def renew(domains: tuple[str, ...], all_: bool) -> None:
    """Order the certificates of these domains anew, or try again now; those that are served stay until then.

    Our own back-off ends; a rate limit of the CA does not, and each CA limits how often (Let's Encrypt: five a week
    for the same names)."""
    if all_ == bool(domains):
        raise click.UsageError("name the domains whose certificates shall be renewed, or --all")
    try:
        names = {normalise_domain(name) for name in domains}
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    with _connection() as connection:
        found = store.list_certificates(connection)
        wanted = {name for each in found if each.wanted for name in each.domains}
        unknown = sorted(names - wanted)
        if unknown:
            raise CertificateNotWanted(
                f"nothing was asked for: no enabled entry with ssl wants a certificate for {', '.join(unknown)}"
                "; `lyttle-ops certificates list` shows those that are wanted"
            )
        for each in found:
            if each.wanted and (all_ or names & set(each.domains)):
                click.echo(f"{', '.join(each.domains)}: {store.request_renewal(connection, each.id).message}")


def _row(each: CertificateView) -> tuple[Cell, ...]:
    until = f"{each.not_after:%Y-%m-%d %H:%M}" if each.not_after else "–"
    doubtful = each.last_error is not None or not each.wanted
    state = (each.state, DOUBTFUL if doubtful and each.state != "failed" else _COLOURS.get(each.state))
    return ", ".join(each.domains), until, state, each.stage


def _document(each: CertificateView) -> dict[str, Any]:
    return {
        "domains": list(each.domains),
        "state": each.state,
        "stage": each.stage,
        "wanted": each.wanted,
        "not_after": each.not_after.isoformat() if each.not_after else None,
        "error": each.last_error,
        "error_at": each.last_error_at.isoformat() if each.last_error_at else None,
        "next_try_at": each.next_try_at.isoformat() if each.next_try_at else None,
        "installed": each.installed.nodes,
        "nodes": each.installed.of,
        "missing": list(each.installed.missing),
    }


@contextmanager
def _connection() -> Iterator[Connection]:
    database = Database(settings.load().database_url.get_secret_value(), "lyttle/certificates", size=0)
    with database.translated(), database.connect() as connection:
        yield connection
