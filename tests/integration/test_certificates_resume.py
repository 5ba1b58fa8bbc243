"""An interrupted order is resumed by whoever comes next: one certificate, and no second order where the first lives."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lyttle_ops.certificates.model import OrderState, Outcome
from lyttle_ops.certificates.orders import Ledger, OrderTaken
from tests.support.ca import ACMESettings, Lab, NodeMaker, TestNode, node_maker, running_lab
from tests.support.wait import until

DOMAIN = "a.example.com"
ROOT = Path(__file__).parents[2]

# Every step with the CA, and the state of the ledger it is interrupted in.
STEPS = [
    ("newAccount", "before", "intent"),
    ("newAccount", "after", "intent"),
    ("newOrder", "before", "intent"),
    ("authorization", "before", "created"),
    ("challenge", "before", "created"),
    ("challenge", "after", "created"),
    ("order", "after", "created"),
    ("finalize", "before", "processing"),
    ("finalize", "after", "processing"),
    ("certificate", "before", "processing"),
    ("certificate", "after", "processing"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def make(lab: Lab, database_url: str) -> Iterator[NodeMaker]:
    with node_maker(lab, database_url) as make:
        yield make


def _orders(node: TestNode) -> list[dict[str, Any]]:
    with node.database.connection() as connection:
        return connection.execute("SELECT * FROM certificate_orders ORDER BY id").fetchall()


def _end_back_off(node: TestNode) -> None:
    with node.database.connection() as connection:
        connection.execute("UPDATE certificates SET next_try_at = NULL")


# Each state of the ledger, on both sides of the call: a process each.
KILLS = [each for each in STEPS if each[:2] in {
    ("newAccount", "after"), ("newOrder", "before"), ("challenge", "before"), ("order", "after"),
    ("finalize", "before"), ("finalize", "after"), ("certificate", "before"),
}]  # fmt: skip


@pytest.mark.parametrize(("step", "when", "state"), KILLS, ids=lambda value: str(value))
def test_a_node_killed_at_any_step_leaves_an_order_the_next_one_finishes(
    lab: Lab, make: NodeMaker, database_url: str, step: str, when: str, state: str
) -> None:
    """kill -9 of a real process between two bytes of the conversation."""
    survivor = make("survivor")
    hold = lab.proxy.fault(step, when, action="hold")
    environment = {
        "url": database_url,
        "directory": lab.settings.acme_directory_url,
        "root": str(lab.settings.acme_ca_file),
        "name": "victim",
        "domains": [DOMAIN],
    }
    victim = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ca"],
        cwd=ROOT,
        env={**os.environ, "LYTTLE_TEST_NODE": json.dumps(environment)},
    )
    try:
        assert hold.reached.wait(20)
        assert [order["state"] for order in _orders(survivor)] == [state]
        assert survivor.certificates.ensure_certificate([DOMAIN]) is Outcome.BUSY
    finally:
        victim.kill()
        victim.wait()
    hold.drop()
    outcome = until(lambda: _unless_busy(survivor), what="the victim's lock to be free")
    assert outcome is Outcome.ISSUED
    (order,) = _orders(survivor)
    assert (order["state"], order["node_name"]) == ("issued", "survivor")
    assert lab.proxy.orders == 1


def _unless_busy(node: TestNode) -> Outcome | None:
    outcome = node.certificates.ensure_certificate([DOMAIN])
    return None if outcome is Outcome.BUSY else outcome


@pytest.mark.parametrize(("step", "when", "state"), STEPS, ids=lambda value: str(value))
def test_a_connection_cut_at_any_step_fails_this_try_and_the_next_one_goes_on(
    lab: Lab, make: NodeMaker, step: str, when: str, state: str
) -> None:
    node = make()
    lab.proxy.fault(step, when, action="drop")
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    assert [order["state"] for order in _orders(node)] == [state]
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.WAITING
    _end_back_off(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    assert lab.proxy.orders == 1
    assert len(_orders(node)) == 1


def test_an_order_whose_url_was_never_learnt_is_placed_again_with_the_same_key(lab: Lab, make: NodeMaker) -> None:
    """The one case where a second newOrder cannot be avoided: the answer to the first was lost."""
    node = make()
    lab.proxy.fault("newOrder", "after", action="drop")
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    (before,) = _orders(node)
    _end_back_off(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    (after,) = _orders(node)
    assert (before["state"], before["order_url"], after["state"]) == ("intent", None, "issued")
    assert before["private_key"] == after["private_key"]
    assert lab.proxy.orders == 2


def test_an_order_the_ca_has_lost_is_closed_and_replaced_at_once(lab: Lab, make: NodeMaker) -> None:
    """A restarted pebble: the account is registered again, the order answers 404, a new one is made."""
    node = make()
    lab.proxy.fault("challenge", action="drop")
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    lab.ca.stop()
    lab.ca.start()
    _end_back_off(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    lost, issued = _orders(node)
    assert (lost["state"], issued["state"]) == ("abandoned", "issued")
    assert "does not know the order any more" in lost["error"]


def test_an_order_that_expired_is_closed_and_replaced_at_once(lab: Lab, make: NodeMaker) -> None:
    """No failure is counted: nobody refused anything."""
    node = make()
    lab.proxy.fault("challenge", action="drop")
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    expired = {"status": "invalid", "expires": "2020-01-01T00:00:00Z", "authorizations": [], "finalize": "https://ca/f"}
    lab.proxy.answer("order", 200, expired, {"Content-Type": "application/json", "Replay-Nonce": "AAAA"})
    _end_back_off(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    assert [(order["state"], order["error"]) for order in _orders(node)] == [
        ("abandoned", "the order or a part of it expired at 2020-01-01 00:00 UTC"),
        ("issued", None),
    ]


def test_an_order_at_another_ca_is_closed_and_made_anew_at_the_configured_one(lab: Lab, make: NodeMaker) -> None:
    old = make("old")
    lab.proxy.fault("challenge", action="drop")
    old.certificates.ensure_certificate([DOMAIN])
    _end_back_off(old)
    new = make("new", settings=lab.direct)
    assert new.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    closed, issued = _orders(new)
    assert (closed["state"], closed["directory_url"]) == ("abandoned", lab.settings.acme_directory_url)
    assert (issued["state"], issued["directory_url"]) == ("issued", lab.direct.acme_directory_url)


def test_an_order_whose_key_is_lost_is_closed_instead_of_finished(lab: Lab, make: NodeMaker) -> None:
    """A certificate nobody can decrypt the key of would be served by no one."""
    node = make()
    lab.proxy.fault("challenge", action="drop")
    node.certificates.ensure_certificate([DOMAIN])
    with node.database.connection() as connection:
        connection.execute("UPDATE certificate_orders SET key_id = 'elsewhere'")
    _end_back_off(node)
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.ISSUED
    closed, issued = _orders(node)
    assert "private key cannot be used" in closed["error"]
    assert (closed["state"], issued["state"]) == ("abandoned", "issued")


def test_a_step_of_somebody_elses_order_changes_nothing(lab: Lab, make: NodeMaker) -> None:
    """The ledger's conditional updates: a node that lost its lock without noticing cannot write."""
    slow, fast = make("slow"), make("fast")
    with slow.database.connection() as connection:
        row = connection.execute(
            "INSERT INTO certificates (domains, revision) VALUES ('{a.example.com}', 0) RETURNING id"
        ).fetchone()
    assert row
    theirs = Ledger(fast.database, fast.keyring, "fast", fast.id)
    ours = Ledger(slow.database, slow.keyring, "slow", slow.id)
    order = ours.begin(row["id"], [DOMAIN], "https://ca.example/dir")
    taken = theirs.take_over(row["id"])
    assert taken is not None
    assert taken.private_key == order.private_key
    with pytest.raises(OrderTaken):
        ours.advance(order, OrderState.CREATED, "https://ca.example/order/1")
    with pytest.raises(OrderTaken):
        ours.abandon(order, "mine")
    advanced = theirs.advance(taken, OrderState.CREATED, "https://ca.example/order/1")
    with pytest.raises(OrderTaken):  # and not twice from the same state
        theirs.advance(taken, OrderState.CREATED, "https://ca.example/order/2")
    assert advanced.order_url == "https://ca.example/order/1"


def test_the_ledger_is_written_before_the_ca_hears_of_an_order(lab: Lab, make: NodeMaker) -> None:
    """Even when the CA cannot be reached at all, the key and the CSR are there."""
    node = make(settings=ACMESettings("https://127.0.0.1:1/dir", None))
    assert node.certificates.ensure_certificate([DOMAIN]) is Outcome.FAILED
    (order,) = _orders(node)
    assert order["state"] == "intent"
    assert "CERTIFICATE REQUEST" in order["csr_pem"]
    assert b"PRIVATE KEY" not in bytes(order["private_key"])
