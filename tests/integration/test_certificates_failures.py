"""What the CA refuses: its own words, when the next try is, and who respects that."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from lyttle_ops.certificates import store
from lyttle_ops.certificates.model import CertificateView, Outcome
from tests.support.ca import ACMESettings, Lab, NodeMaker, TestNode, node_maker, running_lab, want

DOMAIN = "a.example.com"
URN = "urn:ietf:params:acme:error:"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def make(lab: Lab, database_url: str) -> Iterator[NodeMaker]:
    with node_maker(lab, database_url) as make:
        yield make
    lab.answerer.silent = False


def _view(node: TestNode) -> CertificateView:
    with node.database.connection() as connection:
        (view,) = store.list_certificates(connection)
        return store.get_certificate(connection, view.id)


def _wait(view: CertificateView) -> timedelta:
    assert view.next_try_at is not None
    assert view.last_error_at is not None
    return view.next_try_at - view.last_error_at


def _end_back_off(node: TestNode) -> None:
    with node.database.connection() as connection:
        connection.execute("UPDATE certificates SET next_try_at = now() - interval '1 second'")


def _problem(kind: str, detail: str = "the CA's own words", **more: Any) -> dict[str, Any]:
    return {"type": URN + kind, "detail": detail, **more}


def test_a_failed_validation_is_told_in_the_cas_words_and_respected_by_all_nodes(lab: Lab, make: NodeMaker) -> None:
    first, second = make("n1"), make("n2")
    want(first.database, DOMAIN)
    lab.answerer.silent = True
    assert first.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    view = _view(second)
    assert view.state == "failed"
    assert view.last_error is not None
    assert view.last_error.startswith(f"{DOMAIN}: {URN}")
    assert "404" in view.last_error
    assert view.attempts == 1
    assert _wait(view) == timedelta(minutes=1)
    assert "failed 1 times, next try at" in view.stage
    assert [order.error for order in view.orders] == [view.last_error]
    seen = lab.proxy.seen.total()
    assert second.certificates.ensure_certificate([DOMAIN]) is Outcome.WAITING
    assert second.certificates.pending(leader=True) == []
    assert lab.proxy.seen.total() == seen


def test_back_off_grows_with_each_refusal_and_a_success_ends_it(lab: Lab, make: NodeMaker) -> None:
    node = make()
    lab.answerer.silent = True
    waits = []
    for _ in range(3):
        assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
        waits.append(_wait(_view(node)))
        _end_back_off(node)
    assert waits == [timedelta(minutes=minutes) for minutes in (1, 5, 15)]
    lab.answerer.silent = False
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    view = _view(node)
    assert (view.state, view.attempts, view.last_error, view.next_try_at) == ("issued", 0, None, None)


def test_a_person_can_ask_for_a_try_before_the_back_off_ends(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    lab.answerer.silent = True
    node.certificates.ensure_certificate([DOMAIN])
    lab.answerer.silent = False
    with node.database.transaction() as connection:
        asked = store.request_renewal(connection, _view(node).id)
    view = asked.certificate
    assert asked.message == "a node orders it now"
    assert view.next_try_at is None
    assert view.renewal_requested_at is None  # there is nothing to renew yet
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED


def test_a_rate_limit_is_the_cas_and_nobody_can_wish_it_away(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    lab.proxy.answer("newOrder", 429, _problem("rateLimited", "too many"), {"Retry-After": "7200"})
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    view = _view(node)
    assert view.last_error == f"{URN}rateLimited: too many"
    assert _wait(view) == timedelta(hours=2)
    with node.database.transaction() as connection:
        asked = store.request_renewal(connection, view.id)
    view = asked.certificate
    assert asked.message.startswith("the CA's rate limit holds until 2")
    assert _wait(view) == timedelta(hours=2)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.WAITING
    assert [order.state for order in view.orders] == ["intent"]  # nothing was ordered, so nothing is closed


def test_a_rate_limit_without_a_time_waits_an_hour(lab: Lab, make: NodeMaker) -> None:
    node = make()
    lab.proxy.answer("newOrder", 429, _problem("rateLimited"))
    node.certificates.ensure_certificate([DOMAIN])
    assert _wait(_view(node)) == timedelta(hours=1)


@pytest.mark.parametrize("kind", ["rejectedIdentifier", "unsupportedIdentifier", "caa"])
def test_what_only_a_person_can_change_is_not_retried_soon(lab: Lab, make: NodeMaker, kind: str) -> None:
    node = make()
    lab.proxy.answer("newOrder", 400, _problem(kind))
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert _wait(_view(node)) == timedelta(hours=12)


def test_subproblems_are_told_with_their_names(lab: Lab, make: NodeMaker) -> None:
    """RFC 8555 6.7.1: one bad name among several; its kind decides the wait."""
    node = make()
    sub = _problem("rejectedIdentifier", "on a list", identifier={"type": "dns", "value": "b.example.com"})
    lab.proxy.answer("newOrder", 400, _problem("malformed", "some names were refused", subproblems=[sub]))
    node.certificates.ensure_certificate([DOMAIN, "b.example.com"])
    view = _view(node)
    assert view.last_error == (
        f"{URN}malformed: some names were refused; b.example.com: {URN}rejectedIdentifier: on a list"
    )
    assert _wait(view) == timedelta(hours=12)


@pytest.mark.parametrize(
    ("status", "problem", "headers", "expected"),
    [
        (500, _problem("serverInternal"), {}, 10),
        (503, {}, {}, 10),
        (503, _problem("serverInternal"), {"Retry-After": "120"}, 120),
    ],
    ids=["problem", "no problem document", "retry-after"],
)
def test_an_error_of_the_ca_itself_is_retried_soon_and_keeps_the_order(
    lab: Lab, make: NodeMaker, status: int, problem: dict[str, Any], headers: dict[str, str], expected: int
) -> None:
    node = make()
    lab.proxy.answer("finalize", status, problem, headers)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    view = _view(node)
    assert _wait(view) == timedelta(seconds=expected)
    assert [order.state for order in view.orders] == ["processing"]
    _end_back_off(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    assert lab.proxy.orders == 1


def test_an_unreachable_ca_does_not_lengthen_the_wait_after_a_refusal(lab: Lab, make: NodeMaker) -> None:
    """The two kinds are counted apart: an outage of the CA is not held against the domain."""
    node = make()
    lab.proxy.fault("directory", times=3)
    for expected in (10, 30, 60):
        assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
        assert _wait(_view(node)) == timedelta(seconds=expected)
        _end_back_off(node)
    lab.answerer.silent = True
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert _wait(_view(node)) == timedelta(minutes=1)


def test_a_ca_nobody_listens_for_is_named_with_the_reason(lab: Lab, make: NodeMaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    node = make(settings=ACMESettings(f"https://127.0.0.1:{port}/dir", None))
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert _view(node).last_error == f"the CA at 127.0.0.1:{port} failed: Connection refused"


def test_an_answer_that_makes_no_sense_is_a_failure_and_not_a_crash(lab: Lab, make: NodeMaker) -> None:
    node = make()
    lab.proxy.answer("directory", 200, {"meta": {}})
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert "was not understood" in str(_view(node).last_error)


def test_a_contact_the_ca_refuses_is_told(lab: Lab, make: NodeMaker) -> None:
    node = make()
    lab.proxy.answer("newAccount", 400, _problem("invalidContact", "no such mailbox"))
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    view = _view(node)
    assert view.last_error == f"{URN}invalidContact: no such mailbox"
    assert _wait(view) == timedelta(hours=12)


def test_one_bad_name_does_not_stop_the_others(lab: Lab, make: NodeMaker) -> None:
    node = make()
    for domain in ("bad.example.com", "good.example.com"):
        want(node.database, domain)
    lab.proxy.answer("newOrder", 400, _problem("rejectedIdentifier"))
    outcomes = [node.certificates.ensure_certificate(due.domains) for due in node.certificates.pending(leader=False)]
    assert outcomes == [Outcome.FAILED, Outcome.ISSUED]
    assert [usable.domains for usable in node.certificates.usable()] == [("good.example.com",)]
