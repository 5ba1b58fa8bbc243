"""The local cluster's secrets: made once, kept in files of mode 0600, so that they survive down and up."""

import base64
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ADMIN_USERNAME = "admin"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths of the secret files; `database_password` is the one value this process needs itself."""

    database_password: str
    master_key_file: Path
    admin_password_file: Path
    login_file: Path  # a body for POST /auth/login, so that nobody types the password
    database_url_file: Path

    def write_database_url(self, url: str) -> None:
        """For the nodes' DATABASE_URL_FILE; the address may differ from the last start's."""
        write_secret(self.database_url_file, url)


def ensure(folder: Path) -> Credentials:
    """The secrets in `folder`, made where they are missing."""
    password = _once(folder / "database-password", lambda: secrets.token_urlsafe(24))
    _once(folder / "master-key", lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    admin_password = _once(folder / "admin-password", lambda: secrets.token_urlsafe(12))
    write_secret(folder / "login.json", json.dumps({"username": ADMIN_USERNAME, "password": admin_password}))
    return Credentials(
        database_password=password,
        master_key_file=folder / "master-key",
        admin_password_file=folder / "admin-password",
        login_file=folder / "login.json",
        database_url_file=folder / "database-url",
    )


def write_secret(path: Path, text: str) -> None:
    """Replace `path` at once with a file that only its owner can read."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    beside.replace(path)


def _once(path: Path, make: Callable[[], str]) -> str:
    try:
        if value := path.read_text("utf-8").strip():
            return value
    except FileNotFoundError:
        pass
    value = make()
    write_secret(path, value)
    return value
