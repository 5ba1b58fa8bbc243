"""Users in PostgreSQL, and the first of them."""

import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from lyttle_ops.accounts.passwords import generate_password, hash_password
from lyttle_ops.accounts.throttle import user_bucket
from lyttle_ops.db import Database, DatabaseError, load_queries
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.settings import acceptable_username

log = logging.getLogger(__name__)
queries = load_queries("lyttle_ops.accounts")

_USERS_LOCK = 0x4C59545F41444D4E  # "LYT_ADMN"


class UserNotFound(LyttleOpsError):
    """There is no user with this name."""


class UserExists(LyttleOpsError):
    """There is a user with this name already."""


class UsernameRefused(LyttleOpsError):
    """The user name is not acceptable."""


class LastUser(LyttleOpsError):
    """The last user stays: without one nobody could log in."""


def check_username(username: str) -> str:
    """The name, when a user may have it. Raises UsernameRefused saying what is accepted."""
    try:
        return acceptable_username(username)
    except ValueError as exc:
        raise UsernameRefused(str(exc)) from None


def ensure_first_admin(database: Database, username: str, password: str | None, password_file: Path) -> bool:
    """Create the first user when there is none; True when this call did.

    With `password` None one is generated and written to `password_file` (mode 0600), before the row is committed:
    a user without a readable password cannot come to be. Any number of nodes may call this at once; one creates
    the user, and only that one leaves a file. Raises PasswordRefused, OSError when the file cannot be written,
    and database errors.
    """
    with database.connection() as connection:
        row = connection.execute(queries.any_user).fetchone()
    if row and row["any"]:
        return False
    chosen = password if password is not None else generate_password()
    password_hash = hash_password(chosen)
    written = False
    try:
        with database.transaction() as connection:
            connection.execute(queries.lock_users, {"key": _USERS_LOCK})
            row = connection.execute(queries.any_user).fetchone()
            if row and row["any"]:
                return False
            connection.execute(queries.insert_user, {"username": username, "password_hash": password_hash})
            if password is None:
                _write_secret(password_file, chosen)
                written = True
    except BaseException:
        if written and not _may_be_committed(database, username, password_hash):
            password_file.unlink(missing_ok=True)
        raise
    if written:
        log.info("First administrator %s created; the password is in %s on this node", username, password_file)
    else:
        log.info("First administrator %s created with the configured password", username)
    return True


def create_user(database: Database, username: str, password: str) -> None:
    """Add a user. Raises UsernameRefused, UserExists and PasswordRefused."""
    values = {"username": check_username(username), "password_hash": hash_password(password)}
    with database.connection() as connection:
        if connection.execute(queries.insert_user, values).fetchone() is None:
            raise UserExists(f"there is a user {username} already")


def set_password(database: Database, username: str, password: str) -> None:
    """Give a user a new password, end all of the user's sessions and forget the user's failed log-ins.

    So the user can log in at once, unless an address has used up the limit it has over all users. Raises
    UserNotFound and PasswordRefused.
    """
    values = {"username": username, "password_hash": hash_password(password)}
    with database.transaction() as connection:
        if connection.execute(queries.update_password, values).fetchone() is None:
            raise UserNotFound(f"there is no user {username}")
        # A statement of its own: it must see a session that a log-in committed while the one before waited.
        connection.execute(queries.revoke_sessions_of, {"username": username})
        connection.execute(queries.forget_failures, {"bucket": user_bucket(username), "username": username})
    log.info("Password of %s changed; all of the user's sessions are ended", username)


def delete_user(database: Database, username: str) -> None:
    """Remove a user and the user's sessions. Raises UserNotFound and LastUser."""
    with database.transaction() as connection:
        connection.execute(queries.lock_users, {"key": _USERS_LOCK})
        if connection.execute(queries.delete_user, {"username": username}).fetchone() is not None:
            return
        if connection.execute(queries.get_hash, {"username": username}).fetchone() is None:
            raise UserNotFound(f"there is no user {username}")
    raise LastUser(
        f"{username} is the last user; without one nobody could log in: add another first (lyttle-ops user add NAME)"
    )


def list_users(database: Database) -> list[dict[str, Any]]:
    """Every user: username, created_at, updated_at."""
    with database.connection() as connection:
        return connection.execute(queries.list_users).fetchall()


def _may_be_committed(database: Database, username: str, password_hash: str) -> bool:
    """Whether the user may be in the database after all: a connection can break after the commit arrived."""
    try:
        with database.connection() as connection:
            row = connection.execute(queries.get_hash, {"username": username}).fetchone()
    except DatabaseError:
        return True  # better a file that opens nothing than a password nobody has
    return row is not None and bool(row["password_hash"] == password_hash)


def _write_secret(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a reader never sees half of it, and the mode is right from the start.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise
