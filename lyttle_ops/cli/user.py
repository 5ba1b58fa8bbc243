"""`lyttle-ops user`: the API's users, for whoever can reach the database."""

import sys

import click

from lyttle_ops import settings
from lyttle_ops.accounts import store
from lyttle_ops.db import Database


@click.group()
def user() -> None:
    """Manage the API's users."""


@user.command()
@click.argument("username")
def password(username: str) -> None:
    """Set USERNAME's password, asking for it (or reading it from standard input) and ending the user's sessions."""
    if sys.stdin.isatty():
        new = click.prompt("New password", hide_input=True, confirmation_prompt=True)
    else:
        new = sys.stdin.readline().rstrip("\n")
    database = Database(settings.load().database_url.get_secret_value(), "lyttle/user", size=1)
    try:
        store.set_password(database, username, new)
    finally:
        database.close()
    click.echo(f"password of {username} changed; all its sessions are revoked")
