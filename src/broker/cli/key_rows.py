"""The rows of `broker keys list`."""

from collections.abc import Sequence
from datetime import datetime

Row = tuple[str, ...]


def key_row(name: str, roles: Sequence[str], *times: datetime | None) -> Row:
    """Return the cells of a key: its name, its roles, and the times of its life to the minute."""
    return (name, ",".join(roles), *(f"{at:%Y-%m-%d %H:%M}" if at else "" for at in times))
