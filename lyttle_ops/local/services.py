"""The services beside the nodes, each put at its address of the layout: PostgreSQL, the CA, the companions."""

import socket
import sys
import time
from pathlib import Path

from lyttle_ops.local.ca import CertificateAuthority
from lyttle_ops.local.layout import Layout
from lyttle_ops.local.postgres import PostgresServer

ROOTS = "roots.pem"
_MOST_ROOTS = 50
_END = "-----END CERTIFICATE-----\n"


def postgres(folder: Path, layout: Layout, password: str) -> PostgresServer:
    return PostgresServer(folder, layout.services, layout.database_port, password)


def certificate_authority(folder: Path, layout: Layout, delays: bool = False) -> CertificateAuthority:
    """The CA, which validates every name against the nodes' HTTP port."""
    return CertificateAuthority(
        folder,
        layout.services,
        port=layout.ca_port,
        management_port=layout.ca_management_port,
        dns_server=f"{layout.services}:{layout.dns_port}",
        http_port=layout.http_port,
        delays=delays,
    )


def companions_command(layout: Layout) -> list[str]:
    """argv of the process that is DNS server and demo upstream."""
    return [
        sys.executable, "-m", "lyttle_ops.local.companions",
        "--dns", f"{layout.services}:{layout.dns_port}",
        "--upstream", f"{layout.services}:{layout.upstream_port}",
        "--nodes", ",".join(node.host for node in layout.all_nodes()),
        "--probe", str(layout.http_port),
    ]  # fmt: skip


def keep_roots(ca: CertificateAuthority, folder: Path) -> None:
    """Put the CA's issuing root before the earlier ones in `folder`/roots.pem.

    Each start of the CA makes a new root, while nodes go on serving what the earlier ones signed.
    """
    kept = folder / ROOTS
    newest = ca.issuing_root.read_text()
    earlier = [part + _END for part in (kept.read_text() if kept.exists() else "").split(_END) if part.strip()]
    beside = kept.with_suffix(".new")
    beside.write_text("".join([newest, *(root for root in earlier if root != newest)][:_MOST_ROOTS]))
    beside.replace(kept)


def answers(host: str, port: int, timeout: float = 10.0) -> bool:
    """Whether something accepts a connection there within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False
