"""JSON on its way to PostgreSQL and back: bytes that nothing decodes, because a value may have 32 MiB."""

from typing import Any

from msgspec import Raw

# PostgreSQL's binary jsonb is this byte, and then the text; its json is the text.
_JSONB_VERSION = b"\x01"


def pass_on(dialect: Any) -> None:
    """Have connections pass json and jsonb on as they are: they accept `Raw` or text, and return `Raw`.

    SQLAlchemy's own codecs decode and encode each value, which costs a large one 100 ms on the event loop.

    Args:
        dialect: SQLAlchemy's dialect for asyncpg, which has these methods to be overridden.
    """
    dialect.setup_asyncpg_json_codec = _set_json_codec
    dialect.setup_asyncpg_jsonb_codec = _set_jsonb_codec


async def _set_json_codec(connection: Any) -> None:
    await connection._connection.set_type_codec(
        "json", encoder=_bytes, decoder=Raw, schema="pg_catalog", format="binary"
    )


async def _set_jsonb_codec(connection: Any) -> None:
    await connection._connection.set_type_codec(
        "jsonb", encoder=_jsonb, decoder=_of_jsonb, schema="pg_catalog", format="binary"
    )


def _bytes(value: Raw | str) -> Raw | bytes:
    return value.encode() if isinstance(value, str) else value


def _jsonb(value: Raw | str) -> bytes:
    return b"".join((_JSONB_VERSION, _bytes(value)))


def _of_jsonb(value: bytes) -> Raw:
    return Raw(value[1:])
