"""What a CA can say instead of a certificate, as errors in its own words (RFC 8555 6.7, RFC 7807)."""

from collections.abc import Sequence

from acme import messages

from lyttle_ops.errors import LyttleOpsError

URN = "urn:ietf:params:acme:error:"

# Nothing changes about these by asking again; a person has to act (RFC 8555 6.7).
_NOT_SOON = {
    "rejectedIdentifier",
    "unsupportedIdentifier",
    "caa",
    "externalAccountRequired",
    "invalidContact",
    "unsupportedContact",
    "userActionRequired",
    "badCSR",
}


class CAError(LyttleOpsError):
    """The CA did not do what was asked. `retry_after`: seconds, when it said so."""

    def __init__(self, message: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CAUnreachable(CAError):
    """The CA could not be reached, did not answer in time, or had an error of its own."""


class CARefused(CAError):
    """The CA looked at it and said no."""


class CARefusedForLong(CARefused):
    """The CA will say no until a person changes something: do not retry soon."""


class CARateLimited(CAError):
    """The CA's rate limit is reached."""


class OrderGone(CAError):
    """The CA does not know the order any more, or it expired: a new one is needed."""


class AccountUnknown(CAError):
    """The CA does not know the account: it has to be registered (again)."""


class AccountDeactivated(CAError):
    """The CA has closed the account; its key is of no use any more."""


def describe(problem: messages.Error) -> str:
    """A problem document in one line: type, detail, and its subproblems by name (RFC 8555 6.7)."""
    words = f"{problem.typ}: {problem.detail or problem.title or 'no detail given'}"
    for sub in problem.subproblems or ():
        name = f"{sub.identifier.value}: " if sub.identifier else ""
        words += f"; {name}{describe(sub)}"
    return words


def classify(problems: Sequence[messages.Error], words: str, status: int | None, retry_after: float | None) -> CAError:
    codes = {code(each) for problem in problems for each in (problem, *(problem.subproblems or ()))}
    if status == 429 or "rateLimited" in codes:
        return CARateLimited(words, retry_after)
    if "accountDoesNotExist" in codes:
        return AccountUnknown(words)
    if (status is not None and status >= 500) or codes & {"serverInternal", "badNonce"}:
        return CAUnreachable(words, retry_after)
    if codes & _NOT_SOON:
        return CARefusedForLong(words, retry_after)
    return CARefused(words, retry_after)


def code(problem: messages.Error) -> str:
    return str(problem.typ).removeprefix(URN)
