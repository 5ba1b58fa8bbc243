"""Named SQL: each room keeps its statements in its own queries.sql, in blocks that start `-- name: NAME`."""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


class Queries:
    """The statements of one queries.sql as attributes: `queries.heartbeat`."""

    def __init__(self, source: str, text: str) -> None:
        self._source = source
        parts = _NAME.split(text)[1:]
        self._statements = dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))

    def __getattr__(self, name: str) -> LiteralString:
        try:
            # Files of this package are as constant as literals in the code.
            return cast(LiteralString, self._statements[name])
        except KeyError:
            raise AttributeError(f"{self._source} has no statement named {name}") from None


@cache
def load_queries(package: str) -> Queries:
    """The queries.sql inside `package` (a dotted name)."""
    return Queries(f"{package}/queries.sql", files(package).joinpath("queries.sql").read_text("utf-8"))
