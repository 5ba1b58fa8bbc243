"""Issuing against a real CA: the fast path, one order for the cluster, what is stored and shown."""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from acme import client, messages
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from josepy.jwa import ES256

from lyttle_ops.certificates import store
from lyttle_ops.certificates.encryption import WrongMasterKey
from lyttle_ops.certificates.model import CannotCertify, CertificateNotFound, OrderState, Outcome
from lyttle_ops.cluster.locks import LockLost
from tests.support.ca import Lab, NodeMaker, TestNode, node_maker, running_lab, want


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def make(lab: Lab, database_url: str) -> Iterator[NodeMaker]:
    with node_maker(lab, database_url) as make:
        yield make


def _only_view(node: TestNode) -> store.CertificateView:
    with node.database.connection() as connection:
        (view,) = store.list_certificates(connection)
        return store.get_certificate(connection, view.id)


def test_an_issued_certificate_is_usable_with_its_key(lab: Lab, make: NodeMaker) -> None:
    """Chain of the CA for exactly these domains, key that fits, and the fast path from then on."""
    node = make()
    want(node.database, "www.example.com", "example.com")
    assert node.certificates.ensure_certificate(["www.example.com", "example.com"]) is Outcome.ISSUED
    (usable,) = node.certificates.usable()
    assert usable.domains == ("example.com", "www.example.com")
    leaf, intermediate = x509.load_pem_x509_certificates(usable.chain_pem.encode())
    leaf.verify_directly_issued_by(intermediate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(names.get_values_for_type(x509.DNSName)) == ["example.com", "www.example.com"]
    key = serialization.load_pem_private_key(usable.key_pem, None)
    assert key.public_key() == leaf.public_key()
    assert usable.serial == f"{leaf.serial_number:x}"
    assert "PRIVATE" not in repr(usable)


def test_no_log_line_holds_a_key(lab: Lab, make: NodeMaker, caplog: pytest.LogCaptureFixture) -> None:
    """Not even with everything of every library at DEBUG."""
    caplog.set_level(logging.DEBUG)
    node = make()
    want(node.database, "a.example.com")
    node.certificates.ensure_certificate(["a.example.com"])
    (usable,) = node.certificates.usable()
    account = node.certificates._account.key().to_json()
    assert "placed" in caplog.text
    assert "PRIVATE KEY" not in caplog.text
    assert usable.key_pem.decode().splitlines()[1] not in caplog.text
    assert account["d"] not in caplog.text


def test_the_fast_path_takes_no_lock_and_asks_no_ca(lab: Lab, make: NodeMaker) -> None:
    node = make()
    assert node.certificates.ensure_certificate(["a.example.com"]) is Outcome.ISSUED
    seen = Counter(lab.proxy.seen)
    held = node.locks.try_acquire_lock  # a lock would show up here
    node.locks.try_acquire_lock = None
    assert node.certificates.ensure_certificate(["a.example.com"]) is Outcome.READY
    node.locks.try_acquire_lock = held
    assert lab.proxy.seen == seen


def test_issuing_does_not_wait_for_the_librarys_own_polling(lab: Lab, make: NodeMaker) -> None:
    """Against pebble without delays. The library's own polling sleeps for a second at least, and usually for two;
    how fast it is beyond that is for benchmarks/bench_issue.py to say, whatever else this machine does."""
    node = make(settings=lab.direct)
    took = []
    for index in range(5):
        started = time.monotonic()
        assert node.certificates.ensure_certificate([f"fast{index}.example.com"]) is Outcome.ISSUED
        took.append(time.monotonic() - started)
    assert statistics.median(took) < 1.0


def test_what_is_shown_tells_the_stage_and_never_a_key(lab: Lab, make: NodeMaker) -> None:
    node = make()
    want(node.database, "a.example.com")
    node.certificates.pending(leader=False)
    view = _only_view(node)
    assert (view.state, view.stage, view.wanted) == ("pending", "waits for a node to order it", True)
    node.certificates.ensure_certificate(["a.example.com"])
    view = _only_view(node)
    assert view.state == "issued"
    assert view.attempts == 0
    assert view.last_error is None
    assert view.issuer is not None
    assert "Pebble Intermediate" in view.issuer
    assert view.not_before is not None
    assert view.not_after is not None
    assert view.renew_at is not None
    assert view.not_before < view.renew_at < view.not_after
    assert [(order.state, order.node_name, order.serial) for order in view.orders] == [
        (OrderState.ISSUED, "n1", view.serial)
    ]
    assert "PRIVATE" not in repr(view)
    assert "REQUEST" not in repr(view)


def test_a_certificate_that_does_not_exist_is_not_found(make: NodeMaker) -> None:
    node = make()
    with node.database.connection() as connection:
        for ask in (store.get_certificate, store.request_renewal):
            with pytest.raises(CertificateNotFound):
                ask(connection, 4711)


def test_the_stage_while_the_ca_is_at_it_names_the_step_and_the_node(lab: Lab, make: NodeMaker) -> None:
    node = make()
    hold = lab.proxy.fault("challenge", action="hold")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(node.certificates.ensure_certificate, ["a.example.com"])
        assert hold.reached.wait(10)
        view = _only_view(node)
        hold.release()
        assert future.result() is Outcome.ISSUED
    assert view.state == "issuing"
    assert view.stage == "not wanted by any enabled entry; the CA is checking the domains (by n1)"


def test_three_nodes_at_once_make_one_order(lab: Lab, make: NodeMaker) -> None:
    nodes = [make(name) for name in ("n1", "n2", "n3")]
    with ThreadPoolExecutor(3) as pool:
        outcomes = Counter(pool.map(lambda node: node.certificates.ensure_certificate(["a.example.com"]), nodes))
    assert lab.proxy.orders == 1
    assert outcomes[Outcome.ISSUED] == 1
    assert set(outcomes) <= {Outcome.ISSUED, Outcome.BUSY, Outcome.READY}


def test_twenty_names_on_three_nodes_make_twenty_orders(lab: Lab, make: NodeMaker) -> None:
    nodes = [make(name) for name in ("n1", "n2", "n3")]
    work = [(node, f"name{index}.example.com") for index in range(20) for node in nodes]
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda each: each[0].certificates.ensure_certificate([each[1]]), work))
    assert lab.proxy.orders == 20
    assert {node.certificates.ensure_certificate([name]) for node, name in work} == {Outcome.READY}
    with nodes[0].database.connection() as connection:
        assert {view.state for view in store.list_certificates(connection)} == {"issued"}


