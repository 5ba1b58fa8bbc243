"""NGINX's configuration language: what an argument means, and how one is written so that it means just that.

The reading side is the inverse of the writing side as ngx_conf_read_token() (src/core/ngx_conf_file.c) defines
them: a backslash before " ' \\ is dropped, \\t \\r \\n are control characters, any other backslash stands for itself;
quotes count only at the start of an argument, and whether an argument was quoted is forgotten once it is read.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from lyttle_ops.nginx.errors import UnsafeValue

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+*~^$%\[\]-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ESCAPE = re.compile(r"\\([\"'\\trn])")
_UNESCAPED = {"t": "\t", "r": "\r", "n": "\n"}
_ESCAPED = {"\\": r"\\", '"': r"\"", "\t": r"\t", "\r": r"\r", "\n": r"\n"}


class Text(str):
    """Configuration text that this module wrote, or that a template or a constant of this package is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Directive:
    """One statement; `arguments` are the values NGINX sees, `block` is None for one that ends with a semicolon."""

    name: str
    arguments: tuple[str, ...] = ()
    block: "tuple[Directive, ...] | None" = None
    line: int = 0

    @classmethod
    def of(cls, name: str, *arguments: str, block: "Iterable[Directive] | None" = None) -> Self:
        return cls(name, arguments, None if block is None else tuple(block))


def quote(value: str) -> Text:
    """One argument that NGINX reads back as exactly `value`. Variables in it stay variables.

    Raises UnsafeValue on control characters and on text that is not valid Unicode.
    """
    if _CONTROL.search(value):
        raise UnsafeValue(f"{value!r} holds a control character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnsafeValue(f"{value!r} is not valid Unicode") from None
    if _PLAIN.fullmatch(value):
        return Text(value)
    return Text('"' + "".join(_ESCAPED.get(character, character) for character in value) + '"')


def literal(value: str) -> Text:
    """As `quote`, for text in which nothing may be a variable: NGINX has no way to escape a dollar sign."""
    if "$" in value:
        raise UnsafeValue(f"{value!r} holds a dollar sign")
    return quote(value)


def number(value: int) -> Text:
    """A whole number, zero or more; anything else raises UnsafeValue."""
    if type(value) is not int or value < 0:
        raise UnsafeValue(f"{value!r} is not a whole number")
    return Text(value)


def meaning(token: str) -> str:
    """What NGINX makes of an argument's text once its own quotes are off."""
    return _ESCAPE.sub(lambda match: _UNESCAPED.get(match[1], match[1]), token)


def build(directives: Sequence[Directive], depth: int = 0) -> Text:
    """The configuration text of `directives`, four spaces a level, each line ended. Raises UnsafeValue."""
    margin = "    " * depth
    lines = []
    for directive in directives:
        if not _NAME.fullmatch(directive.name):
            raise UnsafeValue(f"{directive.name!r} is not the name of a directive")
        arguments = list(directive.arguments)
        if directive.name == "if":
            # NGINX looks for the parentheses in the first and last value, after quotes are gone.
            arguments = ["(" + arguments[0], *arguments[1:]] if arguments else ["("]
            arguments[-1] += ")"
        head = margin + " ".join((directive.name, *map(quote, arguments)))
        if directive.block is None:
            lines.append(head + ";\n")
        else:
            lines.append(f"{head} {{\n{build(directive.block, depth + 1)}{margin}}}\n")
    return Text("".join(lines))
