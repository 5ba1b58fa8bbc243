"""When a certificate is renewed: relative to its lifetime, or when the CA says (ARI, RFC 9773), spread out."""

from datetime import datetime, timedelta
from hashlib import sha256

SHORT_LIFETIME = timedelta(days=10)
_SPREAD = 0.05  # of the lifetime; certificates issued together are not renewed together
_LATEST = 0.1  # of the lifetime that must be left, whatever a CA suggests


def jitter(certificate_id: int, order_id: int) -> float:
    """A number in [0, 1), always the same for this certificate and order, so that no check reshuffles it."""
    digest = sha256(f"{certificate_id}:{order_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def planned(not_before: datetime, not_after: datetime, jitter: float) -> datetime:
    """With a third of the lifetime left (half for under ten days), or up to a twentieth of it earlier."""
    lifetime = not_after - not_before
    left = lifetime / 2 if lifetime < SHORT_LIFETIME else lifetime / 3
    return not_after - left - lifetime * _SPREAD * jitter


def suggested(window: tuple[datetime, datetime], not_before: datetime, not_after: datetime, jitter: float) -> datetime:
    """A point inside the CA's window (RFC 9773 4.2), but never with less than a tenth of the lifetime left."""
    start, end = window
    return min(start + max(end - start, timedelta(0)) * jitter, not_after - (not_after - not_before) * _LATEST)
