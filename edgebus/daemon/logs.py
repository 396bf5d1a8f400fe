"""Log lines of the daemon: one JSON object each, or text for a terminal. What the library logs goes the same way."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_MAX_TEXT = 8192


class JsonFormatter(logging.Formatter):
    """One line: at (UTC), level, logger, event, and whatever `extra=` the call gave."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; JSON escapes every control character, so nothing in it can drive a terminal."""
        line: dict[str, Any] = {
            "at": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:_MAX_TEXT],
        }
        # A field of the caller's never replaces one of ours.
        line |= {key: value for key, value in fields_of(record).items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-_MAX_TEXT:]
        return json.dumps(line, default=lambda value: repr(value)[:_MAX_TEXT])


class ConsoleFormatter(logging.Formatter):
    """Time, level, text, then key=value; control characters from peers are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception follows on lines of its own."""
        pairs = "".join(f" {key}={value!a}" for key, value in fields_of(record).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in record.getMessage()[:_MAX_TEXT])
        line = f"{moment} {record.levelname.lower():7} {text}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a call gave as `extra=`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def set_up_logs(level: str, style: str, stream: TextIO | None = None) -> logging.Handler:
    """Send everything logged in this process to a stream (stderr) in one style: "auto", "json" or "console".

    Returns:
        The handler, for remove_logs.
    """
    stream = stream or sys.stderr
    on_terminal = style == "console" or (style == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ConsoleFormatter() if on_terminal else JsonFormatter())
    logging.getLogger().addHandler(handler)
    set_level(level)
    _join_structlog()
    return handler


def set_level(level: str) -> None:
    """Change what is logged from now on."""
    logging.getLogger().setLevel(level.upper())


def remove_logs(handler: logging.Handler) -> None:
    """Undo set_up_logs."""
    logging.getLogger().removeHandler(handler)
    handler.close()


def _join_structlog() -> None:
    """Services may log through structlog: its events become records of ours, key by key."""
    try:
        import structlog
    except ModuleNotFoundError:
        return

    def as_record(logger: Any, method: str, event: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        extra = {(f"{key}_" if key in _STANDARD else key): value for key, value in event.items()}
        special = {key: extra.pop(f"{key}_") for key in ("exc_info", "stack_info") if f"{key}_" in extra}
        text = str(extra.pop("event", ""))
        return ("%s", text), special | {"extra": extra}

    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, as_record],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
