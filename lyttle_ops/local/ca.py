"""A private ACME CA: Let's Encrypt's `pebble` on a loopback address, with TLS of its own.

Pebble keeps nothing: each start brings a new issuing root and forgets every account and order. Its own HTTPS
certificate is made here once and kept, so that ACME_CA_FILE stays the same over restarts.
"""

import ipaddress
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.local.processes import open_log

START_TIMEOUT = 15.0  # seconds
STOP_TIMEOUT = 5.0
_LIFETIME = timedelta(days=3650)
_ROOT_NAME = "LyttleOps local CA server"


class CAMissing(LyttleOpsError):
    """The ACME CA `pebble` is not installed: run `make setup`, or `apt-get install pebble`."""


class CAFailed(LyttleOpsError):
    """The private ACME CA did not start."""


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """PEM files for a server on loopback: `root` is what clients trust."""

    root: Path
    certificate: Path
    key: Path


def make_tls(folder: Path, hosts: Sequence[str]) -> ServerTLS:
    """A root and a server certificate for `hosts` (addresses or names) in `folder`; kept when they cover them."""
    files = ServerTLS(folder / "https-root.pem", folder / "https.pem", folder / "https.key")
    if _covers(files, hosts):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ROOT_NAME)])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    root = (
        _builder(root_name, root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    certificate = (
        _builder(root_name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(authority, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )  # the root's key is dropped: nothing else will ever be signed with it
    files.certificate.write_bytes(certificate.public_bytes(pem))
    files.root.write_bytes(root.public_bytes(pem))
    return files


def made_here(folder: Path) -> bool:
    """Whether `folder` holds a root that make_tls made, so that it is a CA's of ours and nobody else's."""
    try:
        root = x509.load_pem_x509_certificate((folder / "https-root.pem").read_bytes())
    except (OSError, ValueError):
        return False
    return [name.value for name in root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [_ROOT_NAME]


class CertificateAuthority:
    """One pebble in `folder` on `host`.

    `dns_server` (host:port) is asked for every domain; validation connects to the answer's `http_port`
    (HTTP-01) or `tls_port`. `delays` keeps pebble's random seconds before each validation, and
    `nonce_rejects` is the percentage of good nonces it refuses on purpose. `authorization_reuse` is the
    percentage of new orders for which it takes an earlier validation as good.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        *,
        port: int,
        management_port: int,
        dns_server: str,
        http_port: int = 80,
        tls_port: int = 443,
        delays: bool = False,
        nonce_rejects: int = 0,
        authorization_reuse: int = 0,
    ) -> None:
        self.folder, self.host, self.port = folder, host, port
        self.directory_url = f"https://{host}:{port}/dir"
        self.root = folder / "https-root.pem"  # signs the CA's own HTTPS certificate: ACME_CA_FILE
        self.issuing_root = folder / "issuing-root.pem"  # signs what it issues; new at each start
        self.log = folder / "pebble.log"
        self._pid_file = folder / "pebble.pid"
        self._configuration = folder / "pebble.json"
        self._management = f"https://{host}:{management_port}"
        self._management_port = management_port
        self._dns_server, self._http_port, self._tls_port = dns_server, http_port, tls_port
        self._environment = {
            "PEBBLE_VA_NOSLEEP": "0" if delays else "1",
            "PEBBLE_WFE_NONCEREJECT": str(nonce_rejects),
            "PEBBLE_AUTHZREUSE": str(authorization_reuse),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of this pebble, also when another process started it; None when it does not run."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # A pid may be anybody's by now; only ours has our configuration on its command line.
        return pid if str(self._configuration).encode() in command else None

    def start(self) -> None:
        """Start it and wait until it answers. Raises CAMissing, CAFailed."""
        if self.pid is not None:
            return
        program = shutil.which("pebble")
        if program is None:
            raise CAMissing
        tls = make_tls(self.folder, [self.host])
        self._configuration.write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"{self.host}:{self.port}",
                        "managementListenAddress": f"{self.host}:{self._management_port}",
                        "certificate": str(tls.certificate),
                        "privateKey": str(tls.key),
                        "httpPort": self._http_port,
                        "tlsPort": self._tls_port,
                        "ocspResponderURL": "",
                        "externalAccountBindingRequired": False,
                    }
                }
            )
        )
        argv = [program, "-config", str(self._configuration), "-dnsserver", self._dns_server, "-strict", "false"]
        with open_log(self.log) as log:
            # Its own session: a Ctrl-C meant for us must not end the CA before the nodes.
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))
        try:
            self._wait_until_ready()
            self.issuing_root.write_bytes(self._get(f"{self._management}/roots/0"))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, also one that an earlier process started; nothing happens when it does not run."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT
            while self.pid is not None:
                if time.monotonic() > deadline:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._pid_file.unlink(missing_ok=True)

    def answers(self) -> bool:
        """Whether it gives its directory now."""
        try:
            self._get(self.directory_url)
        except OSError:
            return False
        return True

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with suppress(OSError):
                self._get(self.directory_url)
                return
            if self.pid is None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-800:].strip()
                raise CAFailed(f"pebble did not start on {self.host}:{self.port}:\n{tail}")
            time.sleep(0.02)

    def _get(self, url: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.root))
        # No HTTP proxy lies before loopback, whatever the environment says.
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with direct.open(url, timeout=2) as response:
            return bytes(response.read())


def _covers(files: ServerTLS, hosts: Sequence[str]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        x509.load_pem_x509_certificate(files.root.read_bytes())
        serialization.load_pem_private_key(files.key.read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    return set(map(_general_name, hosts)) <= set(names) and certificate.not_valid_after_utc > datetime.now(
        UTC
    ) + timedelta(days=1)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates, key_cert_sign=certificates, crl_sign=certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
