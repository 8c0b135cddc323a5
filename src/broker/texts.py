"""Shorten texts of others, and make them harmless for a terminal."""

import json


def shorten(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters; a shortened one ends in `…`."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shorten_in_the_middle(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters, shortened after its first third.

    The beginning and the end of an error say most: a traceback ends with what went wrong.
    """
    if len(text) <= longest:
        return text
    gap, first = " … ", longest // 3
    return f"{text[:first]}{gap}{text[first + len(gap) - longest :]}"


def replace_unprintable(text: str, replacement: str = "\N{REPLACEMENT CHARACTER}", *, keep: str = "") -> str:
    """Return a text with a replacement for each character that a terminal could act on.

    Args:
        text: A text of others.
        replacement: What stands for such a character.
        keep: Characters to keep all the same, such as line breaks.
    """
    return "".join(each if each.isprintable() or each in keep else replacement for each in text)


def escape_unprintable(text: str, *, keep: str = "") -> str:
    r"""Return a text with a JSON escape for each character that a terminal could act on, like `\u001b`.

    JSON stays the same JSON.

    Args:
        text: A text of others.
        keep: Characters to keep all the same, such as line breaks.
    """
    return "".join(each if each.isprintable() or each in keep else json.dumps(each)[1:-1] for each in text)


def one_line(text: str) -> str:
    """Return a text on one line, without characters that a terminal could act on."""
    return replace_unprintable(" ".join(text.split()))
