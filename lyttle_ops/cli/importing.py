"""`lyttle-ops import`: entries and certificates of a LyttleNGINX database."""

import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
from psycopg.conninfo import conninfo_to_dict

from lyttle_ops import settings
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import Database
from lyttle_ops.db.migrate import current
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.legacy import source
from lyttle_ops.legacy.importing import Outcome, Result, import_all
from lyttle_ops.node.preflight import agree_on_key

INCOMPLETE = 3  # exit code: done, but some rows could not be taken


@click.command("import")
@click.option(
    "--from-url-file",
    metavar="FILE",
    help="File with the URL of LyttleNGINX's database; - reads it, and"
    " on a second line SOURCE_MASTER_KEY if there is one, from standard input.",
)
@click.option("--source-url", metavar="URL", help="The URL itself, without a password (PGPASSWORD or a .pgpass file).")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_(from_url_file: str | None, source_url: str | None, dry_run: bool, as_json: bool) -> int:
    """Take over the entries and certificates of a LyttleNGINX database.

    The URL may also stand in SOURCE_DATABASE_URL or the file that SOURCE_DATABASE_URL_FILE names; Prisma's form is
    understood. Where LyttleNGINX encrypts private keys, SOURCE_MASTER_KEY (or SOURCE_MASTER_KEY_FILE) is its
    PRIVATE_KEY_ENCRYPTION_MASTER_KEY. The source is only read. Needs the settings of a node.

    All in one transaction; never overwrites, so it may be run again. Exit code 0: every row is here; 3: the rows listed
    as refused are not, the others are; 1: nothing was done.
    """
    url = _url(from_url_file, source_url)
    secret = (sys.stdin.readline().strip() if from_url_file == "-" else None) or _from_environment("SOURCE_MASTER_KEY")
    loaded = settings.load()
    keyring = Keyring(*loaded.master_keys())
    database = Database(loaded.database_url.get_secret_value(), "lyttle/import", size=1)
    try:
        if current(database) is None:
            raise LyttleOpsError(
                f"{database.address} has no schema yet: run `lyttle-ops migrate` or start a node first"
            )
        agree_on_key(database, keyring)
        rows = source.read(url)
        result = import_all(database, keyring, rows, secret, datetime.now(UTC), dry_run)
    finally:
        database.close()
    if as_json:
        click.echo(json.dumps({**asdict(result), "complete": result.complete}, indent=2))
    else:
        _print(result)
    return 0 if result.complete else INCOMPLETE


def _url(file: str | None, direct: str | None) -> str:
    if file and direct:
        raise click.UsageError("give --from-url-file or --source-url, not both")
    if direct:
        if _has_password(direct):
            raise click.UsageError(
                "--source-url holds a password, and every user of this machine can read a command line: put the URL "
                "into a file and name it with --from-url-file (- reads standard input)"
            )
        return direct
    if file == "-":
        url: str | None = sys.stdin.readline().strip()
    elif file:
        url = Path(file).read_text("utf-8").strip()
    else:
        url = _from_environment("SOURCE_DATABASE_URL")
    if not url:
        raise click.UsageError("no source: give --from-url-file FILE, or set SOURCE_DATABASE_URL")
    return url


def _has_password(url: str) -> bool:
    try:
        return bool(conninfo_to_dict(source.from_prisma(url)[0]).get("password"))
    except Exception:  # it cannot be parsed; what it holds is not known
        return True


def _from_environment(variable: str) -> str | None:
    path = os.environ.get(f"{variable}_FILE")
    return Path(path).read_text("utf-8").strip() if path else os.environ.get(variable) or None


def _print(result: Result) -> None:
    would = "would be " if result.dry_run else ""
    for title, outcome in (("entries", result.proxies), ("certificates", result.certificates)):
        click.echo(
            f"{title}: {len(outcome.imported)} {would}imported, {len(outcome.present)} already here, "
            f"{len(outcome.refused)} refused"
        )
        _print_items(outcome)


def _print_items(outcome: Outcome) -> None:
    for item in outcome.imported:
        click.echo(f"  + {item.domains}{f' ({item.note})' if item.note else ''}")
    for item in outcome.refused:
        click.echo(f"  - {item.domains} (id {item.source} there): {item.note}")
