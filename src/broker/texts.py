"""Shorten untrusted texts, and make them harmless for a terminal."""

import json


def shorten(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters. A shortened text ends in `…`."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shorten_in_the_middle(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters, shortened after its first third.

    The beginning and the end of an error are the most useful parts. A traceback ends with the error message.
    """
    if len(text) <= longest:
        return text
    gap, first = " … ", longest // 3
    return f"{text[:first]}{gap}{text[first + len(gap) - longest :]}"


def replace_unprintable(text: str, replacement: str = "\N{REPLACEMENT CHARACTER}", *, keep: str = "") -> str:
    """Return a text with a replacement for each character that a terminal could interpret.

    Args:
        text: An untrusted text.
        replacement: The replacement for each such character.
        keep: Characters to keep, such as line breaks.
    """
    return "".join(each if each.isprintable() or each in keep else replacement for each in text)


def escape_unprintable(text: str, *, keep: str = "") -> str:
    r"""Return a text with a JSON escape for each character that a terminal could interpret, like `\u001b`.

    JSON text keeps its value.

    Args:
        text: An untrusted text.
        keep: Characters to keep, such as line breaks.
    """
    return "".join(each if each.isprintable() or each in keep else json.dumps(each)[1:-1] for each in text)


def one_line(text: str) -> str:
    """Return a text on one line, without characters that a terminal could interpret."""
    return replace_unprintable(" ".join(text.split()))
