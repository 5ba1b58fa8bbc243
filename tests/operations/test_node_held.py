"""LISTEN=held with real nodes: two tasks share one accept queue, and only one that can serve takes from it."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest

from tests.support import nginx, ports
from tests.support.node import NodeProcess, add_proxy
from tests.support.ports import Clients, Machine
from tests.support.wait import until

START = 60  # seconds a node may take on a busy machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Nodes cannot change their user and find their interpreter again, so the holder listens to this one's.
    with ports.machine(os.geteuid()) as made:
        yield made


@pytest.fixture
def task(machine: Machine, database_url: str) -> Iterator[Callable[..., NodeProcess]]:
    """Starts a task of the node, as Swarm does: the same settings and state, a run folder and a name of its own."""
    made: list[NodeProcess] = []

    def start(name: str, **changes: Any) -> NodeProcess:
        each = NodeProcess(
            database_url,
            LISTEN="held",
            PORTS_SOCKET=str(machine.socket),
            HTTP_LISTEN=f"{machine.http},{machine.http6}",
            HTTPS_LISTEN=machine.https,
            API_LISTEN=machine.api,
            TASK_ID=name,
            **({"STATE_DIR": made[0].environment["STATE_DIR"]} if made else {}),
            **changes,
        )
        made.append(each)
        return each.start()

    yield start
    for each in reversed(made):
        each.close()


def state(node: NodeProcess) -> str:
    return str(node.status()["state"])


def wait_ready(node: NodeProcess) -> None:
    until(lambda: state(node) == "ready", START, "the node is ready", every=0.1)


def who(machine: Machine) -> Callable[[str], str]:
    """Asks an address on a fresh connection: the task of the NGINX that answers, or "api"."""

    def ask(address: str) -> str:
        is_api = address == machine.api
        host, _, port = address.rpartition(":")
        path = "/health/live" if is_api else "/.well-known/lyttle-ops"
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = nginx.receive(connection)
        if not answer:
            raise ConnectionError("hung up without a word")
        status, headers, body = nginx.parse(answer)
        if status != 200:
            raise ConnectionError(f"{status}: {body!r}")
        return "api" if is_api else headers["x-lyttle-task"]

    return ask


def plain(machine: Machine) -> list[str]:
    return [machine.http, machine.http6, machine.api]


def refused(address: str) -> bool:
    try:
        ports.ask(address, timeout=1.0)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_start_first_with_a_holder_killed_before_loses_no_connection(
    machine: Machine, task: Callable[..., NodeProcess]
) -> None:
    first = machine.holder()
    old = task("old")
    wait_ready(old)
    assert old.status()["task_id"] == "old"
    with Clients(plain(machine), who(machine)) as clients:
        until(lambda: clients.answered("old") > 50)
        first.kill()
        machine.holder().says("handed back", START)
        new = task("new")
        wait_ready(new)
        until(lambda: clients.answered("new") > 10 and clients.answered("old") > 100, START)
        old.stop()
        assert old.process
        assert old.process.returncode == 0
        gone, api = clients.answered("old"), clients.answered("api")
        until(lambda: clients.answered("new") > 300 and clients.answered("api") > api + 100, START)
        assert clients.answered("old") <= gone + 2
    assert clients.failures == []
    assert state(new) == "ready"


def test_nginx_that_was_killed_comes_back_with_the_same_sockets(
    machine: Machine, task: Callable[..., NodeProcess]
) -> None:
    machine.holder()
    node = task("t1")
    wait_ready(node)
    pid = node.status()["nginx"]["pid"]
    with Clients([machine.http], who(machine)) as clients:
        until(lambda: clients.answered("t1") > 20)
        psutil.Process(pid).send_signal(signal.SIGKILL)
        until(lambda: node.status()["nginx"]["pid"] not in (None, pid), START)
        before = clients.answered("t1")
        until(lambda: clients.answered("t1") > before + 50, START)
    assert not [failure for failure in clients.failures if "Refused" in failure]
    until(lambda: node.status()["checks"]["nginx"]["ok"], START)
    assert who(machine)(machine.http6) == "t1"


def test_a_service_that_goes_finishes_its_requests_and_clients_are_refused(
    machine: Machine, task: Callable[..., NodeProcess], database_url: str
) -> None:
    arrived = Event()

    class Slow(nginx.Handler):
        def do_GET(self) -> None:
            arrived.set()
            time.sleep(3)
            self.answer(200, b"slow")

    machine.holder()
    with nginx.upstream(Slow) as server:
        host, port = server.server_address[:2]
        add_proxy(database_url, "slow.example.test", f"http://{host!s}:{port}")
        node = task("t1")
        wait_ready(node)
        answers: list[bytes] = []

        def request() -> None:
            with socket.create_connection(machine.http.split(":"), timeout=30) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: slow.example.test\r\nConnection: close\r\n\r\n")
                answers.append(nginx.parse(nginx.receive(connection))[2])

        client = Thread(target=request)
        client.start()
        assert arrived.wait(30)
        assert node.process
        node.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        until(lambda: all(refused(address) for address in machine.addresses), 15, "refused", every=0.1)
        assert time.monotonic() - started < 15
        client.join()
        assert answers == [b"slow"]
        assert node.wait() == 0


def test_without_a_holder_a_node_ends_with_the_reason(machine: Machine, task: Callable[..., NodeProcess]) -> None:
    node = task("t1")
    assert node.wait(90) == 1
    assert "This node cannot start: the ports could not be had from their holder" in node.text()
    assert "service `ports`" in node.text()


def test_a_version_whose_nginx_does_not_answer_gets_no_connection(
    machine: Machine, task: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    """It passes its own test of the configuration, and then hangs."""
    real = ":".join((os.environ["PATH"], "/usr/sbin"))
    fake = tmp_path / "nginx"
    fake.write_text(
        '#!/bin/sh\ncase " $* " in *" -v "*|*" -t "*) PATH="$REAL" exec nginx "$@";; esac\nexec sleep 600\n'.replace(
            "$REAL", real
        )
    )
    fake.chmod(0o755)
    machine.holder()
    old = task("old")
    wait_ready(old)
    with Clients(plain(machine), who(machine)) as clients:
        new = task("new", PATH=f"{tmp_path}:{real}")
        assert new.wait(90) == 1
        until(lambda: clients.answered("old") > 100)
    assert clients.failures == []
    assert clients.answered("new") == 0
    assert "does not answer on its own socket, so it does not get the ports" in new.text()
    assert state(old) == "ready"


def test_a_node_whose_nginx_was_given_up_lets_clients_be_refused_until_the_next_one(
    machine: Machine, task: Callable[..., NodeProcess]
) -> None:
    machine.holder()
    node = task("t1")
    wait_ready(node)
    pid = None
    for _ in range(6):
        pid = until(lambda pid=pid: (now := node.status()["nginx"]["pid"]) != pid and now, START, "NGINX is back")
        psutil.Process(pid).send_signal(signal.SIGKILL)
    until(lambda: state(node) == "failed", START)
    until(lambda: all(refused(address) for address in machine.addresses), START, "refused", every=0.2)
    # It still says why, where nobody else can answer.
    until(lambda: node.status()["checks"]["api"]["ok"], START)
    assert "nginx ended 6 times" in node.status()["failure"]
    wait_ready(task("t2"))
    assert [who(machine)(address) for address in plain(machine)] == ["t2", "t2", "api"]


def test_an_api_that_keeps_dying_is_tried_for_ever_since_its_port_stays_open(
    machine: Machine, task: Callable[..., NodeProcess]
) -> None:
    def kill_api() -> None:
        assert node.process
        for each in psutil.Process(node.process.pid).children():
            with suppress(psutil.Error):  # it has ended just now
                if "webapi.gunicorn_conf" in " ".join(each.cmdline()):
                    each.kill()

    machine.holder()
    node = task("t1")
    wait_ready(node)
    until(lambda: kill_api() or "api ended with signal SIGKILL; restart 6 in 15.0 s" in node.text(), START, every=0.1)
    until(lambda: who(machine)(machine.api) == "api", START, "the API is back")
    assert state(node) == "ready"
