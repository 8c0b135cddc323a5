"""Generate the reference page about settings."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.inspect import FloatType, IntType, LiteralType, Metadata, Type, UnionType

from broker.settings import Settings, meanings, variable_of
from tests.support.reference import layout
from tests.support.reference.layout import code


def page() -> str:
    """Return the reference page about settings, as Markdown."""
    struct = msgspec.inspect.type_info(Settings)
    assert isinstance(struct, msgspec.inspect.StructType)
    types = {field.name: field.type for field in struct.fields}
    return layout.page(
        "Settings",
        "The service reads its settings from environment variables when it starts. `broker serve --help`"
        " shows the same list.",
        *(
            text
            for name, meaning in meanings().items()
            for text in (f"## {variable_of(name)}", _values(name, types[name]), meaning)
        ),
        "## BROKER_URL",
        "For clients. Default: `http://127.0.0.1:8000`.",
        "The URL of the broker. The Python client and the commands for a running service use it.",
        "## BROKER_KEY",
        "For clients. Not set by default.",
        "The key that clients send, if the service has keys.",
    )


def _values(name: str, kind: Type) -> str:
    default = getattr(Settings(), name)
    sentence = "Not set by default." if default is None else f"Default: {code(_text(default))}."
    allowed = " ".join(_allowed(kind))
    return f"{sentence} {allowed}".strip()


def _allowed(kind: Type) -> Iterator[str]:
    if isinstance(kind, Metadata):
        yield from _allowed(kind.type)
    elif isinstance(kind, UnionType):
        for each in kind.types:
            yield from _allowed(each)
    elif isinstance(kind, LiteralType):
        yield f"One of {', '.join(code(value) for value in kind.values)}."
    elif isinstance(kind, IntType | FloatType):
        if kind.ge is not None and kind.le is not None:
            yield f"From {kind.ge:,} to {kind.le:,}."
        elif kind.ge is not None:
            yield f"At least {kind.ge:,}."


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
