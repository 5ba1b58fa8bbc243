"""Which site is it that NGINX refuses? Its message names the site's file; where it does not, testing finds out."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

Attempt = Callable[[Collection[int]], str | None]
"""Tests a release of these sites: None when NGINX accepts it, else its own words."""

# At the end: before it NGINX may quote what a user wrote, which may look the same.
_FILE = re.compile(r".* in /\S*/releases/\S*/sites/(\d+)\.conf:\d+$", re.DOTALL)
_CERTIFICATE = re.compile(r"/certs/([A-Za-z0-9._-]+)\.(?:pem|key)\"")


def named_sites(message: str, certificates: Mapping[int, Collection[str]]) -> dict[int, str]:
    """The sites that NGINX's message names, by their file or by a certificate of theirs, with the message.

    `certificates` holds the certificate names of each site that was tested.
    """
    for part in message.split("; "):
        number = _FILE.fullmatch(part)
        if number and int(number[1]) in certificates:
            return {int(number[1]): part}
    name = _CERTIFICATE.search(message)
    return {number: message for number, names in certificates.items() if name and name[1] in names}


def search(attempt: Attempt, base: Collection[int], suspects: Sequence[int]) -> dict[int, str]:
    """The sites among `suspects` that NGINX refuses, each alone or together with the ones before it.

    Empty when it accepts them all, and when it refuses `base` or nothing at all: then no site is to blame.
    """
    if attempt(()) is not None or attempt(base) is not None:
        return {}
    alone = {number: message for number in suspects if (message := attempt([number])) is not None}
    if alone:
        return alone
    return _halve(attempt, set(base), list(suspects))


def tidy(message: str, folder: Path) -> str:
    """NGINX's message without paths of this machine, which mean nothing to whoever wrote the entry."""
    message = re.sub(r" in /\S.*?/(?:sites/\d+|nginx)\.conf:\d+", "", message)
    return message.replace(f"{folder}/", "")


def _halve(attempt: Attempt, good: set[int], suspects: Sequence[int]) -> dict[int, str]:
    message = attempt(good | set(suspects)) if suspects else None
    if message is None:
        return {}
    if len(suspects) == 1:
        return {suspects[0]: message}
    middle = len(suspects) // 2
    first = _halve(attempt, good, suspects[:middle])
    return first | _halve(attempt, good | (set(suspects[:middle]) - set(first)), suspects[middle:])
