"""The proof of a node, against servers that answer as good and bad versions do."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support import loopback, modules

proof = modules.load("lyttle_proof")
OLD, NEW = "old-task", "new-task"
DOMAINS = [{"domain": "shop.example", "ssl": False}, {"domain": "*.wild.example", "ssl": False}]
Answer = tuple[int, str]  # status, task that the header names


@contextmanager
def node(known: Callable[[], Answer], site: Callable[[], int]) -> Iterator[tuple[str, object]]:
    """A server whose well-known path answers `known` and whose sites answer `site`; yields (address, ports)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, task = known() if self.path == proof.WELL_KNOWN else (site(), "")
            self.send_response(status)
            if task:
                self.send_header("X-Lyttle-Task", task)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    address = loopback.address()
    port = loopback.port(address)
    with http.server.ThreadingHTTPServer((address, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield address, proof.Ports(port, port)
        finally:
            server.shutdown()
            thread.join()


def prove(address: str, ports: object, before: dict[str, str], **options: object):  # type: ignore[no-untyped-def]
    return proof.prove(address, ports, NEW, {OLD}, before, options.pop("seconds", 5), **options)


def test_a_node_that_answers_as_the_new_task_and_as_before_is_proved() -> None:
    with node(lambda: (200, NEW), lambda: 200) as (address, ports):
        before = proof.baseline(address, ports, DOMAINS)
        result = prove(address, ports, before)
    assert before == {"http://shop.example/": "2xx", "http://lyttle-proof.wild.example/": "2xx"}
    assert result.ok
    assert (result.requests, result.failures) == (proof.CONFIRMATIONS + 2, 0)


def test_the_old_task_may_answer_for_a_while_and_starts_the_count_anew() -> None:
    answers = iter([NEW, NEW, NEW, NEW, OLD])
    with node(lambda: (200, next(answers, NEW)), lambda: 200) as (address, ports):
        result = prove(address, ports, {})
    assert result.ok
    assert (result.requests, result.retries, result.failures) == (10, 1, 0)


@pytest.mark.parametrize(("task", "told"), [(OLD, "the old task"), ("stranger", "a task that Swarm does not know")])
def test_another_task_that_never_ends_is_no_proof(task: str, told: str) -> None:
    with node(lambda: (200, task), lambda: 200) as (address, ports):
        result = prove(address, ports, {}, seconds=0.5)
    assert not result.ok
    assert result.reason.startswith(told)
    assert "still answers" in result.reason
    assert result.failures == 0


def test_three_bad_answers_in_a_row_end_the_proof() -> None:
    with node(lambda: (500, ""), lambda: 200) as (address, ports):
        result = prove(address, ports, {})
    assert not result.ok
    assert result.reason.endswith("answers 500 and does not name its task")
    assert result.failures == 3


def test_a_node_that_refuses_is_no_proof() -> None:
    address = loopback.address()
    result = prove(address, proof.Ports(loopback.port(address), 0), {})
    assert not result.ok
    assert "gives no answer (ConnectionRefusedError" in result.reason


def test_a_site_that_answers_worse_than_before_fails_with_its_address() -> None:
    with node(lambda: (200, NEW), lambda: 500) as (address, ports):
        result = prove(address, ports, {"http://shop.example/": "2xx"})
    assert not result.ok
    assert result.reason == "http://shop.example/ answered 2xx before and 500 now"
    assert result.failures == 3


def test_one_bad_answer_of_a_site_is_counted_and_forgiven() -> None:
    statuses = iter([502])
    with node(lambda: (200, NEW), lambda: next(statuses, 200)) as (address, ports):
        result = prove(address, ports, {"http://shop.example/": "2xx"})
    assert result.ok
    assert (result.retries, result.failures) == (1, 1)


def test_a_site_that_is_as_bad_on_another_node_is_its_upstreams_fault() -> None:
    with node(lambda: (200, NEW), lambda: 502) as (address, ports):
        result = prove(address, ports, {"http://shop.example/": "2xx"}, control=address)
    assert result.ok
    assert result.notes == ["http://shop.example/ is worse than before on every node: its upstream is in trouble"]
    assert result.failures == 0


@pytest.mark.parametrize(
    ("detail", "forgiven"),
    [
        ("TimeoutError: timed out", True),
        ("IncompleteRead: IncompleteRead(5 bytes read)", True),
        (
            "SSLError: [SSL: TLSV1_UNRECOGNIZED_NAME] tlsv1 unrecognized name (_ssl.c:1006)",
            True,
        ),  # taken away meanwhile
        ("SSLError: [SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure (_ssl.c:1006)", False),
        ("ConnectionRefusedError: [Errno 111] Connection refused", False),
    ],
)
def test_no_answer_on_every_node_is_this_versions_fault_unless_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch, detail: str, forgiven: bool
) -> None:
    silence = proof.Answer("no answer", detail, {})
    with node(lambda: (200, NEW), lambda: 200) as (address, ports):
        monkeypatch.setattr(proof, "_ask_target", lambda *_: silence)
        result = prove(address, ports, {"https://shop.example/": "2xx"}, control=address)
    assert result.ok is forgiven


def test_a_site_that_was_bad_before_may_stay_bad() -> None:
    with node(lambda: (200, NEW), lambda: 503) as (address, ports):
        before = proof.baseline(address, ports, DOMAINS[:1])
        assert before == {"http://shop.example/": "5xx"}
        assert prove(address, ports, before).ok
