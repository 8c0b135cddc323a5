"""Divide items into batches, and a failed batch into halves."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def batches(
    items: Iterable[Item],
    most: int,
    *,
    size: Callable[[Item], int] = lambda _: 0,
    most_bytes: float = math.inf,
) -> Iterator[list[Item]]:
    """Divide items into batches, in order.

    Args:
        items: The items.
        most: The maximum number of items in a batch.
        size: Returns the size of an item in bytes.
        most_bytes: The maximum size of a batch in bytes. A larger item gets a batch of its own.
    """
    batch: list[Item] = []
    batch_bytes = 0
    for item in items:
        item_bytes = size(item)
        if batch and (len(batch) == most or batch_bytes + item_bytes > most_bytes):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(item)
        batch_bytes += item_bytes
    if batch:
        yield batch


def halves(batch: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Divide a batch that failed because of one of its items. The half without that item can succeed."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
