"""The reference pages are those that the code generates."""

import pytest

from tests.support.reference import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_the_one_that_the_code_generates(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make reference`"


def test_every_reference_page_is_generated() -> None:
    assert {page.name for page in FOLDER.iterdir()} == set(PAGES)
