"""The private CA of a cluster on one machine: it starts, tells why not, and leaves nothing behind."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lyttle_ops.local.ca import CAFailed, CertificateAuthority
from tests.support import loopback
from tests.support.wait import until


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    host = loopback.address()
    ca = _ca(tmp_path, host)
    yield ca
    ca.stop()


def _ca(folder: Path, host: str, port: int | None = None) -> CertificateAuthority:
    return CertificateAuthority(
        folder,
        host,
        port=port or loopback.port(host),
        management_port=loopback.port(host),
        dns_server=f"{host}:53",
    )


def test_a_restart_keeps_its_own_root_and_brings_a_new_issuing_root(ca: CertificateAuthority) -> None:
    """ACME_CA_FILE of running nodes stays good."""
    ca.start()
    own, issuing, pid = ca.root.read_bytes(), ca.issuing_root.read_bytes(), ca.pid
    ca.start()  # runs already
    assert ca.pid == pid
    ca.stop()
    assert ca.pid is None
    ca.start()
    assert ca.root.read_bytes() == own
    assert ca.issuing_root.read_bytes() != issuing


def test_one_that_an_earlier_process_left_is_found_and_stopped(ca: CertificateAuthority, tmp_path: Path) -> None:
    ca.start()
    later = _ca(tmp_path, ca.host)
    assert later.pid == ca.pid
    later.stop()
    until(lambda: ca.pid is None)  # it has ended; that its parent can reap it may take an instant more
    with socket.socket() as probe:
        probe.bind((ca.host, ca.port))


def test_a_stale_pid_file_names_nobody(tmp_path: Path) -> None:
    ca = _ca(tmp_path, loopback.address())
    (tmp_path / "pebble.pid").write_text("1")
    assert ca.pid is None
    ca.stop()  # and ends nobody


def test_a_busy_port_is_told_with_pebbles_own_words_and_nothing_is_left_running(tmp_path: Path) -> None:
    host = loopback.address()
    with socket.create_server((host, 0)) as busy:
        ca = _ca(tmp_path, host, busy.getsockname()[1])
        with pytest.raises(CAFailed, match="address already in use"):
            ca.start()
    assert ca.pid is None
