"""Format texts of users, durations and counts for `broker top`."""

from rich.text import Text

from broker.texts import one_line

# Enough for any line of a screen.
_LONGEST_CHARS = 300


def safe(text: str, style: str = "") -> Text:
    """Return a text of a user as one line without control characters and markup."""
    return line(one_line(text[:_LONGEST_CHARS]), style)


def line(text: str = "", style: str = "") -> Text:
    """Return a line that ends with an ellipsis if it is wider than the screen."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def count(number: int, noun: str) -> str:
    """Return a count with its noun, like `1 tool` and `2,000 tools`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def span(seconds: float) -> str:
    """Return a duration in its two largest units, like `3 min 20 s`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400:,} d {whole % 86_400 // 3600} h"
