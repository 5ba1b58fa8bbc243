"""The conversation with an ACME CA (RFC 8555), on top of certbot's `acme` library.

The library signs, keeps nonces and parses; what it waits for in whole seconds is polled here in milliseconds,
every call has a deadline, and every failure becomes one of the errors of problems.py, in the CA's own words.
"""

import logging
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import requests
from acme import challenges, client, messages
from acme import errors as acme_errors
from cryptography import x509
from josepy.errors import Error as JOSEError
from josepy.json_util import field
from josepy.jwa import ES256
from josepy.jwk import JWK

from lyttle_ops import __version__
from lyttle_ops.certificates.model import Issued
from lyttle_ops.certificates.network import Deadline, Network, Transport, reason
from lyttle_ops.certificates.problems import (
    AccountDeactivated,
    CAError,
    CARateLimited,
    CARefused,
    CARefusedForLong,
    CAUnreachable,
    OrderGone,
    classify,
    code,
    describe,
)

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.02, 2.0, 1.5  # seconds between two looks at an order


class NewOrder(messages.NewOrder):
    """newOrder with the field that makes a renewal exempt from rate limits (RFC 9773 5)."""

    replaces: str | None = field("replaces", omitempty=True)


class _Client(client.ClientV2):
    """The library's calls, one request each: its own new_order fetches the authorizations before it returns,
    so a failure there would lose the URL of an order that exists."""

    def place_order(self, order: messages.NewOrder) -> tuple[messages.Order, str]:
        response = self._post(self.directory["newOrder"], order)
        return messages.Order.from_json(response.json()), response.headers["Location"]

    def fetch_order(self, url: str) -> messages.Order:
        order: messages.Order = messages.Order.from_json(self._post_as_get(url).json())
        return order

    def fetch_authorization(self, url: str) -> messages.AuthorizationResource:
        return self._authzr_from_response(self._post_as_get(url), uri=url)

    def fetch_chain(self, url: str) -> str:
        return str(self._post_as_get(url).text)


