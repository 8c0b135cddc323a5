"""Configure logs: one line for each event, as text on a terminal and as JSON elsewhere."""

import logging
import sys

import structlog

from broker.texts import escape_unprintable

_MULTILINE = {"event", "exception"}


def _printable(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Escape texts of clients, such as ids, because a terminal interprets control characters."""
    return {
        name: escape_unprintable(value) if isinstance(value, str) and name not in _MULTILINE else value
        for name, value in event.items()
    }


def configure(level: str = "info", **always: object) -> None:
    """Make structlog and the standard logging write to standard error, with `always` in each line."""

    def add(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**always, **event}

    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        add,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    on_terminal = sys.stderr.isatty()
    last: list[structlog.types.Processor] = (
        # No local variables in tracebacks, because they contain payloads and tokens.
        [_printable, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if on_terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("broker").setLevel(level.upper())
