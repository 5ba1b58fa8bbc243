"""Domain names as people write them, made into the one form everything else uses.

The form: A-labels (IDNA 2008, RFC 5891, with the mappings of UTS #46), lower case, no trailing dot, no
wildcard, no IP address. Two spellings of one name always end in the same text, so that the database's
primary key sees that they are one.
"""

import ipaddress
import re

import idna

MOST_DOMAINS = 100  # a Let's Encrypt certificate holds at most 100 names
_MOST_ENTRIES = 1000  # before duplicates are merged
_LONGEST_INPUT = 1024  # characters of one name as written; bounds the work of IDNA
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 section 2.1, lower case
_WITH_PORT = re.compile(r"[^:]+:[0-9]*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label of this kind makes an address of it (WHATWG URL, 4.5)


def normalise_domain(text: str) -> str:
    """`text` as A-labels in lower case without a trailing dot. Raises ValueError saying what is wrong."""
    name = text.strip()
    shown = repr(name if len(name) <= 80 else name[:77] + "…")
    if not name or name == ".":
        raise ValueError("is empty; accepted: a host name, as www.example.com")
    if "*" in name:
        raise ValueError(
            f"{shown} is a wildcard, which HTTP-01 cannot prove (RFC 8555 section 8.3): list each name by itself"
        )
    if len(name) > _LONGEST_INPUT:
        raise ValueError(f"{shown} is too long; a host name has at most 253 characters")
    if "/" in name:
        raise ValueError(f"{shown} is a URL or a path, not a host name; give the bare host name, as foo.example")
    if _is_address(name):
        raise ValueError(f"{shown} is an IP address; accepted: a host name, as www.example.com")
    if _WITH_PORT.fullmatch(name):
        raise ValueError(f"{shown} has a port, so it is not a host name; give the bare host name, as foo.example")
    ascii_name = to_ascii(name, shown)
    labels = ascii_name.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"{shown} is not a host name: the part {label[:63]!r} may hold letters, digits and inner hyphens, "
                "1 to 63 of them"
            )
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{shown} is an IP address or ends in a number; accepted: a host name, as www.example.com")
    return ascii_name


def to_ascii(name: str, shown: str) -> str:
    """IDNA 2008 with UTS #46 mapping, lower case, one trailing dot removed. Raises ValueError."""
    try:
        # Not transitional: ß and final sigma are letters of their own since IDNA 2008.
        encoded = idna.encode(name, uts46=True, std3_rules=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as exc:
        raise ValueError(f"{shown} is not a host name: {exc}") from None
    encoded = encoded.removesuffix(".")
    if len(encoded) > 253:
        raise ValueError(f"{shown} is too long; a host name has at most 253 characters")
    return encoded


def split_domains(value: object) -> tuple[object, ...]:
    """One string, a `;` list or a JSON list as a tuple of strings; empty parts of a `;` list fall out.

    What the list holds is for the type check that follows. Raises ValueError on anything else and on too many.
    """
    if isinstance(value, str):
        if value.count(";") > _MOST_ENTRIES:
            raise ValueError(f"holds too many names; at most {MOST_DOMAINS} an entry")
        value = [part for part in value.split(";") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("must be a name, a list separated by ';', or a JSON list of names")
    if len(value) > _MOST_ENTRIES:
        raise ValueError(f"holds too many names; at most {MOST_DOMAINS} an entry")
    return tuple(value)


def merge_domains(names: tuple[str, ...]) -> tuple[str, ...]:
    """Normalised names sorted and without duplicates. Raises ValueError when none or too many are left."""
    merged = tuple(sorted(set(names)))
    if not merged:
        raise ValueError("names no domain; accepted: a name, a list separated by ';', or a JSON list of names")
    if len(merged) > MOST_DOMAINS:
        raise ValueError(f"holds {len(merged)} names; at most {MOST_DOMAINS} an entry")
    return merged


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
