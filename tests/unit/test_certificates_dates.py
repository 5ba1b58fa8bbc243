"""When to renew and when to try again; names of certificates in renewal information."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from lyttle_ops.certificates import backoff, renewal
from lyttle_ops.certificates.acme import renewal_id
from lyttle_ops.certificates.model import CannotCertify, domain_set, lock_name

START = datetime(2027, 1, 1, tzinfo=UTC)
DAYS = timedelta(days=1)


@pytest.mark.parametrize(
    ("lifetime", "left"), [(90, 30), (64, 64 / 3), (45, 15), (10, 10 / 3), (6, 3), (1, 0.5)], ids=str
)
def test_renewal_is_planned_with_a_third_left_or_half_when_short(lifetime: float, left: float) -> None:
    planned = renewal.planned(START, START + lifetime * DAYS, jitter=0.0)
    assert abs(planned - (START + (lifetime - left) * DAYS)) < timedelta(seconds=1)


@given(st.floats(0, 1, exclude_max=True), st.floats(0.1, 400))
def test_jitter_only_ever_makes_renewal_earlier_and_by_little(jitter: float, days: float) -> None:
    lifetime = days * DAYS
    latest = renewal.planned(START, START + lifetime, 0.0)
    assert latest - lifetime * 0.05 <= renewal.planned(START, START + lifetime, jitter) <= latest


def test_jitter_is_the_same_for_the_same_order_and_spread_over_others() -> None:
    values = [renewal.jitter(certificate, 7) for certificate in range(1000)]
    assert values == [renewal.jitter(certificate, 7) for certificate in range(1000)]
    assert 0 <= min(values) < 0.05
    assert 0.95 < max(values) < 1


def test_the_cas_window_decides_but_never_past_the_last_tenth() -> None:
    end = START + 90 * DAYS
    assert renewal.suggested((START, START + 10 * DAYS), START, end, 0.5) == START + 5 * DAYS
    assert renewal.suggested((end, end + DAYS), START, end, 0.5) == end - 9 * DAYS
    assert renewal.suggested((START + DAYS, START), START, end, 0.9) == START + DAYS  # a window turned around


def test_refusals_stay_within_five_failed_authorizations_an_hour() -> None:
    tries, now = [0.0], 0.0
    for failures in range(1, 40):
        now += backoff.delay(backoff.REFUSED, failures).total_seconds()
        tries.append(now)
    for start in tries:
        assert sum(start <= each < start + 3600 for each in tries) <= 5
    assert backoff.delay(backoff.REFUSED, 100) == timedelta(hours=12)


def test_an_unreachable_ca_is_tried_again_sooner() -> None:
    assert [backoff.delay(backoff.UNREACHABLE, n).total_seconds() for n in (0, 1, 2, 3)] == [10, 10, 30, 60]


def test_a_cas_retry_after_is_respected_within_reason() -> None:
    own = timedelta(minutes=1)
    assert backoff.respect(None, own) == own
    assert backoff.respect(5, own) == own
    assert backoff.respect(7200, own) == timedelta(hours=2)
    assert backoff.respect(1e12, own) == timedelta(days=7)


def test_the_renewal_id_is_the_one_of_the_rfc() -> None:
    """RFC 9773 4.1: key identifier 69:88:…:D4 and serial 00:87:65:43:21, whose leading zero byte counts."""
    identifier = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 0x87654321, START, START + DAYS)
        .add_extension(x509.AuthorityKeyIdentifier(identifier, None, None), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM).decode()
    assert renewal_id(chain) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


def test_the_lock_is_the_same_whatever_the_order_of_the_domains() -> None:
    assert lock_name(domain_set(["b.example", "a.example", "b.example"])) == lock_name(["a.example", "b.example"])
    assert lock_name(["a.example", "b.example"]) == (
        "cert:issue:2473de54e9bc5e9779d007b377ee8a3839866fa6759242151ec87534906d64e6"
    )


@pytest.mark.parametrize("domains", [[], ["*.example.com"]], ids=["none", "wildcard"])
def test_what_http_cannot_prove_is_refused_with_the_reason(domains: list[str]) -> None:
    with pytest.raises(CannotCertify, match=r"at least one|wildcard"):
        domain_set(domains)
