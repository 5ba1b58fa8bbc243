"""The DNS server of the local CA."""

import socket
from collections.abc import Iterator

import pytest
from dnslib import QTYPE, DNSRecord

from lyttle_ops.local.dns import NameServer
from tests.support import loopback


@pytest.fixture
def server() -> Iterator[NameServer]:
    host = loopback.address()
    server = NameServer(host, loopback.port(host), ["127.0.0.1", "127.0.0.2"])
    server.start()
    yield server
    server.stop()


def _ask(server: NameServer, name: str, kind: str = "A") -> list[str]:
    answer = DNSRecord.parse(DNSRecord.question(name, kind).send(server.host, server.port, timeout=5))
    return [str(record.rdata) for record in answer.rr]


def test_every_name_has_the_addresses_of_all_nodes(server: NameServer) -> None:
    assert _ask(server, "any.example.com") == ["127.0.0.1", "127.0.0.2"]
    server.addresses = ("127.0.0.3",)
    assert _ask(server, "other.example.org") == ["127.0.0.3"]


@pytest.mark.parametrize("kind", ["AAAA", "CAA", "TXT"])
def test_other_types_get_an_empty_answer(server: NameServer, kind: str) -> None:
    assert kind in QTYPE.reverse
    assert _ask(server, "any.example.com", kind) == []


def test_nonsense_does_not_stop_it(server: NameServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"\x00", (server.host, server.port))
    assert _ask(server, "a.example.com")


def test_with_a_probe_only_listening_addresses_are_given_or_all_when_none_listens() -> None:
    host, dead = loopback.address(), loopback.address()
    port = loopback.port(host)
    server = NameServer(host, loopback.port(host), [dead, host], probe=port)
    server.start()
    try:
        assert _ask(server, "a.example.com") == [dead, host]
        with socket.create_server((host, port)):
            assert _ask(server, "a.example.com") == [host]
    finally:
        server.stop()
