"""Generate the reference page about error codes."""

from inspect import cleandoc
from itertools import groupby

from broker.errors import BrokerError
from tests.support.reference import layout
from tests.support.reference.layout import listed


def page() -> str:
    """Return the reference page about errors, as Markdown."""
    classes = _classes(BrokerError)
    lowest = {error.code: error.status for error in sorted(classes, key=lambda error: -error.status)}
    classes.sort(key=lambda error: (lowest[error.code], error.code, error.status))
    by_code = groupby(classes, key=lambda error: error.code)
    return layout.page(
        "Error codes",
        "Every error of the HTTP API is a problem document (RFC 9457, `application/problem+json`) with"
        " the fields `type`, `title`, `status`, `detail`, `instance` and `code`. Programs should look at"
        " `code`, which does not change. `detail` is a sentence for people.",
        "[Troubleshooting](../operate/troubleshooting.md) starts from what you see.",
        *(_section(name, list(group)) for name, group in by_code),
    )


def _classes(base: type[BrokerError]) -> list[type[BrokerError]]:
    return [base, *(each for subclass in base.__subclasses__() for each in _classes(subclass))]


def _section(name: str, classes: list[type[BrokerError]]) -> str:
    statuses = " or ".join(sorted({str(error.status) for error in classes}))
    details = list(dict.fromkeys(_paragraphs(error)[0] for error in classes))
    these = "this text" if len(details) == 1 else "one of these texts"
    advice = dict.fromkeys(text for error in classes for text in _paragraphs(error)[1:])
    return "\n\n".join(
        [
            f"## {name}",
            f"HTTP status {statuses}. The `detail` describes the error in your request, or is {these}:",
            listed(details),
            *advice,
        ]
    )


def _paragraphs(error: type[BrokerError]) -> list[str]:
    paragraphs = cleandoc(error.__doc__ or "").split("\n\n")
    return [" ".join(text.split()) for text in paragraphs if not text.startswith("Args:")]
