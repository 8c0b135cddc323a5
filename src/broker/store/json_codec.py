"""JSON on its way to PostgreSQL and back: bytes that nothing decodes, as a value may have 32 MiB."""

from typing import Any

from msgspec import Raw

# PostgreSQL's binary jsonb is this byte, and then the text.
JSONB_VERSION = b"\x01"


async def set_codec(connection: Any) -> None:
    """Have a new connection pass every jsonb on as it is.

    It accepts what `rows.given` returns, or text, and it returns `Raw`.
    SQLAlchemy's own codec decodes and encodes each value, which costs a large one 100 ms on the event loop.

    Args:
        connection: SQLAlchemy's, around one of asyncpg.
    """
    await connection._connection.set_type_codec(
        "jsonb", encoder=_encode, decoder=_decode, schema="pg_catalog", format="binary"
    )


def _encode(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else JSONB_VERSION + value.encode()


def _decode(value: bytes) -> Raw:
    return Raw(value[1:])
