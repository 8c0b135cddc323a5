"""Batches have items in order and are bounded in number and size. Halves split a failed batch."""

import pytest

from broker.batches import batches, halves


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1], [[1]]),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([4, 4, 4], [[4, 4], [4]]),
        ([1, 99, 1], [[1], [99], [1]]),
    ],
)
def test_batches_are_bounded_in_number_and_size(sizes: list[int], expected: list[list[int]]) -> None:
    assert list(batches(sizes, 3, size=lambda size: size, most_bytes=10)) == expected


def test_batches_are_created_only_on_demand() -> None:
    numbers = iter(range(10))
    assert next(batches(numbers, 2)) == [0, 1]
    assert next(numbers) == 3


def test_halves_have_all_items_in_order() -> None:
    assert halves([1, 2, 3]) == ([1], [2, 3])
    assert halves([1, 2]) == ([1], [2])
