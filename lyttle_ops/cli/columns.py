"""Aligned columns, the same on a terminal and in a pipe: nothing is folded, and colours are for terminals alone."""

from collections.abc import Iterable, Sequence

import click

GOOD, DOUBTFUL, BAD = "green", "yellow", "red"
Cell = str | tuple[str, str | None]  # a text, or a text and its colour


def print_columns(headings: Sequence[str], rows: Iterable[Sequence[Cell]], indent: str = "") -> None:
    """Print `rows` under `headings`; nothing when there are no rows."""
    table = [[cell if isinstance(cell, tuple) else (cell, None) for cell in row] for row in rows]
    if not table:
        return
    table.insert(0, [(heading, "bright_black") for heading in headings])
    widths = [max(len(content) for content, _ in column) for column in zip(*table, strict=True)]
    for line in table:
        padded = [
            (click.style(content, fg=colour) if colour else content) + " " * (width - len(content))
            for (content, colour), width in zip(line, widths, strict=True)
        ]
        click.echo((indent + "  ".join(padded)).rstrip())


def text(value: object, missing: str = "–") -> str:
    """A value as a cell."""
    return missing if value in (None, "") else str(value)
