"""One log format for the three processes: readable and coloured on a terminal, JSON lines otherwise.

A record's time is UTC. Nothing that is a secret is ever passed to a logger.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime

_COLOURS = {
    "DEBUG": "\033[2m",
    "INFO": "\033[32m",
    "WARNING": "\033[33m",
    "ERROR": "\033[31m",
    "CRITICAL": "\033[1;31m",
}
_RESET = "\033[0m"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class JSONFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": getattr(record, "source", self._process),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    def __init__(self, process: str, colour: bool) -> None:
        super().__init__()
        self._process = process
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<8}"
        if self._colour:
            level = f"{_COLOURS.get(record.levelname, '')}{level}{_RESET}"
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        # A message may hold what a client or a CA wrote: no line of its own making, no command to the terminal.
        message = _CONTROL.sub(_escape, record.getMessage())
        line = f"{time} {level} {getattr(record, 'source', self._process):<5} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def is_json(style: str) -> bool:
    """Whether `style` (auto, text or json) means JSON lines here."""
    return style == "json" or (style == "auto" and not sys.stdout.isatty())


def set_up(process: str, style: str = "auto", level: str = "INFO") -> None:
    """Send all logging of this process to standard output.

    `process` is node, api or nginx; `style` is auto, text or json (auto: text on a terminal, else json).
    A record may carry `source` (via `extra`) to speak for another process, as the supervisor does for NGINX.
    """
    handler = logging.StreamHandler(sys.stdout)
    if is_json(style):
        handler.setFormatter(JSONFormatter(process))
    else:
        handler.setFormatter(TextFormatter(process, colour=sys.stdout.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their INFO is the machinery's, not the operator's.
    for noisy in ("apscheduler", "alembic", "psycopg.pool", "acme", "urllib3", "requests"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
