"""The join of proxies and certificates: which certificate serves which domain, and the snapshot of it all."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.model import Usable
from lyttle_ops.node.desired import Desired, SnapshotFile, SnapshotUnusable
from lyttle_ops.proxies.model import Proxy

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def proxy(number: int, *domains: str, ssl: bool = True, enabled: bool = True) -> Proxy:
    return Proxy(
        id=number,
        type="PROXY",
        domains=domains,
        proxy_pass_host="http://backend:80",
        ssl=ssl,
        enabled=enabled,
        nginx_custom_code="",
        force_https=True,
        hsts=False,
        websocket=True,
        client_max_body_size=0,
        connect_timeout=1,
        read_timeout=1,
        verify_upstream_tls=True,
        redirect_code=308,
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )


def certificate(number: int, *domains: str, days: int = 90) -> Usable:
    return Usable(
        id=number,
        order_id=number * 10,
        domains=domains,
        serial=f"{number:x}",
        chain_pem=f"chain {number}",
        key_pem=f"key {number}".encode(),
        not_after=NOW + timedelta(days=days),
    )


def desired(proxies: list[Proxy], certificates: list[Usable]) -> Desired:
    return Desired(7, "thumbprint", proxies, certificates)


def test_the_certificate_for_exactly_these_domains_wins_over_a_longer_lived_one() -> None:
    exact, wider = certificate(1, "a.test", days=1), certificate(2, "a.test", "b.test", days=90)
    ((site,), _) = desired([proxy(1, "a.test")], [wider, exact]).sites()
    assert site.tls == {"a.test": "1-10"}


def test_domains_without_a_certificate_of_their_own_keep_one_that_covers_them() -> None:
    state = desired([proxy(1, "a.test", "b.test")], [certificate(1, "a.test")])
    ((site,), _) = state.sites()
    assert site.tls == {"a.test": "1-10"}  # b.test is served over HTTP until its certificate is there
    assert set(state.files()) == {"1-10"}


def test_entries_without_ssl_or_disabled_use_no_certificate() -> None:
    off = [proxy(1, "a.test", ssl=False), proxy(2, "b.test", enabled=False)]
    state = desired(off, [certificate(1, "a.test"), certificate(2, "b.test")])
    assert [site.tls for site in state.sites()[0]] == [{}]
    assert state.files() == {}


def test_a_quarantined_entrys_certificate_is_not_looked_for_in_handshakes() -> None:
    both = [proxy(1, "a.test"), proxy(2, "b.test")]
    state = desired(both, [certificate(1, "a.test"), certificate(2, "b.test")])
    assert state.served_domains() == {"1-10": "a.test", "2-20": "b.test"}
    assert state.served_domains(quarantined={1}) == {"2-20": "b.test"}


def test_an_entry_that_cannot_be_rendered_stops_no_other() -> None:
    broken = replace(proxy(1, "a.test"), proxy_pass_host="http://back end:80")
    sites, unusable = desired([broken, proxy(2, "b.test")], []).sites()
    assert [site.id for site in sites] == [2]
    assert set(unusable) == {1}


def test_a_snapshot_comes_back_as_it_was_and_holds_no_key_in_clear(tmp_path: Path) -> None:
    state = desired([proxy(1, "a.test")], [certificate(1, "a.test")])
    SnapshotFile(tmp_path, Keyring(bytes(32))).save(state)
    assert SnapshotFile(tmp_path, Keyring(bytes(32))).load() == state
    assert "key 1" not in (tmp_path / "desired.json").read_text()
    assert (tmp_path / "desired.json").stat().st_mode & 0o777 == 0o600


def test_no_snapshot_is_none_and_a_bad_one_says_why(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path, Keyring(bytes(32)))
    assert file.load() is None
    file.save(replace(desired([], [certificate(1, "a.test")])))
    with pytest.raises(SnapshotUnusable, match="master key"):
        SnapshotFile(tmp_path, Keyring(bytes(range(32)))).load()
    (tmp_path / "desired.json").write_text("{")
    with pytest.raises(SnapshotUnusable, match="cannot be read"):
        file.load()