class CA:
    """One conversation: for one order, or one round of renewal information. Not thread-safe.

    `key` is the account's. `ca_file` is the PEM file its HTTPS is verified with (default: the system's roots).
    Every method raises CAError, Stopping, and what the deadline's own check raises.
    """

    def __init__(self, directory_url: str, ca_file: Path | None, key: JWK, deadline: Deadline) -> None:
        self._directory_url = directory_url
        self._host = urlsplit(directory_url).netloc
        self.key = key
        self._deadline = deadline
        self._transport = Transport(deadline)
        self._network = Network(
            key,
            alg=ES256,
            verify_ssl=str(ca_file) if ca_file else True,  # type: ignore[arg-type]  # passed on to requests
            user_agent=f"lyttle-ops/{__version__}",
        )
        self._network.session.mount("https://", self._transport)
        self._network.session.mount("http://", self._transport)
        self._client: _Client | None = None

    def close(self) -> None:
        self._network.session.close()

    # --- account (RFC 8555 7.3) ---

    def use_account(self, url: str) -> None:
        """Sign as this account from now on."""
        self._network.account = messages.RegistrationResource(uri=url, body=messages.Registration())

    def register(self, email: str | None) -> str:
        """Register the key, or find the account it has already; returns the account's URL and uses it.

        Raises AccountDeactivated when the CA knows the key and has closed its account.
        """
        registration = messages.NewRegistration.from_data(email=email, terms_of_service_agreed=True)
        self._network.account = None  # a newAccount request is signed with the key itself (7.3)
        with self._words():
            url = None
            with self._existing_account() as existing:
                url = str(self._connected().new_account(registration).uri)
            url = url or existing[0]
        self.use_account(url)
        return url

    def check_account(self) -> None:
        """Look up the account of our key. Raises AccountDeactivated, AccountUnknown."""
        lookup = messages.NewRegistration(only_return_existing=True)
        account, self._network.account = self._network.account, None
        try:
            with self._words(), self._existing_account():
                self._connected().new_account(lookup)
        finally:
            self._network.account = account

    # --- order (RFC 8555 7.4) ---

    def new_order(self, domains: Sequence[str], replaces_pem: str | None) -> tuple[messages.Order, str]:
        """Place an order; its body and URL. `replaces_pem`: the chain this is the renewal of."""
        identifiers = [messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=domain) for domain in domains]
        replaces = None
        with self._words():
            connected = self._connected()
            if replaces_pem is not None and "renewalInfo" in connected.directory.to_partial_json():
                replaces = renewal_id(replaces_pem)
        if replaces is not None:
            try:
                with self._words():
                    return connected.place_order(NewOrder(identifiers=identifiers, replaces=replaces))
            except (CARateLimited, CARefusedForLong):
                raise
            except CARefused as exc:
                # The CA may not accept what we say it replaces (RFC 9773 5: alreadyReplaced); the order is what counts.
                log.info("The CA refused an order as a renewal (%s), ordering anew", exc)
        with self._words():
            return connected.place_order(NewOrder(identifiers=identifiers))

    def order(self, url: str) -> messages.Order:
        """An order placed earlier. Raises OrderGone when the CA does not have it for us any more."""
        try:
            with self._words():
                return self._connected().fetch_order(url)
        except CARefused as exc:
            if self._transport.status in (401, 403, 404, 410):
                raise OrderGone(f"the CA does not know the order any more: {exc}") from exc
            raise

    def prove(self, order: messages.Order) -> None:
        """Tell the CA to look at each domain that is not proven yet. Every node answers at any time (8.3)."""
        for url in order.authorizations:
            authorization = self._authorization(url)
            if authorization.status != messages.STATUS_PENDING:
                continue
            challenge = _http_challenge(authorization)
            if challenge.status != messages.STATUS_PENDING:
                continue  # answered by whoever had this order before
            try:
                with self._words():
                    self._connected().answer_challenge(challenge, challenge.chall.response(self.key))
            except CARefused:
                # It may have been decided between the two calls; then what it came to counts.
                if self._authorization(url).status == messages.STATUS_PENDING:
                    raise

    def wait(self, url: str, while_in: Sequence[messages.Status]) -> messages.Order:
        """Look at the order until it leaves the states `while_in`."""
        pause = FIRST_PAUSE
        while True:
            self._deadline.pause(pause)
            order = self.order(url)
            if order.status not in while_in:
                return order
            pause = min(pause * GROWTH, LONGEST_PAUSE)
            wish = self._transport.retry_after
            if wish is not None:
                if wish > self._deadline.left():
                    raise CAUnreachable(f"the CA asks to come back in {wish:.0f} s", retry_after=wish)
                pause = max(pause, wish)

    def finalize(self, order: messages.Order, csr_pem: str) -> messages.Order:
        """Hand in the CSR of an order that is ready (7.4)."""
        resource = messages.OrderResource(body=order, uri="", csr_pem=csr_pem.encode(), authorizations=[])
        with self._words():
            return self._connected().begin_finalization(resource).body

    def download(self, order: messages.Order, csr_pem: str) -> Issued:
        """The chain of a valid order. Raises CARefused when it is not for the key and domains of the CSR."""
        if order.certificate is None:
            raise CAUnreachable("the CA calls the order valid and names no certificate")
        with self._words():
            chain = self._connected().fetch_chain(order.certificate)
            leaf = x509.load_pem_x509_certificate(chain.encode())
            csr = x509.load_pem_x509_csr(csr_pem.encode())
            wanted, given = (set(_names(extensions)) for extensions in (csr.extensions, leaf.extensions))
            if leaf.public_key() != csr.public_key() or not wanted <= given:
                raise CARefused("the CA's certificate is not the one that was ordered: other key or other domains")
        return Issued(
            chain_pem=chain,
            serial=f"{leaf.serial_number:x}",
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )

    def why_invalid(self, order: messages.Order) -> CAError:
        """What made an order invalid: the errors of its challenges, else its own; or that it expired."""
        problems: list[messages.Error] = []
        words = []
        ends = [order.expires]
        for url in order.authorizations or ():
            authorization = self._authorization(url)
            if authorization.status == messages.STATUS_VALID:
                continue
            ends.append(authorization.expires)
            for challenge in authorization.challenges or ():
                if challenge.error is not None:
                    problems.append(challenge.error)
                    words.append(f"{authorization.identifier.value}: {describe(challenge.error)}")
        if order.error is not None and not words:
            problems.append(order.error)
            words.append(describe(order.error))
        if words:
            return classify(problems, "; ".join(words), self._transport.status, None)
        expired = [end for end in ends if end is not None and end <= self._deadline.clock.now()]
        if expired:
            return OrderGone(f"the order or a part of it expired at {min(expired):%Y-%m-%d %H:%M} UTC")
        return CARefused("the CA made the order invalid without a reason")

    # --- renewal information (RFC 9773) ---

    def renewal_window(self, chain_pem: str) -> tuple[datetime, datetime] | None:
        """When the CA would like this certificate to be renewed; None when it has no opinion on anything."""
        with self._words():
            directory = self._connected().directory.to_partial_json()
            base = directory.get("renewalInfo")
            if base is None:
                return None
            answer = self._network.get(f"{base}/{renewal_id(chain_pem)}").json()
            window = messages.RenewalInfo.from_json(answer).suggested_window
            return window.start, window.end

    # --- inside ---

    @contextmanager
    def _existing_account(self) -> Iterator[list[str]]:
        """newAccount for a key the CA knows: the library raises its URL, and a closed account is refused (7.3.6)."""
        urls: list[str] = []
        try:
            yield urls
        except acme_errors.ConflictError as exc:
            urls.append(str(exc.location))
        except messages.Error as exc:
            if code(exc) == "unauthorized":
                raise AccountDeactivated(describe(exc)) from exc
            raise

    def _connected(self) -> _Client:
        if self._client is None:
            self._client = _Client(_Client.get_directory(self._directory_url, self._network), self._network)
        return self._client

    def _authorization(self, url: str) -> messages.Authorization:
        with self._words():
            return self._connected().fetch_authorization(url).body

    @contextmanager
    def _words(self) -> Iterator[None]:
        """Errors of the library, of requests and of parsing become ours."""
        try:
            yield
        except messages.Error as exc:
            raise classify([exc], describe(exc), self._transport.status, self._transport.retry_after) from exc
        except requests.RequestException as exc:
            raise CAUnreachable(f"the CA at {self._host} {reason(exc)}") from exc
        except (acme_errors.Error, JOSEError, ValueError, KeyError, TypeError, AttributeError) as exc:
            status = self._transport.status
            if status is not None and status >= 400:
                words = f"the CA at {self._host} answered HTTP {status} without saying why"
                raise classify([], words, status, self._transport.retry_after) from exc
            raise CAUnreachable(f"the answer of the CA at {self._host} was not understood: {exc!r:.200}") from exc


def renewal_id(chain_pem: str) -> str:
    """The name of a certificate in renewal information: key identifier and serial (RFC 9773 4.1)."""
    leaf = x509.load_pem_x509_certificate(chain_pem.encode())
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
    # A DER INTEGER is signed: one more bit, so that a serial with its top bit set gets a leading zero byte.
    serial = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in (authority, serial))


def _http_challenge(authorization: messages.Authorization) -> messages.ChallengeBody:
    for challenge in authorization.challenges:
        if isinstance(challenge.chall, challenges.HTTP01):
            return challenge
    raise CARefusedForLong(f"the CA offers no http-01 challenge for {authorization.identifier.value}")


def _names(extensions: x509.Extensions) -> list[str]:
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
