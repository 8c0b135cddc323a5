"""Turn the output and the exit status of a program into a result or an error."""

import codecs
import signal
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Raw

from broker.client import FailedError
from broker.schemas.limits import LARGEST_BODY_BYTES

# The maximum request body of a broker, without the fields around the result.
MOST_BYTES = LARGEST_BODY_BYTES - 64 * 2**10
# An error has 4,000 characters. The rest is for the text before and after the lines.
_LAST_LINES_CHARS = 3_000


_WRITE_A_FILE = "Write a file instead, and print its path."
_TOO_BIG = (
    f"The output has more than {MOST_BYTES // 2**20} MiB, which is too large for a result. {_WRITE_A_FILE}"
)
_NO_TEXT = f"The output is neither JSON nor text (UTF-8 without NUL). {_WRITE_A_FILE}"


class Output:
    """The output of a program. If it is too large for a result, this calls `on_too_much`."""

    def __init__(self, on_too_much: Callable[[], object]) -> None:
        self._on_too_much = on_too_much
        self._bytes = bytearray()
        self.is_too_much = False

    def feed(self, data: bytes) -> None:
        """Add output."""
        if self.is_too_much:
            return
        self._bytes += data
        if len(self._bytes) > MOST_BYTES:
            self.is_too_much = True
            self._bytes.clear()
            self._on_too_much()

    def result(self) -> Raw | str | None:
        """Return the output: JSON with every digit, a text without its last newline, or None if it is empty.

        Raises:
            FailedError: The output cannot be a result. The task is not retried.
        """
        if self.is_too_much:
            raise FailedError(_TOO_BIG, retry=False)
        # Windows programs write it at the beginning of their output.
        printed = bytes(self._bytes).removeprefix(codecs.BOM_UTF8)
        try:
            text = printed.decode()
        except UnicodeDecodeError as error:
            raise FailedError(_NO_TEXT, retry=False) from error
        if not text or text.isspace():
            return None
        if _is_json(printed):
            return Raw(printed.strip())
        if "\0" in text:
            raise FailedError(_NO_TEXT, retry=False)
        text = text.removesuffix("\n").removesuffix("\r")
        if len(msgspec.json.encode(text)) > MOST_BYTES:
            raise FailedError(_TOO_BIG, retry=False)
        return text


def _is_json(printed: bytes) -> bool:
    try:
        msgspec.json.decode(printed, type=Raw)
    except msgspec.MsgspecError:
        return False
    except RecursionError:
        pass  # the broker refuses this depth, with its own message
    return True


def failure(status: int, last_lines: Sequence[str]) -> str:
    """Return the error of a failed job: the end of its program, and the last lines of stderr."""
    return "\n".join([_ending(status), "\n".join(last_lines)[-_LAST_LINES_CHARS:]]).rstrip()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
