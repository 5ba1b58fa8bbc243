"""What the role stack's modules make of what nodes say: of what they serve (`lyttle-ops domains`), in their logs."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import loopback, modules
from tests.support.answering import answering

status, answers, tasks, proof = (modules.load(f"lyttle_{name}") for name in ("status", "answers", "tasks", "proof"))

PLAIN = {"domain": "plain.example", "ssl": False, "ssl_wanted": False}
WAITS = {"domain": "waits.example", "ssl": False, "ssl_wanted": True}
SERVED = {"domain": "served.example", "ssl": True, "ssl_wanted": True}


def instance(certificates: dict[str, float], *domains: dict[str, Any]) -> dict[str, Any]:
    return {"status": {"state": "ready"}, "certificates": certificates, "domains": list(domains)}


def test_a_domain_that_waits_for_its_certificate_is_told() -> None:
    one = instance({"served.example": 4_000_000_000.0}, PLAIN, WAITS, SERVED)
    found = status.about_certificates([one, one])
    assert [(each["domains"], each["stage"], each["installed"]) for each in found] == [
        (["served.example"], "served on all nodes", 2),
        (["waits.example"], "not issued yet", 0),
    ]


def test_the_leaders_ledger_tells_why_a_certificate_is_missing_or_not_renewed() -> None:
    def row(*domains: str, **more: Any) -> dict[str, Any]:
        return {"domains": list(domains), "state": "issued", "stage": "s", "wanted": True, "error": None, **more}

    leader = instance({"a.example;b.example": 4_000_000_000.0, "late.example": 1.0}, WAITS)
    leader["ledger"] = [
        row("a.example", "b.example", stage="renewal failed", error="caa"),
        row("a.example", "b.example", "c.example", state="failed", stage="failed once", error="dns"),
        row("a.example", state="pending", stage="waits"),  # covered: nobody has to look
        row("b.example", state="failed", stage="failed once", error="dns"),
        row("gone.example", wanted=False, error="dns"),
        row("late.example", state="failed", stage="expired"),
        row("waits.example", state="issuing", stage="being checked"),
    ]
    follower = instance({"a.example;b.example": 4_000_000_000.0}, WAITS)
    found = status.about_certificates([follower, leader])
    assert [(each["domains"], each["stage"], each["error"], each["installed"]) for each in found] == [
        (["a.example", "b.example"], "renewal failed", "caa", 2),
        (["late.example"], "expired", None, 1),
        (["a.example", "b.example", "c.example"], "failed once", "dns", 0),
        (["b.example"], "served by another certificate; the new one: failed once", "dns", 0),
        (["waits.example"], "being checked", None, 0),
    ]
    assert all((each["not_after"] is None) == (each["installed"] == 0) for each in found)


def test_a_wildcard_covers_its_domains() -> None:
    one = instance({"*.waits.example;waits.example": 4_000_000_000.0}, WAITS, {**WAITS, "domain": "a.waits.example"})
    assert [each["stage"] for each in status.about_certificates([one])] == ["served on all nodes"]


def test_https_is_compared_where_it_is_wanted_though_no_certificate_is_here() -> None:
    assert answers.targets([PLAIN, WAITS, SERVED]) == [
        ("plain.example", False),
        ("waits.example", False),
        ("waits.example", True),
        ("served.example", False),
        ("served.example", True),
    ]


def test_two_servers_that_do_not_answer_are_alike() -> None:
    address = loopback.address()
    ports = answers.Ports(loopback.port(address), loopback.port(address))
    old, node = (answers.Server(name, address, ports) for name in ("the old server", "n1"))
    assert answers.compare(old, node, "waits.example", True) == ([], [], False)


def test_a_domain_points_to_the_old_server_by_any_of_its_names_or_to_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    node, stranger = loopback.address(), loopback.address()
    zone = {"old.example": {"192.0.2.1"}, "stays.example": {"192.0.2.1", node}, "moved.example": {node},
            "nat.example": {node, stranger}, "gone.example": set()}  # fmt: skip
    monkeypatch.setattr(answers, "addresses", lambda name: zone.get(name, {name}))
    names = [name for name in zone if name != "old.example"]
    with answering("task", node) as port:
        for old in ("old.example", "192.0.2.1"):
            told = answers.whereto(names, old, port)
            assert told == (["stays.example"], [f"nat.example ({stranger})"], [])


def test_an_address_without_a_route_from_here_counts_when_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    zone = {"both.example": {"2001:db8::1", "192.0.2.2"}, "six.example": {"2001:db8::1"}}
    said = {"192.0.2.2": ("2xx", "200", {"x-lyttle-task": "t"}),
            "2001:db8::1": ("no answer", "OSError: [Errno 101] Network is unreachable", {})}  # fmt: skip
    monkeypatch.setattr(answers, "addresses", lambda name: zone.get(name, {name}))
    monkeypatch.setattr(answers, "who", lambda address, _: proof.Answer(*said[address]))
    told = answers.whereto(list(zone), "192.0.2.1")
    assert told == ([], ["six.example (2001:db8::1)"], ["both.example: 2001:db8::1 cannot be asked from here"])


def test_names_and_addresses_are_resolved() -> None:
    assert "127.0.0.1" in answers.addresses("localhost")
    assert answers.addresses("192.0.2.7") == {"192.0.2.7"}
    assert answers.addresses("a..b") == set()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["plain words"], "plain words"),
        (['{"level": "info", "message": "Ready"}', "[]"], "[]"),
        (['{"level": "info", "message": "one"}', '{"level": "info", "message": "two"}'], "info: one | info: two"),
        (
            [
                '{"level": "warning", "message": "PostgreSQL cannot be used: no entry"}',
                '{"level": "info", "message": "Handling signal: term"}',
                '{"level": "warning", "message": "PostgreSQL cannot be used: no entry"}',
                '{"level": "info", "message": "Stopped with code 0"}',
            ],
            "warning: PostgreSQL cannot be used: no entry",
        ),
        # What is said again and again counts by its last time.
        (["no entry", "changed", "old state", "one", "two", "no entry"], "old state | one | two | no entry"),
    ],
)
def test_what_a_task_said_is_the_reason_and_not_how_it_ended_in_order(lines: list[str], told: str) -> None:
    writes = SimpleNamespace(task_logs=lambda task_id: lines)
    assert tasks.logs_of(writes, {"ID": "t"}) == f" It said last: {told}"
