"""Connections on bad days: a server that accepts and never answers, sessions that ended, messages without secrets."""

import os
import signal
import time

import psycopg
import pytest

from lyttle_ops.db import Database, DatabaseUnavailable
from lyttle_ops.db import connection as connections
from tests.support.wait import until


def test_a_backend_that_never_answers_is_given_up_and_the_next_statement_works(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a frozen database server looks like: its kernel acknowledges, nobody answers."""
    monkeypatch.setattr(connections, "ANSWER_TIMEOUT", 1.0)
    database = Database(database_url, "test", size=1)
    frozen = None
    try:
        with database.connection() as connection:
            frozen = connection.info.backend_pid
        os.kill(frozen, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="no answer within"), database.connection() as connection:
            connection.execute("SELECT 1")
        assert time.monotonic() - started < 5
        with database.connection() as connection:
            assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
    finally:
        if frozen is not None:
            os.kill(frozen, signal.SIGCONT)
        database.close()


def test_a_session_that_ended_while_pooled_costs_no_statement(database: Database, database_url: str) -> None:
    with database.connection() as connection:
        ended = connection.info.backend_pid
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (ended,))
        alive = "SELECT FROM pg_stat_activity WHERE pid = %s"
        until(lambda: other.execute(alive, (ended,)).fetchone() is None)
    with database.connection() as connection:
        assert connection.info.backend_pid != ended
        connection.execute("SELECT 1")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:s3cret@127.0.0.1:1/x", "Connection refused"),
        ("postgresql://u:s3cret@none.invalid/x", "none.invalid"),
        ("{url}?sslmode=require", "SSL"),
    ],
)
def test_a_pool_without_a_connection_says_why_there_is_none(
    database_url: str, monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 2)
    database = Database(url.format(url=database_url), "test", size=1)
    try:
        with pytest.raises(DatabaseUnavailable, match=reason) as caught, database.connection():
            pass
        assert "s3cret" not in str(caught.value)
    finally:
        database.close()
