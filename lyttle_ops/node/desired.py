"""The desired state of a node: proxies and certificates joined into what NGINX is to serve.

It comes from PostgreSQL, and is kept in STATE_DIR as a snapshot (private keys encrypted), so that a node can
start with PostgreSQL away and serve what it served last. lyttle_ops.node.shared keeps it for nodes that have none.
"""

import base64
import json
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.model import Usable
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.nginx.model import CertificateFiles, Site
from lyttle_ops.proxies.model import Proxy, to_site

_FORMAT = 1


class SnapshotUnusable(LyttleOpsError):
    """The snapshot in STATE_DIR cannot be used."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What a node should serve. `revision` is at most as new as the rest; `key_id` names the cluster's master key."""

    revision: int
    thumbprint: str  # of the ACME account key (RFC 8555 8.1)
    proxies: Sequence[Proxy]
    certificates: Sequence[Usable] = field(repr=False)
    key_id: str | None = None

    def sites(self) -> tuple[list[Site], dict[int, str]]:
        """What NGINX is to serve, and why an entry cannot even be rendered (an import or another version wrote it)."""
        sites: list[Site] = []
        unusable: dict[int, str] = {}
        for proxy in self.proxies:
            if proxy.enabled:
                try:
                    sites.append(to_site(proxy, self._tls(proxy)))
                except (ValueError, LyttleOpsError) as exc:
                    unusable[proxy.id] = str(exc)
        return sites, unusable

    def files(self) -> dict[str, CertificateFiles]:
        """The certificates that sites use, by name."""
        used = {name for proxy in self.proxies if proxy.enabled for name in self._tls(proxy).values()}
        return {
            certificate_name(c): CertificateFiles(c.chain_pem, c.key_pem)
            for c in self.certificates
            if certificate_name(c) in used
        }

    def served_domains(self, quarantined: Collection[int] = ()) -> dict[str, str]:
        """A domain under which each used certificate can be seen, by certificate name; not of `quarantined` entries."""
        return {
            name: domain
            for proxy in self.proxies
            if proxy.enabled and proxy.id not in quarantined
            for domain, name in self._tls(proxy).items()
        }

    def _tls(self, proxy: Proxy) -> dict[str, str]:
        """domain → certificate: the one for exactly these domains, else the longest valid that covers it.

        So a host keeps its old certificate while one for a changed set of names is on its way.
        """
        if not proxy.ssl:
            return {}
        chosen: dict[str, str] = {}
        for domain in proxy.domains:
            covering = [c for c in self.certificates if domain in c.domains]
            if covering:
                best = max(covering, key=lambda c: (c.domains == proxy.domains, c.not_after))
                chosen[domain] = certificate_name(best)
        return chosen


def certificate_name(certificate: Usable) -> str:
    """File stem; changes with the certificate, so that the release does too."""
    return f"{certificate.id}-{certificate.order_id}"


def pack(desired: Desired, keyring: Keyring) -> dict[str, Any]:
    """The state as JSON can hold it, private keys encrypted with the cluster's master key."""
    key_id = desired.key_id or keyring.key_id
    return {
        "format": _FORMAT,
        "revision": desired.revision,
        "thumbprint": desired.thumbprint,
        "key_id": desired.key_id,
        "proxies": [asdict(proxy) for proxy in desired.proxies],
        "certificates": [_pack(certificate, keyring, key_id) for certificate in desired.certificates],
    }


def unpack(raw: Any, keyring: Keyring, where: object) -> Desired:
    """What `pack` made. Raises SnapshotUnusable, which names `where` it was found."""
    try:
        if raw.get("format") != _FORMAT:
            raise SnapshotUnusable(f"{where} has format {raw.get('format')}, this version reads {_FORMAT}")
        return Desired(
            revision=raw["revision"],
            thumbprint=raw["thumbprint"],
            proxies=[_proxy(row) for row in raw["proxies"]],
            certificates=[_unpack(row, keyring) for row in raw["certificates"]],
            key_id=raw.get("key_id"),
        )
    except SnapshotUnusable:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, LyttleOpsError) as exc:
        raise SnapshotUnusable(f"{where} cannot be used: {exc}") from exc


class SnapshotFile:
    """STATE_DIR/desired.json."""

    def __init__(self, state_dir: Path, keyring: Keyring) -> None:
        self._path = state_dir / "desired.json"
        self._keyring = keyring

    def __str__(self) -> str:
        return str(self._path)

    def save(self, desired: Desired) -> None:
        """Replace the snapshot in one step."""
        # Not by pid: two containers of one node share this folder, and may share the number.
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(pack(desired, self._keyring), file, default=str)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def load(self) -> Desired | None:
        """The last snapshot, None when there is none. Raises SnapshotUnusable."""
        try:
            raw = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise SnapshotUnusable(f"{self._path} cannot be read: {exc}") from exc
        return unpack(raw, self._keyring, self._path)


def _pack(certificate: Usable, keyring: Keyring, key_id: str) -> dict[str, Any]:
    return {
        "id": certificate.id,
        "order_id": certificate.order_id,
        "domains": certificate.domains,
        "serial": certificate.serial,
        "chain_pem": certificate.chain_pem,
        "not_after": certificate.not_after.isoformat(),
        "key_id": key_id,
        "private_key": base64.b64encode(keyring.encrypt(certificate.key_pem, certificate.id, key_id)).decode(),
    }


def _unpack(row: Mapping[str, Any], keyring: Keyring) -> Usable:
    return Usable(
        id=row["id"],
        order_id=row["order_id"],
        domains=tuple(row["domains"]),
        serial=row["serial"],
        chain_pem=row["chain_pem"],
        key_pem=keyring.decrypt(base64.b64decode(row["private_key"]), row["id"], row["key_id"]),
        not_after=datetime.fromisoformat(row["not_after"]),
    )


def _proxy(row: Mapping[str, Any]) -> Proxy:
    times = {name: datetime.fromisoformat(row[name]) for name in ("created_at", "updated_at")}
    return Proxy.from_row({**row, **times})
