"""The mark of the database configuration and of the versions that last worked on this machine, STATE_DIR/database.mark.

When PostgreSQL cannot be used, no error tells whether it is away or DATABASE_URL is wrong: a wrong host looks like a
server that is down, and a server that somebody locked refuses the right password. Whether the configuration is the one
that worked does. One that lets us in and refuses a statement is another matter: then it is this version that cannot use
it, unless that version did before; nor must a rollback wait for a PostgreSQL that refuses every version. The mark is an
HMAC with a key derived from the master key, so it tells nobody the password.
"""

import hmac
import json
import logging
import os
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from lyttle_ops import __version__
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import DatabaseBusy, DatabaseError, DatabaseUnavailable, LoginRefused, migrate

log = logging.getLogger(__name__)

_KEPT_VERSIONS = 2  # code one version older runs on the newer schema (lyttle_ops.db.migrate): for a rollback


class DatabaseMark:
    """Of `urls` and of the roots that they verify the server with (sslrootcert), as they are now."""

    def __init__(self, state_dir: Path, keyring: Keyring, urls: Sequence[str]) -> None:
        self._path = state_dir / "database.mark"
        self._keyring = keyring
        self._configuration = json.dumps([[url, _roots(url)] for url in urls]).encode()
        self._version = f"{__version__} {migrate.head()}"
        self._versions: list[str] = []  # that worked with it, the newest last
        self.changed = self._compare()  # None: nothing is known, as on a new machine or under another master key

    def worked(self) -> None:
        """This configuration does, for this version. Raises OSError."""
        key_id = self._keyring.key_id
        before = [] if self.changed else [each for each in self._versions if each != self._version]
        versions = [*before, self._version][-_KEPT_VERSIONS:]
        # Not by pid: two containers of one node share this folder, and may share the number.
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"key_id": key_id, "hmac": self._code(key_id), "versions": versions}, file)
        temporary.replace(self._path)
        self.changed, self._versions = False, versions

    def blames(self, error: DatabaseError) -> bool:
        """Whether `error` is this configuration's or this version's own, and not that of a PostgreSQL which is away."""
        if isinstance(error, DatabaseUnavailable | DatabaseBusy):
            return bool(self.changed)
        if isinstance(error, LoginRefused):
            return self.changed is not False
        return self.changed is not False or self._version not in self._versions

    def _compare(self) -> bool | None:
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            key_id, code = str(kept["key_id"]), str(kept["hmac"])
            versions = [str(each) for each in kept["versions"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("%s cannot be read, so whether DATABASE_URL was changed is not known: %r", self._path, exc)
            return None
        if key_id not in self._keyring.key_ids:
            return None
        self._versions = versions
        return not hmac.compare_digest(code.encode(), self._code(key_id).encode())

    def _code(self, key_id: str) -> str:
        return hmac.new(self._keyring.derive("database mark", key_id), self._configuration, sha256).hexdigest()


def _roots(url: str) -> str | None:
    """A digest of the file named by sslrootcert; None when none is named or it cannot be read."""
    name = conninfo_to_dict(url).get("sslrootcert")
    try:
        return sha256(Path(str(name)).read_bytes()).hexdigest() if name else None
    except OSError:
        return None