def test_one_account_serves_the_cluster_and_its_key_needs_no_network(lab: Lab, make: NodeMaker) -> None:
    nodes = [make(name) for name in ("n1", "n2", "n3")]
    assert len({node.certificates.account_thumbprint() for node in nodes}) == 1
    assert not lab.proxy.seen
    with ThreadPoolExecutor(3) as pool:
        jobs = enumerate(nodes)
        list(pool.map(lambda each: each[1].certificates.ensure_certificate([f"a{each[0]}.example.com"]), jobs))
    assert lab.proxy.orders == 3
    assert lab.proxy.seen["newAccount"] == 1


def test_an_account_the_ca_has_forgotten_is_registered_again(lab: Lab, make: NodeMaker) -> None:
    """A restarted pebble knows nobody; the key, and so the thumbprint on every node, stays the same."""
    node = make()
    assert node.certificates.ensure_certificate(["a.example.com"]) is Outcome.ISSUED
    thumbprint = node.certificates.account_thumbprint()
    lab.ca.stop()
    lab.ca.start()
    assert node.certificates.ensure_certificate(["b.example.com"]) is Outcome.ISSUED
    assert node.certificates.account_thumbprint() == thumbprint
    assert lab.proxy.seen["newAccount"] == 2


def test_a_deactivated_account_is_replaced_once_and_every_node_renders_the_new_thumbprint(
    lab: Lab, make: NodeMaker
) -> None:
    """Three orders notice at the same time; the key changes once, and the revision tells the nodes."""
    nodes = [make(name) for name in ("n1", "n2", "n3")]
    nodes[0].certificates.ensure_certificate(["a.example.com"])
    old = nodes[0].certificates.account_thumbprint()
    _deactivate(lab, nodes[0])
    revision = _revision(nodes[0])

    def issue(node: TestNode) -> Outcome:
        return node.certificates.ensure_certificate([f"{node.name}.example.com"])

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(issue, nodes)) == [Outcome.FAILED] * 3
    assert _revision(nodes[0]) == revision + 1
    assert any("deactivated" in _last_error(node, f"{node.name}.example.com") for node in nodes)
    (lab.answerer.thumbprint,) = {node.certificates.account_thumbprint() for node in nodes}
    assert lab.answerer.thumbprint != old
    _end_back_off(nodes[0])
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(issue, nodes)) == [Outcome.ISSUED] * 3


