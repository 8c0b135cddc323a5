"""Pages by keyset: where a list goes on is said by its last row, so rows may come and go."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import crc32
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row

from broker.errors import ValidationFailed
from broker.schemas import FieldError

# What a page holds at most, as it is stored (which is compressed), beside its last item.
_MOST_BYTES = 8 * 2**20

Key = TypeVar("Key")
Found = TypeVar("Found")


def bounded(rows: str, *, size: str, order: str) -> str:
    """SQL for those of some rows, from the first on, that an answer has room for; at least one.

    Args:
        rows: SQL for the rows.
        size: SQL for how large one is, as it is stored: to know that takes no reading of it.
        order: SQL for their order.

    Returns:
        SQL for the rows, with one more column: `met`, how many there were.
    """
    return f"""
    select *
    from (select r.*, count(*) over () as met,
                 sum({size}) over (order by {order} rows unbounded preceding) - ({size}) as before
          from ({rows}) r) sized
    where before < {_MOST_BYTES}
    order by {order}"""


def met(found: Sequence[Row[Any]]) -> int:
    """How many rows there were, of which these are those that `bounded` had room for."""
    return int(found[0].met) if found else 0


def cut(
    found: Sequence[Found], limit: int, key: Callable[[Found], object], *, of: int | None = None
) -> tuple[Sequence[Found], str | None]:
    """A page of what was found, and where the next one begins.

    Args:
        found: What was asked for, up to one more than the page holds: that there is one says there is more.
        limit: How much the page holds.
        key: What says where to go on, of the last one on the page.
        of: How many there were, where not all of them had room.
    """
    items = found[:limit]
    if len(items) == max(len(found), of or 0):
        return items, None
    return items, seal(key(items[-1]))


def seal(key: object) -> str:
    """An opaque text that says where to go on; a checksum tells it from a garbled one."""
    body = msgspec.msgpack.encode(key)
    return urlsafe_b64encode(crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")


def unseal(text: str, form: type[Key], *, field: str) -> Key:
    """What `seal` was given.

    Args:
        text: The opaque text.
        form: The type of the key.
        field: The parameter that the text came in, for the error.

    Raises:
        ValidationFailed: The text is not one of ours.
    """
    try:
        sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if crc32(sealed[4:]).to_bytes(4, "big") == sealed[:4]:
            return msgspec.msgpack.decode(sealed[4:], type=form)
    except (ValueError, msgspec.MsgspecError):
        pass
    raise ValidationFailed([FieldError(field=field, message="is garbled: give it back as it was answered")])
