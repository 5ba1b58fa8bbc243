"""Renewal: who lists it, when, the CA's own wish (ARI), a person's wish; and what is pruned."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import requests

from lyttle_ops.certificates import renewal, store
from lyttle_ops.certificates.acme import renewal_id
from lyttle_ops.certificates.model import CertificateView, Due, Outcome
from tests.support.ca import Lab, NodeMaker, TestNode, node_maker, running_lab, want

DOMAIN = "a.example.com"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def make(lab: Lab, database_url: str) -> Iterator[NodeMaker]:
    with node_maker(lab, database_url) as make:
        yield make


def _view(node: TestNode) -> CertificateView:
    with node.database.connection() as connection:
        (view,) = store.list_certificates(connection)
        return store.get_certificate(connection, view.id)


def _execute(node: TestNode, statement: str) -> None:
    with node.database.connection() as connection:
        connection.execute(statement.encode())


def _request(node: TestNode) -> CertificateView:
    with node.database.transaction() as connection:
        return store.request_renewal(connection, 1).certificate


def test_the_rows_of_wanted_certificates_come_with_the_list_of_what_is_due(make: NodeMaker) -> None:
    node = make()
    want(node.database, "b.example.com", "a.example.com")
    want(node.database, "off.example.com", enabled=False)
    due = [Due(id=1, domains=("a.example.com", "b.example.com"), renewal=False, requested=False)]
    assert node.certificates.pending(leader=False) == due  # made by this call
    assert node.certificates.pending(leader=True) == due  # found by this one
    assert len(node.certificates.usable()) == 0


def test_only_the_leader_lists_renewals(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    assert node.certificates.pending(leader=True) == []
    _execute(node, "UPDATE certificates SET renew_at = now() - interval '1 second'")
    assert node.certificates.pending(leader=False) == []
    assert node.certificates.pending(leader=True) == [Due(1, (DOMAIN,), renewal=True, requested=False)]
    before = _view(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    after = _view(node)
    assert before.serial != after.serial
    assert [order.state for order in after.orders] == ["issued", "issued"]
    assert node.certificates.pending(leader=True) == []


def test_what_no_enabled_proxy_wants_is_not_renewed(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    _execute(node, "UPDATE certificates SET renew_at = now(), renewal_requested_at = now()")
    _execute(node, "UPDATE proxies SET enabled = false")
    assert node.certificates.pending(leader=True) == []


def test_renewal_is_planned_once_by_lifetime_and_order(lab: Lab, make: NodeMaker) -> None:
    node = make()
    node.certificates.ensure_certificate([DOMAIN])
    view = _view(node)
    assert view.not_before is not None
    assert view.not_after is not None
    planned = renewal.planned(view.not_before, view.not_after, renewal.jitter(view.id, view.orders[0].id))
    assert view.renew_at is not None
    assert abs(view.renew_at - planned) < timedelta(milliseconds=1)


def test_a_renewal_requested_on_three_nodes_at_once_is_one_order(lab: Lab, make: NodeMaker) -> None:
    nodes = [make(name) for name in ("n1", "n2", "n3")]
    want(nodes[0].database, DOMAIN)
    nodes[0].certificates.ensure_certificate([DOMAIN])
    lab.proxy.orders = 0

    def ask(node: TestNode) -> None:
        _request(node)
        for due in node.certificates.pending(leader=True):  # a race of three leaders is the worst case
            node.certificates.ensure_certificate(due.domains)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, nodes))
    for node in nodes:
        for due in node.certificates.pending(leader=True):
            node.certificates.ensure_certificate(due.domains)
    assert lab.proxy.orders == 1
    assert _view(nodes[0]).renewal_requested_at is None


def test_a_request_that_comes_while_an_order_is_under_way_gets_an_order_of_its_own(lab: Lab, make: NodeMaker) -> None:
    """The person may have asked because of something the running order began before."""
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    _execute(node, "UPDATE certificates SET renew_at = now()")
    hold = lab.proxy.fault("finalize", action="hold")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(node.certificates.ensure_certificate, [DOMAIN])
        assert hold.reached.wait(10)
        assert _request(node).state == "renewing"
        hold.release()
        assert future.result(10) is Outcome.ISSUED
    assert [due.requested for due in node.certificates.pending(leader=True)] == [True]


def test_a_request_wakes_the_nodes(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    listener = node.database.connect()
    try:
        listener.execute("LISTEN lyttle_state")
        _request(node)
        assert [note.channel for note in listener.notifies(timeout=5, stop_after=1)] == ["lyttle_state"]
    finally:
        listener.close()


@pytest.mark.parametrize("orders", [1, 2], ids=["no ARI", "ARI"])
def test_a_failed_renewal_keeps_the_certificate_and_says_so(lab: Lab, make: NodeMaker, orders: int) -> None:
    """With ARI an order that names what it replaces comes first, then one that does not; the CA refuses them all."""
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    _request(node)
    if orders == 2:
        lab.proxy.renewal_window = (datetime.now(UTC), datetime.now(UTC) + timedelta(days=1))
    problem = {"type": "urn:ietf:params:acme:error:malformed", "detail": "no"}
    refusal = lab.proxy.answer("newOrder", 400, problem, times=orders)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert refusal.times == 0
    view = _view(node)
    assert view.state == "issued"
    assert "renewal failed 1 times, next try at" in view.stage
    assert view.last_error == "urn:ietf:params:acme:error:malformed: no"
    assert len(node.certificates.usable()) == 1


def test_an_expired_certificate_is_served_until_its_renewal_and_shown_as_failed(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    _execute(node, "UPDATE certificate_orders SET not_after = now() - interval '1 day'")
    view = _view(node)
    assert (view.state, view.stage) == ("failed", "expired; waits for the leader to renew it")
    assert len(node.certificates.usable()) == 1
    assert [due.renewal for due in node.certificates.pending(leader=True)] == [True]


def test_the_cas_suggested_window_moves_the_date_and_always_to_the_same_point(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    lab.proxy.renewal_window = (start, start + timedelta(days=2))
    assert node.certificates.check_renewals(node.database.transaction) == []
    first = _view(node).renew_at
    assert first is not None
    assert start <= first <= start + timedelta(days=2)
    node.certificates.check_renewals(node.database.transaction)
    assert _view(node).renew_at == first


def test_a_window_in_the_past_makes_it_due_now_and_the_order_says_what_it_replaces(lab: Lab, make: NodeMaker) -> None:
    """RFC 9773 4.2 and 5: the CA is about to revoke; the renewal is exempt from its rate limits."""
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    (old,) = node.certificates.usable()
    past = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    lab.proxy.renewal_window = (past, past + timedelta(hours=1))
    (due,) = node.certificates.check_renewals(node.database.transaction)
    assert due.renewal
    assert node.certificates.ensure_certificate(due.domains) is Outcome.ISSUED
    assert lab.proxy.payloads[-1]["replaces"] == renewal_id(old.chain_pem)
    assert "replaces" not in lab.proxy.payloads[0]


def test_a_renewal_the_ca_does_not_accept_as_one_is_ordered_anew(lab: Lab, make: NodeMaker) -> None:
    """RFC 9773 5: alreadyReplaced is HTTP 409."""
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    lab.proxy.renewal_window = (datetime.now(UTC), datetime.now(UTC) + timedelta(days=1))
    _execute(node, "UPDATE certificates SET renew_at = now()")
    lab.proxy.answer("newOrder", 409, {"type": "urn:ietf:params:acme:error:alreadyReplaced", "detail": "done"})
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    assert "replaces" not in lab.proxy.payloads[-1]


def test_what_this_pebble_offers_of_renewal_information_is_used(lab: Lab, make: NodeMaker) -> None:
    """Past the proxy. From 2.6 on pebble offers ARI: it knows our name for the certificate, and takes the order as
    its renewal. Older ones do not: the planned date stands, and the order is one like any other."""
    node = make(settings=lab.direct)
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    planned = _view(node).renew_at
    assert planned is not None
    (old,) = node.certificates.usable()
    base = requests.get(lab.direct.acme_directory_url, verify=str(lab.ca.root), timeout=5).json().get("renewalInfo")
    window = planned, planned
    if base is not None:
        said = requests.get(f"{base}/{renewal_id(old.chain_pem)}", verify=str(lab.ca.root), timeout=5).json()
        start, end = (datetime.fromisoformat(said["suggestedWindow"][key]) for key in ("start", "end"))
        assert not start <= planned <= end
        window = start, end
    assert node.certificates.check_renewals(node.database.transaction) == []
    moved = _view(node).renew_at
    assert moved is not None
    assert window[0] <= moved <= window[1]
    _execute(node, "UPDATE certificates SET renew_at = now()")
    before = lab.ca.log.stat().st_size
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    taken_as_renewal = b"is a replacement of" in lab.ca.log.read_bytes()[before:]
    assert taken_as_renewal == (base is not None)


@pytest.mark.parametrize("trouble", ["no ARI", "unreachable", "unknown certificate"])
def test_without_renewal_information_the_planned_date_stands(lab: Lab, make: NodeMaker, trouble: str) -> None:
    node = make()
    want(node.database, DOMAIN)
    node.certificates.ensure_certificate([DOMAIN])
    planned = _view(node).renew_at
    if trouble != "no ARI":
        lab.proxy.renewal_window = (datetime.now(UTC), datetime.now(UTC) + timedelta(days=1))
    if trouble == "unreachable":
        lab.proxy.fault("renewalInfo")
    elif trouble == "unknown certificate":
        lab.proxy.answer("renewalInfo", 404, {"type": "urn:ietf:params:acme:error:malformed", "detail": "unknown"})
    assert node.certificates.check_renewals(node.database.transaction) == []
    assert _view(node).renew_at == planned


def test_pruning_removes_what_nobody_needs_and_nothing_else(lab: Lab, make: NodeMaker) -> None:
    node = make()
    for domain in ("kept.example.com", "off.example.com", "gone.example.com"):
        want(node.database, domain, enabled=domain != "off.example.com")
        node.certificates.ensure_certificate([domain])
    node.certificates.ensure_certificate(["valid-but-unwanted.example.com"])
    _execute(node, "DELETE FROM proxies WHERE 'gone.example.com' = ANY(domains)")
    _execute(
        node,
        "UPDATE certificate_orders o SET not_after = now() - interval '8 days' FROM certificates c "
        "WHERE c.id = o.certificate_id AND NOT 'valid-but-unwanted.example.com' = ANY(c.domains)",
    )
    # One superseded order that is old, one that is not; fifteen old failed ones.
    history = (
        "INSERT INTO certificate_orders (certificate_id, state, directory_url, node_name, instance_id, key_id, "
        "private_key, csr_pem, updated_at) SELECT 1, '{state}', 'd', 'n', gen_random_uuid(), 'k', '', '', "
        "now() - interval '{age}' FROM generate_series(1, {count})"
    )
    for state, age, count in (("issued", "31 days", 1), ("issued", "29 days", 1), ("failed", "31 days", 15)):
        _execute(node, history.format(state=state, age=age, count=count))
    pruned = node.certificates.prune()
    assert (pruned.certificates, pruned.orders) == (1, 1 + 3)
    with node.database.connection() as connection:
        left = [view.domains[0] for view in store.list_certificates(connection)]
    assert left == ["kept.example.com", "off.example.com", "valid-but-unwanted.example.com"]
    assert node.certificates.prune() == store.Pruned(0, 0)


def test_the_back_off_of_a_name_that_is_gone_is_remembered_for_a_month(lab: Lab, make: NodeMaker) -> None:
    """Deleting a proxy and making it again must not be a way around the CA's limits."""
    node = make()
    lab.proxy.answer("newOrder", 400, {"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "no"})
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert node.certificates.prune().certificates == 0
    _execute(
        node,
        "UPDATE certificates SET created_at = now() - interval '40 days', last_error_at = now() - interval '31 days', "
        "next_try_at = now() - interval '31 days'",
    )
    assert node.certificates.prune().certificates == 1
