"""What the role stack's modules make of what nodes say they serve (`lyttle-ops domains`)."""

from typing import Any

from tests.support import loopback, modules

status, answers = modules.load("lyttle_status"), modules.load("lyttle_answers")

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
    assert answers.compare(old, node, "waits.example", True) == ([], [])
