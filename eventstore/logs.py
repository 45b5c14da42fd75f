"""Structured logs: one JSON line per fact on stderr, for our lines and the libraries' alike."""

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

#: Longest text of one field; more would be somebody's payload or a stack of SQL.
_LONGEST_VALUE = 200


def configure_logs(level: str) -> None:
    """Send every log record of this process to stderr as one line of JSON.

    JSON escapes control characters, so a record cannot forge another one (CWE-117).
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_exception_text,
        _cut,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their INFO lines repeat ours, or are of interest only to whoever debugs the library.
    for noisy in ("alembic", "dramatiq", "pika"):
        logging.getLogger(noisy).setLevel(max(logging.getLevelName(level), logging.WARNING))


def _cut(_logger: object, _method: str, record: EventDict) -> EventDict:
    for name, value in record.items():
        if isinstance(value, str) and len(value) > _LONGEST_VALUE:
            record[name] = value[:_LONGEST_VALUE] + "..."
    return record


def _without_exception_text(_logger: object, _method: str, record: EventDict) -> EventDict:
    """Replace exc_info by the exception's type and the place it was raised at.

    The text of a driver's exception may quote the values of a row.
    """
    info: Any = record.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        record["error"] = type(error).__name__
        if trace is not None:
            record["at"] = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}"
    return record
