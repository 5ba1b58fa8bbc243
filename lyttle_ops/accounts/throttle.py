"""How many log-ins may fail, counted in PostgreSQL for the whole cluster.

Three limits, each over the last 15 minutes:

| what is counted                  | failures | what it stops                                    |
|----------------------------------|----------|--------------------------------------------------|
| one user from one address        | 5        | a person who guesses                             |
| one address, whatever user       | 50       | one machine that tries many users                |
| one user, from all addresses     | 20       | many machines that try one user                  |

The third could be used to shut a user out: whoever fails 20 times as `admin`, from a few addresses, would lock
the real one out for as long as he goes on. So it does not count for an address from which this user has logged
in within 30 days (the idea of OWASP's device cookies): from there the first two limits alone hold, and nobody
else can use them up. A person who comes from a new address during such an attack has two ways that cannot be
blocked: a known address, and `lyttle-ops user` on any node, which sets a password and forgets the user's failures.

Refused attempts are not counted, so a limit always frees itself; a success forgets the user's failures.
Attempts are counted after the password is checked, so that many right ones at once are never refused; what
slips through is at most the number of checks at once (two a node).

Addresses: IPv6 counts by /64, the least that one customer gets (RFC 6177).
"""

import ipaddress
from dataclasses import dataclass

from lyttle_ops.errors import LyttleOpsError

WINDOW = 15 * 60  # seconds
KNOWN_FOR = 30 * 86_400  # seconds that a log-in makes an address a known one
MOST_PER_PAIR = 5
MOST_PER_ADDRESS = 50
MOST_PER_USER = 20


class TooManyAttempts(LyttleOpsError):
    """Too many log-ins failed; try again later."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many log-ins failed; try again in {retry_after} seconds")
        self.retry_after = retry_after  # seconds


@dataclass(frozen=True, slots=True)
class Buckets:
    """Names under which one attempt is counted."""

    user: str
    address: str
    pair: str
    known: str  # not a failure: this user logged in from this address

    @classmethod
    def of(cls, username: str, address: str) -> "Buckets":
        place = _place(address)
        # No address holds a space, so no two pairs share a name.
        return cls(user_bucket(username), f"address:{place}", f"pair:{place} {username}", f"known:{place} {username}")

    def limits(self) -> dict[str, int]:
        """Failures allowed in each bucket."""
        return {self.pair: MOST_PER_PAIR, self.address: MOST_PER_ADDRESS, self.user: MOST_PER_USER}

    def seconds_blocked(self, blocked: dict[str, float] | None, known: bool) -> int:
        """Seconds until the next attempt is allowed, 0 now. `blocked` holds the buckets that are used up."""
        counted = {name: seconds for name, seconds in (blocked or {}).items() if not (known and name == self.user)}
        return max([1, *(int(seconds) for seconds in counted.values())]) if counted else 0


def user_bucket(username: str) -> str:
    return f"user:{username}"


def _place(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "local"  # a unix socket has no address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
