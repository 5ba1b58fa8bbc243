"""One order from wherever it is to a stored certificate. The CA's word on the order's state decides each step."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from acme import messages

from lyttle_ops.certificates import renewal
from lyttle_ops.certificates.account import Account
from lyttle_ops.certificates.acme import CA
from lyttle_ops.certificates.encryption import Keyring, Undecryptable
from lyttle_ops.certificates.model import Order, OrderState
from lyttle_ops.certificates.orders import Ledger
from lyttle_ops.certificates.problems import AccountDeactivated, AccountUnknown, CARefused, CAUnreachable, OrderGone

log = logging.getLogger(__name__)

T = TypeVar("T")

_UNDER_WAY = (messages.STATUS_PENDING, messages.STATUS_PROCESSING)


class Issuing:
    """Work on one certificate, under its lock. `order` is always the order as the ledger has it."""

    order: Order

    def __init__(
        self,
        ledger: Ledger,
        account: Account,
        ca: CA,
        keyring: Keyring,
        directory_url: str,
        certificate_id: int,
        domains: tuple[str, ...],
    ) -> None:
        self._ledger, self._account, self._ca, self._keyring = ledger, account, ca, keyring
        self._directory_url = directory_url
        self._certificate_id = certificate_id
        self._domains = domains
        self._words = ", ".join(domains)

    def run(self) -> None:
        """Resume the open order, or place one. An order of earlier that the CA has lost is replaced at once; one just
        placed is not, or a CA that answers 404 to all look-ups would be asked for orders without end.

        Raises CAError (recording it is the caller's), Stopping, OrderTaken, LockLost, DatabaseError.
        """
        resumed = self._resume()
        placed = resumed is not None and resumed.order_url is not None
        self.order = resumed or self._begin()
        try:
            try:
                self._carry_out()
            except OrderGone as exc:
                if not placed:
                    raise
                self._start_anew(exc)
                self._carry_out()
        except OrderGone as exc:
            self._start_anew(exc)
            raise CAUnreachable(f"the CA lost a new order: {exc}") from exc
        except AccountDeactivated as exc:
            self._account.replace(self._ca, exc)
            # Every node has to render the new thumbprint before the CA may look, so this try ends here.
            raise CAUnreachable(f"{exc}; a new account will be registered") from exc

    def _begin(self) -> Order:
        return self._ledger.begin(self._certificate_id, self._domains, self._directory_url)

    def _start_anew(self, reason: OrderGone) -> None:
        log.info("Order %d for %s is gone: %s", self.order.id, self._words, reason)
        self._ledger.abandon(self.order, str(reason))
        self.order = self._begin()

    def _resume(self) -> Order | None:
        """The open order, when it can be gone on with."""
        order = self._ledger.take_over(self._certificate_id)
        if order is None:
            return None
        if order.directory_url != self._directory_url:
            self._ledger.abandon(order, f"another CA is configured now: {self._directory_url}")
            return None
        try:
            self._keyring.decrypt(order.private_key, order.certificate_id, order.key_id)
        except Undecryptable as exc:
            self._ledger.abandon(order, f"its private key cannot be used: {exc}")
            return None
        return order

    def _carry_out(self) -> None:
        ca = self._ca
        self._account.attach(ca)
        body, url = self._place_or_fetch()
        if body.status == messages.STATUS_PENDING:
            ca.prove(body)
            body = ca.wait(url, _UNDER_WAY)
        if body.status == messages.STATUS_READY:
            self._advance_to_processing()
            body = ca.finalize(body, self.order.csr_pem)
        if body.status in _UNDER_WAY:
            body = ca.wait(url, _UNDER_WAY)
        if body.status == messages.STATUS_INVALID:
            raise ca.why_invalid(body)
        if body.status != messages.STATUS_VALID:
            raise CAUnreachable(f"the CA left the order in the state {body.status.name}")
        issued = ca.download(body, self.order.csr_pem)
        self._advance_to_processing()
        jitter = renewal.jitter(self.order.certificate_id, self.order.id)
        renew_at = renewal.planned(issued.not_before, issued.not_after, jitter)
        revision = self._ledger.complete(self.order, issued, renew_at)
        log.info(
            "Certificate for %s issued: serial %s, valid until %s, revision %d",
            self._words, issued.serial, issued.not_after.isoformat(), revision,
        )  # fmt: skip

    def _place_or_fetch(self) -> tuple[messages.Order, str]:
        ca = self._ca
        known = self.order.order_url
        if known is not None:
            log.info("Order %d for %s resumed at %s", self.order.id, self._words, self.order.state.value)
            return self._with_account(lambda: ca.order(known)), known
        replaces = self._ledger.served_chain(self._certificate_id, self._directory_url)
        body, url = self._with_account(lambda: ca.new_order(self._domains, replaces))
        self.order = self._ledger.advance(self.order, OrderState.CREATED, url)
        log.info("Order %d for %s placed: %s", self.order.id, self._words, url)
        return body, url

    def _advance_to_processing(self) -> None:
        """Through the states in their order; whoever had the order before may have come further than we know."""
        for step in (OrderState.READY, OrderState.PROCESSING):
            if self.order.state not in (step, OrderState.PROCESSING):
                self.order = self._ledger.advance(self.order, step)

    def _with_account(self, call: Callable[[], T]) -> T:
        """Run the first call that needs the account; register again when the CA has forgotten it."""
        try:
            return call()
        except AccountUnknown:
            self._account.register(self._ca, unless=self._account.url())
            return call()
        except (CARefused, OrderGone):
            # A closed account is "unauthorized" like many other things (RFC 8555 7.3.6), so ask.
            with suppress(AccountUnknown):
                self._ca.check_account()
            raise