def test_another_master_key_is_reported_and_leaves_the_others_alone(
    lab: Lab, make: NodeMaker, caplog: pytest.LogCaptureFixture
) -> None:
    good = make("good")
    want(good.database, "a.example.com")
    want(good.database, "b.example.com")
    good.certificates.ensure_certificate(["a.example.com"])
    good.certificates.ensure_certificate(["b.example.com"])
    other = make("other", master_key=bytes(32))
    with pytest.raises(WrongMasterKey):
        other.certificates.account_thumbprint()
    with pytest.raises(WrongMasterKey):
        other.certificates.ensure_certificate(["c.example.com"])
    assert other.certificates.usable() == []
    assert "a.example.com" in caplog.text
    assert good.keyring.key_id in caplog.text
    with good.database.connection() as connection:  # one row that came from elsewhere
        connection.execute("UPDATE certificate_orders SET key_id = 'elsewhere' WHERE certificate_id = 1")
    fresh = make("fresh")
    assert [usable.domains for usable in fresh.certificates.usable()] == [("b.example.com",)]
    caplog.clear()
    fresh.certificates.usable()
    assert not caplog.records  # said once, not at every synchronisation


def test_only_certificates_a_proxy_needs_are_decrypted(lab: Lab, make: NodeMaker) -> None:
    """A certificate of a larger set still serves a domain of it until the exact one is there."""
    node = make()
    node.certificates.ensure_certificate(["a.example.com", "b.example.com"])
    node.certificates.ensure_certificate(["unwanted.example.com"])
    assert node.certificates.usable() == []
    want(node.database, "a.example.com")
    assert [usable.domains for usable in node.certificates.usable()] == [("a.example.com", "b.example.com")]


def test_a_wildcard_is_refused_before_anything_is_written(lab: Lab, make: NodeMaker) -> None:
    node = make()
    with pytest.raises(CannotCertify):
        node.certificates.ensure_certificate(["*.example.com"])
    assert not lab.proxy.seen


def test_installed_counts_active_nodes_by_what_their_handshake_showed(lab: Lab, make: NodeMaker) -> None:
    nodes = [make(name) for name in ("n1", "n2", "n3")]
    want(nodes[0].database, "a.example.com")
    nodes[0].certificates.ensure_certificate(["a.example.com"])
    (usable,) = nodes[0].certificates.usable()
    nodes[0].certificates.report_installed(nodes[0].id, [(usable.order_id, usable.serial)])
    nodes[1].certificates.report_installed(nodes[1].id, [(usable.order_id, "beef")])  # an old certificate
    installed = _only_view(nodes[0]).installed
    assert (installed.nodes, installed.of, installed.missing) == (1, 3, ("n2", "n3"))
    nodes[1].certificates.report_installed(nodes[1].id, [(usable.order_id, usable.serial), (4711, "beef")])
    with nodes[0].database.connection() as connection:
        connection.execute("UPDATE instances SET left_at = now() WHERE node_name = 'n3'")
    view = _only_view(nodes[0])
    assert (view.installed.nodes, view.installed.of, view.installed.missing) == (2, 2, ())
    assert view.stage == "installed on 2 of 2 nodes"
    nodes[1].certificates.report_installed(nodes[1].id, [(usable.order_id, None)])
    assert _only_view(nodes[0]).installed.missing == ("n2",)


def test_a_ca_that_never_answers_holds_up_only_its_own_order(
    lab: Lab, make: NodeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lyttle_ops.certificates.network.CALL_TIMEOUT", 5.0)
    hung, free = make("hung"), make("free", settings=lab.direct)
    hold = lab.proxy.fault("*", action="hold", times=100)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hung.certificates.ensure_certificate, ["a.example.com"])
        assert hold.reached.wait(10)
        lab.answerer.thumbprint = free.certificates.account_thumbprint()
        assert free.certificates.ensure_certificate(["b.example.com"]) is Outcome.ISSUED
        assert free.certificates.ensure_certificate(["a.example.com"]) is Outcome.BUSY
        assert not future.done()
        assert future.result(30) is Outcome.FAILED
    assert "did not answer within" in _last_error(hung, "a.example.com")


