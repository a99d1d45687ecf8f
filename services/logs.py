"""How the server's log looks: one JSON object a line, or text."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry import trace

from rewardzoo.services.access_log import RequestRecord, current_id

Format = Literal["auto", "json", "text"]


class JSONFormatter(logging.Formatter):
    """One JSON object a line; a request's own line has the fields of its `RequestRecord`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, RequestRecord):
            line |= record.msg.as_dict()
        else:
            line["message"] = record.getMessage()
            if (request := current_id()) is not None:
                line["id"] = request
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = trace.format_trace_id(span.trace_id)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line for reading, a traceback behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        request = None if isinstance(record.msg, RequestRecord) else current_id()
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        line += f" [{request}]" if request else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(form: Format) -> None:
    """Have this process log in that form, from INFO on for what is ours.

    It is for the worker of a server, where BentoML has set up the handlers; these are kept.
    """
    text = form == "text" or (form == "auto" and sys.stdout.isatty())
    formatter = TextFormatter() if text else JSONFormatter()
    for name in ("", "bentoml", "uvicorn.error"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
    logging.getLogger("uvicorn.error").propagate = False  # it has a handler, and the root had it again
    logging.getLogger("rewardzoo").setLevel(logging.INFO)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
