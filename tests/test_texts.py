"""Untrusted texts are shortened, and contain no characters that a terminal could interpret."""

import json

from hypothesis import given
from hypothesis import strategies as st

from broker.texts import escape_unprintable, one_line, replace_unprintable, shorten, shorten_in_the_middle


@given(st.text(), st.integers(10, 40))
def test_shortened_text_has_the_requested_length(text: str, longest: int) -> None:
    for short in (shorten(text, longest), shorten_in_the_middle(text, longest)):
        assert len(short) == min(len(text), longest)
        assert (short == text) == (len(text) <= longest) or "…" in text


def test_text_shortened_in_the_middle_keeps_its_beginning_and_end() -> None:
    assert shorten_in_the_middle("first line, many lines, ValueError: last", 20) == "first  … Error: last"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert escape_unprintable(text).isprintable()
    assert replace_unprintable(text).isprintable()
    assert one_line(text).isprintable()
    assert len(replace_unprintable(text)) == len(text)


@given(st.recursive(st.text(), lambda values: st.lists(values) | st.dictionaries(st.text(), values)))
def test_escaped_json_has_the_same_value(value: object) -> None:
    assert json.loads(escape_unprintable(json.dumps(value, ensure_ascii=False))) == value


def test_one_line_has_single_spaces_between_words() -> None:
    assert one_line(" too\x1b[31m\r\nbig\t ") == "too\N{REPLACEMENT CHARACTER}[31m big"


def test_characters_to_keep_are_not_replaced() -> None:
    assert escape_unprintable("a\tb\x1b[2J\n", keep="\n\t") == "a\tb\\u001b[2J\n"
    assert replace_unprintable("a\nb\x07", "?", keep="\n") == "a\nb?"
