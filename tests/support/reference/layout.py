"""Compose Markdown pages."""

from collections.abc import Iterable, Sequence

_GENERATED = "<!-- Generated from the code by `make reference`. Do not edit. -->"


def page(title: str, introduction: str, *sections: str) -> str:
    """Return a generated page.

    Args:
        title: The title.
        introduction: The first paragraphs.
        sections: The rest of the page, in blocks that blank lines separate.
    """
    return "\n\n".join([f"# {title}", _GENERATED, introduction, *(text for text in sections if text)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, or nothing if it has no rows."""
    lines = [_row(cells) for cells in rows]
    return "\n".join([_row(head), _row(["---"] * len(head)), *lines]) if lines else ""


def _row(cells: Sequence[object]) -> str:
    texts = (" ".join(str(cell).split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(texts)} |"


def code(value: object) -> str:
    """Return a value as inline code."""
    return f"`{value}`"


def listed(texts: Iterable[str]) -> str:
    """Return a list with a bullet for each text."""
    return "\n".join(f"- {text}" for text in texts)
