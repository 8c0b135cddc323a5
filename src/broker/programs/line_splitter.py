"""Split bytes into lines of text as they arrive."""

import codecs

from broker.texts import shorten


class LineSplitter:
    r"""Splits a stream of bytes into lines.

    `\r` ends a line like `\n`, because progress bars use it. The splitter drops empty lines and a byte order
    mark at the beginning, and replaces NUL and bytes that are not UTF-8. It shortens long lines to limit its
    memory.

    Args:
        longest: The maximum length of a line, in characters; a shortened line ends in `…`.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._unfinished = ""

    def feed(self, data: bytes) -> list[str]:
        """Add bytes, and return the lines that they complete."""
        return self._lines(self._decoder.decode(data))

    def end(self) -> list[str]:
        """Return the last line if no newline ended it."""
        return self._lines(self._decoder.decode(b"", final=True) + "\n")

    def _lines(self, text: str) -> list[str]:
        parts = text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\r", "\n").split("\n")
        parts[0] = self._unfinished + parts[0]
        # With one character more than allowed, `shorten` sees that it must shorten the line.
        self._unfinished = parts.pop()[: self._longest + 1]
        return [shorten(part.rstrip(), self._longest) for part in parts if part and not part.isspace()]
