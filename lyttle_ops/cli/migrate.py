"""`lyttle-ops migrate`: the schema, by hand."""

import click

from lyttle_ops import settings
from lyttle_ops.db import Database
from lyttle_ops.db.migrate import current, head
from lyttle_ops.db.migrate import migrate as run


@click.command()
def migrate() -> None:
    """Bring the database's schema to this version. Nodes do the same at their start, one at a time."""
    loaded = settings.load()
    url = (loaded.database_migration_url or loaded.database_url).get_secret_value()
    database = Database(url, "lyttle/migrate", size=1)
    try:
        changed = run(database)
        click.echo(f"schema {current(database)} ({'migrated' if changed else 'already there'}; this version: {head()})")
    finally:
        database.close()
