"""The messages of held ports: what arrives, and what is closed because nobody wants it."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lyttle_ops.ports import protocol
from lyttle_ops.ports.protocol import Ended, Listener, listener, listeners, listening_address
from lyttle_ops.settings import load_ports

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.settimeout(5)
    with one, other:
        yield one, other


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[::]:80", "[::]:80"),
        ("[0:0:0::0]:80", "[::]:80"),
        ("[2001:DB8::1]:3003", "[2001:db8::1]:3003"),
    ],
)
def test_an_address_has_one_spelling(written: str, canonical: str) -> None:
    assert listener("http", written) == Listener("http", canonical)


def test_the_holder_needs_no_secret_and_reads_what_the_node_reads(tmp_path: Path) -> None:
    settings = load_ports({"HTTP_LISTEN": "10.0.0.1:80, [::1]:80", "HTTPS_LISTEN": "10.0.0.1:443", "DATABASE_URL": "x"})
    assert [each.address for each in listeners(settings)] == [
        "10.0.0.1:80", "[::1]:80", "10.0.0.1:443", "127.0.0.1:3003"
    ]  # fmt: skip
    assert [each.kind for each in listeners(settings)] == ["http", "http", "https", "api"]


def test_sockets_arrive_open_and_closed_for_children(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        protocol.send(pair[0], {"listeners": []}, [server])
        message, (copy,) = protocol.receive(pair[1])
        with copy:
            assert message == {"listeners": []}
            assert listening_address(copy) == f"127.0.0.1:{server.getsockname()[1]}"
            assert not os.get_inheritable(copy.fileno())
            assert os.fstat(copy.fileno()).st_ino == os.fstat(server.fileno()).st_ino


def test_what_is_no_message_leaves_nothing_open(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for nonsense in (b"nonsense", b"[]", b"\xff"):
            before = open_files()
            socket.send_fds(pair[0], [nonsense], [server.fileno()])
            with pytest.raises(Ended):
                protocol.receive(pair[1])
            assert open_files() == before


def test_a_file_that_is_no_socket_is_closed(pair: Pair) -> None:
    before = open_files()
    with open(os.devnull) as file:
        socket.send_fds(pair[0], [b"{}"], [file.fileno()])
    assert protocol.receive(pair[1]) == ({}, [])
    assert open_files() == before


def test_the_end_of_the_other_side_is_told(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(Ended):
        protocol.receive(pair[1])


def test_only_listening_tcp_sockets_count(pair: Pair) -> None:
    with socket.socket() as bound, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        bound.bind(("127.0.0.1", 0))
        assert [listening_address(each) for each in (bound, datagrams, pair[0])] == [None, None, None]
        bound.listen()
        assert listening_address(bound)


def test_the_other_side_is_known(pair: Pair) -> None:
    assert protocol.peer_of(pair[0]) == (os.getpid(), os.geteuid())
