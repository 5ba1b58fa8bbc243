"""Which failures count together, and what a used-up limit means."""

import pytest

from lyttle_ops.accounts.throttle import MOST_PER_USER, Buckets


def test_one_ipv6_customer_is_one_address() -> None:
    """A customer has at least a /64 and could change the rest at will."""
    assert Buckets.of("a", "2001:db8::1").address == Buckets.of("a", "2001:db8::ffff:2").address
    assert Buckets.of("a", "2001:db8::1").address != Buckets.of("a", "2001:db8:0:1::1").address


def test_an_ipv4_address_is_the_same_inside_ipv6() -> None:
    assert Buckets.of("a", "::ffff:192.0.2.1").address == Buckets.of("a", "192.0.2.1").address


@pytest.mark.parametrize("nowhere", ["", "not an address"])
def test_a_client_without_an_address_is_local(nowhere: str) -> None:
    assert Buckets.of("a", nowhere).address == "address:local"


def test_no_two_pairs_share_a_bucket() -> None:
    """A name may hold a space and an address, yet reaches no other's count."""
    assert Buckets.of("x 192.0.2.1 y", "192.0.2.1").pair != Buckets.of("y", "192.0.2.1").pair
    assert Buckets.of("a", "192.0.2.1").pair != Buckets.of("a", "192.0.2.11").pair


def test_the_limit_of_a_user_does_not_hold_for_an_address_the_user_is_known_from() -> None:
    """Otherwise whoever knows a user's name could lock the user out."""
    buckets = Buckets.of("admin", "192.0.2.1")
    used_up = {buckets.user: 600.0}
    assert buckets.limits()[buckets.user] == MOST_PER_USER
    assert buckets.seconds_blocked(used_up, known=False) == 600
    assert buckets.seconds_blocked(used_up, known=True) == 0
    assert buckets.seconds_blocked({**used_up, buckets.pair: 30.0}, known=True) == 30


def test_nothing_used_up_blocks_nothing() -> None:
    assert Buckets.of("a", "192.0.2.1").seconds_blocked(None, known=False) == 0


def test_a_block_lasts_at_least_a_second() -> None:
    """Retry-After: 0 would invite the next try at once."""
    buckets = Buckets.of("a", "192.0.2.1")
    assert buckets.seconds_blocked({buckets.pair: 0.0}, known=False) == 1
