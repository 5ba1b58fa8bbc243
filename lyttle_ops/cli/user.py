"""`lyttle-ops user`: the API's users, for whoever can reach the database."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from lyttle_ops import accounts, settings
from lyttle_ops.db import Database


@click.group()
def user() -> None:
    """Manage the API's users. Needs the settings of a node (DATABASE_URL, MASTER_KEY)."""


@user.command("list")
def list_() -> None:
    """Show all users."""
    with _database() as database:
        for each in accounts.list_users(database):
            click.echo(f"{each['username']:<32} since {each['created_at']:%Y-%m-%d}")


@user.command()
@click.argument("username")
def add(username: str) -> None:
    """Add USERNAME, asking for a password (or reading it from standard input).

    A name has letters, digits and . _ @ + -, and begins with a letter or digit."""
    accounts.check_username(username)  # before somebody thinks of a password
    new = _ask_password()
    with _database() as database:
        accounts.create_user(database, username, new)
    click.echo(f"user {username} added")


@user.command()
@click.argument("username")
def password(username: str) -> None:
    """Set USERNAME's password, asking for it (or reading it from standard input) and ending the user's sessions."""
    new = _ask_password()
    with _database() as database:
        accounts.set_password(database, username, new)
    click.echo(f"password of {username} changed; its sessions are ended and its failed log-ins forgotten")


@user.command()
@click.argument("username")
@click.confirmation_option(prompt="Remove this user and end all its sessions?")
def remove(username: str) -> None:
    """Remove USERNAME and end all its sessions. The last user stays."""
    with _database() as database:
        accounts.delete_user(database, username)
    click.echo(f"user {username} removed")


def _ask_password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("New password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")


@contextmanager
def _database() -> Iterator[Database]:
    database = Database(settings.load().database_url.get_secret_value(), "lyttle/user", size=1)
    try:
        yield database
    finally:
        database.close()
