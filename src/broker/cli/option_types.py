"""Types of command line options and arguments: durations, times and JSON."""

import codecs
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec
from msgspec import Raw

from broker.texts import shorten

# Windows programs write it at the beginning of files and output.
BYTE_ORDER_MARK = codecs.BOM_UTF8

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(_UNITS)}]?)", re.ASCII)


class TextType(click.ParamType[str]):
    """A text that can be sent to a broker, because its bytes are UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text unchanged."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not UTF-8.", param)
        return str(value)


def require_utf8(command: click.Command) -> None:
    """Let a command and its subcommands refuse texts that are not UTF-8, with the name of the option."""
    for parameter in command.params:
        if parameter.type is click.STRING:
            parameter.type = TextType()
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            require_utf8(subcommand)


class DurationType(click.ParamType[float]):
    """A duration within limits, in seconds: a number of seconds, or a number with a unit, like `10m`."""

    name = "seconds"

    def __init__(self, lowest: float = 0.0, highest: float = math.inf) -> None:
        self._lowest = lowest
        self._highest = highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the duration in seconds."""
        if isinstance(value, float):
            return value
        seconds = _seconds(str(value))
        if seconds is None:
            self.fail(
                f"{value!r} is not a duration. Write a number of seconds, or a number with s, m, h, d or w.",
                param,
            )
        if not self._lowest <= seconds <= self._highest:
            self.fail(f"{value!r} is not between {self._lowest:g} and {self._highest:g} seconds.", param)
        return seconds


class MomentType(click.ParamType[datetime]):
    """A time, a date, or a duration from now, or before now (`ago`)."""

    name = "time"

    def __init__(self, *, ago: bool) -> None:
        self._sign = -1 if ago else 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time. Without an offset, it is in this machine's time zone."""
        if isinstance(value, datetime):
            return value
        try:
            seconds = _seconds(value) if value[-1:] in _UNITS else None
            if seconds is not None:
                return datetime.now(UTC) + self._sign * timedelta(seconds=seconds)
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            duration = "2h (two hours ago), 7d" if self._sign < 0 else "10m (in ten minutes), 2h"
            examples = f"2026-07-02T09:30:00Z, 2026-07-02, or {duration}"
            self.fail(f"{value!r} is not a time. Examples: {examples}.", param)


class JsonType(click.ParamType[Raw]):
    """A JSON value, `@FILE` for a file that contains one, or `-` for `stdin`. Numbers keep every digit."""

    name = "json"

    def __init__(self, *, stdin: bool = False) -> None:
        self._stdin = stdin

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Raw:
        """Return the value unchanged if it is JSON."""
        if isinstance(value, Raw):
            return value
        text = self._read(str(value), param)
        try:
            str(text, "utf-8")
            return Raw(bytes(msgspec.json.decode(text, type=Raw)).strip())
        except UnicodeDecodeError as error:
            self.fail(f"The JSON is not UTF-8. Byte {error.start} cannot be decoded.", param)
        except RecursionError:
            self.fail("The JSON is nested too deeply.", param)
        except msgspec.DecodeError as error:
            why = str(error).removeprefix("JSON is malformed: ")
            word = re.fullmatch(r"\w[\w./ -]*", str(value))
            hint = f""" A JSON text needs quotes: '"{value}"'.""" if word else ""
            self.fail(f"{shorten(text.decode('utf-8', 'replace'), 41)!r} is not JSON: {why}.{hint}", param)

    def _read(self, value: str, param: click.Parameter | None) -> bytes:
        if value == "-" and self._stdin:
            return standard_input().read().removeprefix(BYTE_ORDER_MARK)
        if value.startswith("@"):
            try:
                return Path(value[1:]).read_bytes().removeprefix(BYTE_ORDER_MARK)
            except OSError as error:
                self.fail(f"Cannot read {value[1:]!r}: {error.strerror}.", param)
        return value.encode("utf-8", "surrogateescape")


def standard_input() -> BinaryIO:
    """Return standard input, unless it is closed."""
    if sys.stdin is None:
        raise click.UsageError("Standard input is closed. Read from a file instead.")
    return sys.stdin.buffer


def _seconds(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _UNITS[match[2] or "s"] if match else None
