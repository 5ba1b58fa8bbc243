"""Questions to one running NGINX over its own UNIX sockets, so that no other instance can answer them."""

import socket
import ssl
from pathlib import Path

from cryptography import x509


def ask_release(path: Path, timeout: float = 2.0) -> str | None:
    """The release that whoever listens on `path` serves; None when nobody answers properly in `timeout` seconds."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(b"GET /release HTTP/1.0\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
    except OSError:
        return None
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.split(b"\r\n")[0]:
        return None
    return body.decode("ascii", "replace") or None


def ask_serial(path: Path, domain: str, timeout: float = 5.0) -> str | None:
    """The serial (lower-case hexadecimal, no leading zeros) of the certificate that a TLS handshake for `domain` shows;
    None when the handshake fails, as for a name that is not served.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # which certificate is served is the question, not whether it is trusted
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            with context.wrap_socket(connection, server_hostname=domain) as secured:
                shown = secured.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None
    return format(x509.load_der_x509_certificate(shown).serial_number, "x") if shown else None
