"""When to try again after a failure. The answer is kept in PostgreSQL, so all nodes and terms respect it."""

from collections.abc import Sequence
from datetime import timedelta

_MINUTE, _HOUR = 60, 3600

# The CA looked and said no. Let's Encrypt allows 5 failed authorizations per name and hour: failures at
# 0, 1, 6, 21 and 51 min are five, the sixth comes at 1 h 51 min. From there on doubling; most such errors
# are a DNS record or firewall that a person has to put right, who can also ask for a try at once.
REFUSED: Sequence[int] = (
    1 * _MINUTE,
    5 * _MINUTE,
    15 * _MINUTE,
    30 * _MINUTE,
    1 * _HOUR,
    2 * _HOUR,
    4 * _HOUR,
    8 * _HOUR,
    12 * _HOUR,
)

# The CA was not reached, did not answer, or had an error of its own: costs no rate limit, so sooner. The
# order stays open and is resumed.
UNREACHABLE: Sequence[int] = (
    10,
    30,
    1 * _MINUTE,
    2 * _MINUTE,
    5 * _MINUTE,
    10 * _MINUTE,
    30 * _MINUTE,
    1 * _HOUR,
)

# The CA says that these domains, or this account, will not get a certificate until a person changes something.
NOT_SOON = 12 * _HOUR

# The CA names the time itself (Retry-After); without one an hour, the window most of its limits have.
RATE_LIMITED = 1 * _HOUR
_LONGEST = 7 * 24 * _HOUR  # a CA's Retry-After beyond this is taken for a mistake


def delay(table: Sequence[int], failures: int) -> timedelta:
    """The wait after the `failures`-th failure (1 is the first) of one kind."""
    return timedelta(seconds=table[min(max(failures, 1), len(table)) - 1])


def respect(retry_after: float | None, otherwise: timedelta) -> timedelta:
    """The CA's Retry-After (seconds) when it gave one that is longer than our own wait."""
    if retry_after is None:
        return otherwise
    return max(otherwise, timedelta(seconds=min(retry_after, _LONGEST)))
