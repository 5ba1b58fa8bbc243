"""`lyttle-ops certificates`: what the ledger says, and renewals asked for, at a terminal in a node's container."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from lyttle_ops.db import Database
from lyttle_ops.proxies import ProxyInput, create_proxy
from tests.integration.test_api_certificates import add_certificate
from tests.support.api import MASTER_KEY

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(database_url: str) -> Command:
    def run(*arguments: str, url: str = database_url) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "lyttle_ops.cli", *arguments],
            env={"PATH": os.environ["PATH"], "DATABASE_URL": url, "MASTER_KEY": MASTER_KEY},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


@pytest.fixture
def ledger(database: Database) -> dict[str, int]:
    """Ids by domain: one that is served, one whose orders fail, one that nobody wants."""
    with database.transaction() as connection:
        for name in ("good.example.com", "refused.example.com"):
            create_proxy(connection, ProxyInput(domains=(name,), proxy_pass_host="http://b", ssl=True))
    ids = {name: add_certificate(database, f"{name}.example.com") for name in ("good", "unwanted")}
    with database.transaction() as connection:
        row = connection.execute(
            "INSERT INTO certificates (domains, revision, attempts, last_error, last_error_at, next_try_at)"
            " VALUES ('{refused.example.com}', 1, 2, 'caa: forbidden', now(), now() + interval '1 hour') RETURNING id"
        ).fetchone()
    assert row
    return {**ids, "refused": int(row["id"])}


def test_the_list_tells_the_stage_and_the_cas_words(run: Command, ledger: dict[str, int]) -> None:
    done = run("certificates", "list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["certificate", "good.example.com", "refused.example.com",
                                                       "unwanted.example.com"]  # fmt: skip
    assert "failed 2 times, next try at " in lines[2]
    assert "not wanted by any enabled entry" in lines[3]
    assert lines[4] == ""
    assert lines[5].startswith("refused.example.com: the last try failed at 20")
    assert lines[6:] == ["  caa: forbidden"]

    good, refused, unwanted = json.loads(run("certificates", "list", "--json").stdout)["certificates"]
    assert (good["domains"], good["state"], good["wanted"]) == (["good.example.com"], "issued", True)
    assert good["error"] is None
    assert (refused["not_after"], refused["error"]) == (None, "caa: forbidden")
    assert refused["next_try_at"].endswith("+00:00")
    assert unwanted["wanted"] is False


def test_a_renewal_is_asked_for_by_name_or_for_all_that_are_wanted(
    run: Command, ledger: dict[str, int], database: Database
) -> None:
    def state() -> dict[str, tuple[bool, bool]]:
        with database.connection() as connection:
            rows = connection.execute("SELECT id, renewal_requested_at, next_try_at FROM certificates").fetchall()
        by_id = {row["id"]: (row["renewal_requested_at"] is not None, row["next_try_at"] is not None) for row in rows}
        return {name: by_id[number] for name, number in ledger.items()}

    before = state()
    for wrong, code, said in (
        ((), 2, "or --all"),
        (("--all", "good.example.com"), 2, "or --all"),
        (("*.*",), 2, "'*.*'"),
        (("good.example.com", "unwanted.example.com"), 1, "certificate for unwanted.example.com"),
    ):
        done = run("certificates", "renew", *wrong)
        assert done.returncode == code
        assert said in done.stderr
        assert state() == before

    done = run("certificates", "renew", "Good.Example.com.")
    assert done.stdout == "good.example.com: the leader renews it now\n", done.stderr
    assert state() == {**before, "good": (True, False)}

    done = run("certificates", "renew", "--all")
    assert done.stdout.splitlines()[1:] == ["refused.example.com: a node orders it now"]
    assert state() == {**before, "good": (True, False), "refused": (False, False)}


@pytest.mark.parametrize("command", [("certificates", "list"), ("user", "list"), ("migrate",)])
def test_without_database_the_reason_is_told_once_and_without_the_password(run: Command, command: tuple[str]) -> None:
    done = run(*command, url="postgresql://u:s3cret@127.0.0.1:1/none")
    assert done.returncode == 1
    assert done.stderr.startswith("error: PostgreSQL cannot be reached: ")
    assert done.stderr.count("Connection refused") == 1
    assert "s3cret" not in done.stderr
