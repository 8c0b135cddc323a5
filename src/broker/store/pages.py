"""Keyset pagination: a page begins after the key of the previous page's last row, so rows may come and go."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import crc32
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

import msgspec
from sqlalchemy import TextClause

from broker.errors import ValidationFailed
from broker.schemas.problems import FieldError
from broker.store.sql_connection import SqlConnection, SqlRow

#: The maximum size of the JSON values in a response or a shared read, without its last item, in bytes.
MOST_BYTES = 8 * 2**20

#: The maximum number of rows that a page examines to find those that it returns. It limits the cost of a
#: filter without an index. Such a page may be short or empty and still have a next page.
MOST_EXAMINED = 5_000

_MET = attrgetter("met")

Key = TypeVar("Key")
Item = TypeVar("Item")


def bounded(rows: str, *, size: str, order: str, most: str = str(MOST_BYTES)) -> str:
    """Return SQL for the first of some rows: those that fit in a response, and at least one.

    Args:
        rows: SQL for the rows.
        size: SQL for the size of a row `r` in the response.
        order: SQL for their order.
        most: SQL for the maximum bytes of the response without its last row.

    Returns:
        SQL for the rows with two more columns: `fits`, which is true, and `met`, for the function `met`.
    """
    # One window serves both columns: `lead` shows whether more rows follow, so the query needs no count.
    return f"""
    select *
    from (select r.*, coalesce(sum(cast({size} as double precision)) over w, 0) < {most} as fits,
                 row_number() over w + lead(1, 1, 0) over w as met
          from ({rows}) r
          window w as ({_before(order)})) sized
    where fits
    order by {order}"""


def kept(rows: str, keep: Sequence[str], *, order: str) -> str:
    """Return SQL for at most `:limit` rows that meet further conditions, among the first `MOST_EXAMINED`.

    An index finds the rows in their order. Each condition applies to a row `t`.
    """
    if not keep:
        return f"{rows} order by {order} limit :limit"
    return f"""
    select *
    from ({rows} order by {order} limit {MOST_EXAMINED}) t
    where {" and ".join(keep)}
    order by {order}
    limit :limit"""


def last_examined(rows: str, keep: Sequence[str], *, order: str, key: str) -> str:
    """Return SQL for the key where `kept` stopped, if it has fewer than `:limit` rows and there are more.

    The rows of `kept` must be in the CTE `page` of the same statement.
    """
    if not keep:
        return f"select {key} from ({rows}) t limit 0"
    return f"""
    select {key}
    from ({rows}) t
    where (select count(*) from page) < :limit
    order by {order}
    limit 1 offset {MOST_EXAMINED - 1}"""


def fits(size: str, *, order: str) -> str:
    """Return an SQL condition: a row of this size fits in a response after the rows before it in an order."""
    return f"coalesce(sum(cast({size} as double precision)) over ({_before(order)}), 0) < {MOST_BYTES}"


def _before(order: str) -> str:
    return f"order by {order} rows between unbounded preceding and 1 preceding"


def is_cut(rows: Sequence[SqlRow]) -> bool:
    """Return whether `bounded` left out some of the rows."""
    return met(rows) > len(rows)


def met(rows: Sequence[SqlRow]) -> int:
    """Return the number of rows up to the first one that `bounded` left out."""
    return max(map(_MET, rows), default=0)


def cut(
    items: Sequence[Item],
    limit: int,
    key: Callable[[Item], object],
    *,
    of: int | None = None,
    examined: object = None,
) -> tuple[Sequence[Item], str | None]:
    """Return the items of a page, and the cursor of the next one.

    Args:
        items: The items read, up to one more than the page holds. One more means that there is a next page.
        limit: The maximum number of items on the page.
        key: Returns the key of an item.
        of: The number of items before `bounded` left out some.
        examined: The key of the last row that the statement examined, if there may be more after it.
    """
    count = max(len(items), of or 0)
    items = items[:limit]
    if len(items) < count:
        return items, seal(key(items[-1]))
    return items, None if examined is None else seal(examined)


def read_listed(
    connection: SqlConnection,
    statement: TextClause,
    values: Mapping[str, object],
    limit: int,
    key: Callable[[SqlRow], object],
) -> tuple[Sequence[SqlRow], str | None]:
    """Read a page of a list, and return its rows and the cursor of the next page.

    The statement consists of `bounded`, `kept` and `last_examined`. Its rows have `examined` and an `id`. If
    the page is empty, there is one row whose `id` is null.
    """
    read = connection.execute(statement, {**values, "limit": limit + 1}).all()
    items = [row for row in read if row.id is not None]
    return cut(items, limit, key, of=met(items), examined=read[0].examined)


def seal(key: object) -> str:
    """Return a cursor: an opaque text with a key and a checksum, which detects a damaged cursor."""
    body = msgspec.msgpack.encode(key)
    return urlsafe_b64encode(crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")


def unseal(cursor: str, key: type[Key], *, field: str) -> Key:
    """Return the key of a cursor, which has the type `key`.

    Raises:
        ValidationFailed: The text in the parameter `field` is not a cursor of this broker.
    """
    try:
        sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        if crc32(sealed[4:]).to_bytes(4, "big") == sealed[:4]:
            return msgspec.msgpack.decode(sealed[4:], type=key)
    except (ValueError, msgspec.MsgspecError):
        pass
    message = "is not a valid cursor: send it exactly as the broker returned it"
    raise ValidationFailed([FieldError(field=field, message=message)])
