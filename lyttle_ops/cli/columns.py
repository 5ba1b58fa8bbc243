"""Aligned columns, the same on a terminal and in a pipe: nothing is folded, and colours are for terminals alone."""

from collections.abc import Iterable, Sequence

import click

GOOD, DOUBTFUL, BAD = "green", "yellow", "red"
Cell = str | tuple[str, str | None]  # a text, or a text and its colour


def print_columns(headings: Sequence[str], rows: Iterable[Sequence[Cell]], indent: str = "") -> None:
    """Print `rows` under `headings`; nothing when there are no rows."""
    cells = [[cell if isinstance(cell, tuple) else (cell, None) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(len(heading), *(len(row[i][0]) for row in cells)) for i, heading in enumerate(headings)]
    click.echo(indent + _line([click.style(h.ljust(w), dim=True) for h, w in zip(headings, widths, strict=True)]))
    for row in cells:
        padded = [
            click.style(text.ljust(width), fg=colour) if colour else text.ljust(width)
            for (text, colour), width in zip(row, widths, strict=True)
        ]
        click.echo(indent + _line(padded))


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cells).rstrip()


def text(value: object, missing: str = "–") -> str:
    """A value as a cell."""
    return missing if value in (None, "") else str(value)
