"""Bytes, as they come, to lines of text."""

import codecs

from broker.texts import shorten


class Lines:
    r"""The lines of a stream of bytes.

    `\r` ends a line as `\n` does: so progress bars come as lines. Empty ones are left out, bytes that are no
    UTF-8 and NUL replaced, a byte order mark at the beginning removed, and what is longer than a line may be
    is cut, so that memory is bounded.

    Args:
        longest: How many characters of a line are kept; a cut one ends in `…`.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._begun = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that end in these bytes."""
        return self._lines(self._decoder.decode(data))

    def end(self) -> list[str]:
        """The last line, where nothing ended it."""
        return self._lines(self._decoder.decode(b"", final=True) + "\n")

    def _lines(self, text: str) -> list[str]:
        parts = text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\r", "\n").split("\n")
        parts[0] = self._begun + parts[0]
        # One character more than a line may have, to know that it is to be cut.
        self._begun = parts.pop()[: self._longest + 1]
        return [shorten(part.rstrip(), self._longest) for part in parts if part and not part.isspace()]
