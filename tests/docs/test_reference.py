"""The reference pages are those that the code generates."""

import pytest

from tests.support.reference import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_each_reference_page_equals_the_generated_page(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make reference`"


def test_every_reference_page_is_generated() -> None:
    assert {page.name for page in FOLDER.iterdir()} == set(PAGES)
