"""`lyttle-ops domains`: what a node's container says it serves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

from lyttle_ops.db import Database
from lyttle_ops.proxies import ProxyInput, create_proxy
from tests.integration.test_node import NodeProcess, node
from tests.support.wait import until

__all__ = ["node"]  # the fixture


def domains(one: NodeProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lyttle_ops.cli", "domains", *arguments],
        env={**one.environment, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"},  # it asks no database
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_it_lists_what_is_served_and_nothing_else(node: Callable[..., NodeProcess], database: Database) -> None:
    with database.transaction() as connection:
        for names, more in (
            (("b.example.com", "a.example.com"), {}),
            (("waits.example.com",), {"ssl": True}),  # no CA is there: served over HTTP so far
            (("off.example.com",), {"enabled": False}),
            (("broken.example.com",), {}),
        ):
            create_proxy(
                connection, ProxyInput.model_validate({"domains": names, "proxy_pass_host": "http://b", **more})
            )
        connection.execute(
            "UPDATE proxies SET proxy_pass_host = 'http://b c' WHERE 'broken.example.com' = ANY (domains)"
        )
    one = node().start()
    until(one.ready, timeout=40)
    expected = [
        {"domain": f"{name}.example.com", "ssl": False, "ssl_wanted": name == "waits"} for name in ("a", "b", "waits")
    ]
    assert json.loads(domains(one, "--json").stdout) == {"domains": expected}
    assert domains(one).stdout.split() == [each["domain"] for each in expected]

    with database.transaction() as connection:
        create_proxy(connection, ProxyInput(domains=("new.example.com",), proxy_pass_host="http://b"))
    until(lambda: "new.example.com" in domains(one).stdout, 20, "a change shows")

    assert one.process
    os.kill(one.process.pid, signal.SIGSTOP)  # as if it hung
    try:
        until(lambda: domains(one).returncode == 1, 30, "an old list is not believed")
        assert "no node that serves was found" in domains(one).stderr
    finally:
        os.kill(one.process.pid, signal.SIGCONT)
