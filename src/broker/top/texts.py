"""Words for what is shown: spans of time, counts, and what others have written."""

from rich.text import Text

# Of what others have written no line has room for more.
_MOST_CHARACTERS = 300


def safe(written: str, style: str = "") -> Text:
    """What somebody else has written, as one line that no terminal acts upon, and rich reads no markup in.

    Args:
        written: Whatever it is.
        style: How it looks.
    """
    shown = (
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in written[:_MOST_CHARACTERS]
    )
    return line("".join(shown), style)


def line(text: str = "", style: str = "") -> Text:
    """A line that is cut off where the screen ends."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def count(number: int, noun: str) -> str:
    """Like `1 tool` and `2,000 tools`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def span(seconds: float) -> str:
    """A span of time by its two largest units, like `3 min 20 s`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400:,} d {whole % 86_400 // 3600} h"
