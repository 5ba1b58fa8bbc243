"""Would NGINX accept this site? Asked before an entry is stored, by a process that runs no NGINX of its own."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lyttle_ops.nginx import blame
from lyttle_ops.nginx.errors import CustomCodeError, UnsafeValue
from lyttle_ops.nginx.fields import SOCKET_PATH_LIMIT
from lyttle_ops.nginx.folder import Folder
from lyttle_ops.nginx.model import CertificateFiles, Layout, Site
from lyttle_ops.nginx.process import Process, installed_version
from lyttle_ops.nginx.render import render

_LONGEST_SOCKET = "/validate-12345678/nginx-tls.sock"


def validate_site(site: Site, scratch_parent: Path) -> str | None:
    """None when NGINX accepts `site`, else the reason, in NGINX's own words where it is NGINX that refuses.

    The same renderer and the same `nginx -t` as on a node, in a scratch folder below `scratch_parent` that is gone
    afterwards. Only UNIX sockets in that folder are opened, and HTTPS is tested with a throw-away certificate.
    Raises NGINXMissing.
    """
    if len(os.fsencode(scratch_parent)) + len(_LONGEST_SOCKET) > SOCKET_PATH_LIMIT:
        scratch_parent = Path(tempfile.gettempdir())
    scratch = Path(tempfile.mkdtemp(prefix="validate-", dir=scratch_parent))
    try:
        return _validate(site, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _validate(site: Site, scratch: Path) -> str | None:
    layout = Layout(
        folder=scratch,
        http_listen=(f"unix:{scratch}/http.sock",),
        https_listen=(f"unix:{scratch}/https.sock",),
        name_servers=("127.0.0.1",),  # a test resolves nothing
        instance_id="validate",
        node_name="validate",
        nginx_version=installed_version(),
        access_log=False,
        thumbprint="validate",
    )
    certificates: Mapping[str, CertificateFiles] = {}
    if site.ssl:
        site = replace(site, tls=dict.fromkeys(site.domains, "validate"))
    try:
        rendered = render([site], layout)
    except (UnsafeValue, CustomCodeError) as exc:
        return str(exc)
    if site.ssl:
        certificates = {"validate": throw_away_certificate(site.domains)}
    files = Folder(scratch)
    with files.exclusive():
        files.install(certificates)
        release, _ = files.stage(rendered, certificates)
        message = Process(scratch).test(files.path(release) / "nginx.conf")
    return None if message is None else blame.tidy(message, scratch)


def throw_away_certificate(domains: tuple[str, ...]) -> CertificateFiles:
    """A certificate that nobody trusts, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain) for domain in domains]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateFiles(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
