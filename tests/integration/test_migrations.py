"""Migrations: any number of nodes at once on an empty database, and versions beside each other."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lyttle_ops.db import Database, DatabaseMisconfigured, DatabaseUnavailable
from lyttle_ops.db.migrate import current, head, migrate


def test_ten_nodes_starting_at_once_migrate_an_empty_database_once(empty_database_url: str) -> None:
    databases = [Database(empty_database_url, f"n{i}", size=1) for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        did = list(pool.map(migrate, databases))
    assert sum(did) == 1
    assert current(databases[0]) == head()
    for database in databases:
        database.close()


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert migrate(database) is False
    assert current(database) == "9999"


def test_a_wrong_password_is_a_misconfiguration_and_never_shown(database_url: str) -> None:
    wrong = database_url.replace("@", "-wrong@", 1)
    password = wrong.split(":")[2].split("@")[0]
    with pytest.raises(DatabaseMisconfigured) as caught:
        Database(wrong, "test", size=0).connect()
    assert password not in str(caught.value) + repr(caught.value.__cause__)


def test_a_dead_address_is_unavailability() -> None:
    with pytest.raises(DatabaseUnavailable):
        Database("postgresql://u:p@127.0.0.1:1/x", "test", size=0).connect()
