"""Prepare the standard streams of a command for a closed stream, a full disk or a narrow encoding."""

import codecs
import contextlib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

_MODES = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
_ERRORS = "broker.output"
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _BestEffort:
    """Standard error that ignores messages which it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Run the block with usable standard streams, and end the process with an error message if they fail.

    If a standard descriptor is closed, the next file or connection that the process opens would get its
    number, and then the data of the stream. So this function opens closed descriptors such that reading
    standard input or writing standard output fails.

    Raises:
        SystemExit: The command has ended, could not write its output, or could not decode an argument.
    """
    for number, mode in _MODES.items():
        _occupy(number, mode)
    # A stream that was closed when Python started is None.
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ERRORS)
    before = sys.stderr
    sys.stderr = _BestEffort(before)
    try:
        yield from _clear_errors()
    finally:
        sys.stderr = before


def _clear_errors() -> Iterator[None]:
    try:
        yield
        status: Any = 0
    except SystemExit as end:
        status = end.code
    except UnicodeEncodeError as error:
        status = _fail(_not_utf8(error))
    except OSError as error:
        status = _fail(_described(error))
    if problem := _output_problem():
        status = status or _fail(problem)
        discard_output()
    sys.exit(status)


def _fail(message: str) -> int:
    click.echo(f"Error: {message}", err=True)
    return 1


def _output_problem() -> str | None:
    """Flush standard output, and return the error message if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _described(error)
    return None


def _described(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if error.errno == errno.EBADF:
        return "Standard output is closed."
    return f"Cannot write the output: {error.strerror}." if error.errno in _WRITE_ERRORS else f"{error}."


def discard_output() -> None:
    """Redirect standard output to /dev/null, so that the interpreter does not fail again when it flushes."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _not_utf8(error: UnicodeEncodeError) -> str:
    # Python decodes bytes that are not UTF-8 into surrogates.
    arguments = [word for word in sys.argv[1:] if re.search("[\ud800-\udfff]", word)]
    culprit = f"The argument {arguments[0]!r}" if arguments else f"The text {error.object[:100]!r}"
    return f"{culprit} is not UTF-8."


def _occupy(number: int, mode: int) -> None:
    """Open a closed standard descriptor in the wrong mode, so that using it fails."""
    with contextlib.suppress(OSError):
        os.fstat(number)
        return
    opened = os.open(os.devnull, mode)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Encode bytes of file names unchanged, and characters outside the encoding as in JSON: \u20ac."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    encoded = b""
    for character in error.object[error.start : error.end]:
        byte = ord(character) - 0xDC00
        encoded += bytes([byte]) if 0x80 <= byte <= 0xFF else json.dumps(character)[1:-1].encode()
    return encoded, error.end


codecs.register_error(_ERRORS, _replace)