def test_stopping_ends_an_order_at_its_next_step(lab: Lab, make: NodeMaker) -> None:
    """And the next node goes on with it at once."""
    node, next_one = make("n1"), make("n2")
    hold = lab.proxy.fault("challenge", action="hold")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(node.certificates.ensure_certificate, ["a.example.com"])
        assert hold.reached.wait(10)
        node.certificates.stop()
        hold.release()
        assert future.result(10) is Outcome.STOPPED
    assert next_one.certificates.ensure_certificate(["a.example.com"]) is Outcome.ISSUED
    assert lab.proxy.orders == 1


def test_a_ca_that_refuses_good_nonces_is_tried_again(database_url: str) -> None:
    with running_lab(nonce_rejects=40) as lab, node_maker(lab, database_url) as make:
        node = make()
        for index in range(3):
            assert node.certificates.ensure_certificate([f"a{index}.example.com"]) is Outcome.ISSUED
        assert lab.proxy.orders == 3


def test_the_cas_own_certificate_is_verified(lab: Lab, make: NodeMaker) -> None:
    """Without ACME_CA_FILE the local CA's own HTTPS is not believed."""
    untrusting = type(lab.settings)(lab.settings.acme_directory_url, None)
    node = make(settings=untrusting)
    assert node.certificates.ensure_certificate(["a.example.com"]) is Outcome.FAILED
    assert "does not prove who it is" in _last_error(node, "a.example.com")


def test_no_transaction_is_open_while_the_ca_is_asked(lab: Lab, make: NodeMaker) -> None:
    node = make()
    for step in ("newOrder", "challenge", "finalize", "certificate"):
        hold = lab.proxy.fault(step, action="hold")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(node.certificates.ensure_certificate, [f"{step.lower()}.example.com"])
            assert hold.reached.wait(10)
            with node.database.connection() as connection:
                open_ones = connection.execute(
                    "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid() AND (xact_start IS NOT NULL OR state LIKE 'idle in%')"
                ).fetchall()
            hold.release()
            assert open_ones == []
            assert future.result(10) is Outcome.ISSUED


def _deactivate(lab: Lab, node: TestNode) -> None:
    """As a person would with another ACME client that has the key."""
    account = node.certificates._account
    network = client.ClientNetwork(account.key(), alg=ES256, verify_ssl=str(lab.proxy.root))
    session = client.ClientV2(client.ClientV2.get_directory(lab.proxy.directory_url, network), network)
    registration = messages.RegistrationResource(uri=account.url(), body=messages.Registration())
    network.account = registration
    session.deactivate_registration(registration)
    network.session.close()


def _last_error(node: TestNode, domain: str) -> str:
    with node.database.connection() as connection:
        (view,) = (view for view in store.list_certificates(connection) if view.domains == (domain,))
    return str(view.last_error)


def _revision(node: TestNode) -> int:
    with node.database.connection() as connection:
        row = connection.execute("SELECT revision FROM cluster_state").fetchone()
    assert row
    return int(row["revision"])


def _end_back_off(node: TestNode) -> None:
    with node.database.connection() as connection:
        connection.execute("UPDATE certificates SET next_try_at = now() - interval '1 second'")


def test_a_lost_lock_stops_the_order_and_another_node_finishes_it(lab: Lab, make: NodeMaker) -> None:
    """PostgreSQL ends the lock session while the CA is asked: nothing more is sent or written by the first."""
    first, second = make("n1"), make("n2")
    hold = lab.proxy.fault("challenge", action="hold")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(first.certificates.ensure_certificate, ["a.example.com"])
        assert hold.reached.wait(10)
        with second.database.connection() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'n1/locks'"
            )
        hold.release()
        with pytest.raises(LockLost):
            future.result(10)
    assert second.certificates.ensure_certificate(["a.example.com"]) is Outcome.ISSUED
    assert lab.proxy.orders == 1
