"""Pure parts of the lab: names, subnets, DNS, sources of packages."""

import ipaddress

import pytest
from dnslib import QTYPE, DNSRecord

from lyttle_ops.local.dns import NameServer
from tests.lab import apt, dns, files, network, shell
from tests.lab.network import Network


@pytest.mark.parametrize("name", ["", "cache", "Lab", "../x", "a" * 21, "1st"])
def test_a_name_that_cannot_be_a_folder_of_a_lab_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a lab"):
        files.check_name(name)


def test_two_labs_and_two_checkouts_have_devices_of_their_own() -> None:
    identities = {files.identity("a"), files.identity("b"), files.identity("a", files.CHECKOUT / "other")}
    assert len(identities) == 3
    names = [Network(identity, "198.18.1.0/24").tap(998) for identity in identities]
    assert all(len(name) <= 15 for name in names)  # IFNAMSIZ of the kernel


def test_a_subnet_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def routed(subnets: list[str]) -> str:
        routes = "".join(f',{{"dst": "{subnet}"}}' for subnet in subnets)
        monkeypatch.setattr(shell, "run", lambda *_args, **_more: f'[{{"dst": "default"}}{routes}]')
        return network.free_subnet("lab")

    first = routed([])
    assert ipaddress.ip_network(first).subnet_of(ipaddress.ip_network("198.18.0.0/15"))
    assert routed([]) == first
    assert routed([first]) != first
    with pytest.raises(network.NoSubnet):
        routed(["198.18.0.0/15"])


def test_addresses_of_a_lab_do_not_meet() -> None:
    parts = Network("0a1b2c", "198.18.7.0/24")
    hosts = [parts.host(index) for index in range(20)]
    assert len({parts.gateway, parts.client, parts.engine, *hosts}) == 23
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network("198.18.7.0/24") for address in hosts)
    assert ipaddress.ip_address(parts.host6(0)).is_private


def test_names_of_the_zone_lead_to_the_hosts_and_have_no_ipv6() -> None:
    hosts = ("198.18.7.11", "198.18.7.12")
    resolver = dns.Resolver(NameServer("127.0.0.1", 0, hosts), "example.test", [])
    for name in ("example.test", "a.B.EXAMPLE.test."):
        reply = DNSRecord.parse(resolver.answer(bytes(DNSRecord.question(name).pack()), tcp=False))
        assert [str(record.rdata) for record in reply.rr] == list(hosts)
    for name in ("a.example.test", "deb.debian.org"):
        query = bytes(DNSRecord.question(name, "AAAA").pack())
        assert DNSRecord.parse(resolver.answer(query, tcp=False)).rr == []
    with pytest.raises(OSError, match="answered"):
        resolver.answer(bytes(DNSRecord.question("notexample.test", QTYPE[1]).pack()), tcp=False)


def test_resolvers_are_read_from_resolv_conf() -> None:
    assert dns.resolvers("# a\nnameserver 192.0.2.53\nsearch x\nnameserver 2001:db8::1\nnameserver\n") == [
        "192.0.2.53",
        "2001:db8::1",
    ]


def test_the_guests_ask_the_mirrors_that_the_machine_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    answers = {
        "apt-get": "Debian|Debian|http://mirror.example/debian/\nOther|Tool|https://other.example/\n"
        "Debian|Debian-Security|http://mirror.example/security/\n",
        "apt-config": 'Acquire::http::Proxy "http://192.0.2.1:3142";\nDir::Cache "x";\n',
    }
    monkeypatch.setattr(shell, "run", lambda argv, **_more: answers[argv[0]])
    found = apt.machine_apt()
    assert found.sources("trixie").splitlines() == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    ]
    assert found.settings == 'Acquire::http::Proxy "http://192.0.2.1:3142";\n'
