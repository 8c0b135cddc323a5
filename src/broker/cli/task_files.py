"""Tasks from files of tasks, and for files; each is checked, so that all can be before any is sent."""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import click
import msgspec
from msgspec import Raw

from broker.cli.values import BYTE_ORDER_MARK, standard_input
from broker.http import json_limits
from broker.schemas.tasks import NewTask
from broker.settings import Settings

# What is larger is a task a line, whatever it looks like.
_LARGEST_TASK = 256 * 2**20
# Limits that are a broker's to set are its to tell; here is found what none of them takes.
_WIDEST = Settings(max_depth=900, max_match_bytes=sys.maxsize, max_text_chars=sys.maxsize)

_fields = msgspec.json.Decoder(dict[str, Raw])
_task = msgspec.json.Decoder(NewTask)
_any = msgspec.json.Decoder(Raw)


class Given(NamedTuple):
    """A task to submit.

    Args:
        fields: As the API takes it.
        where: Where it came from, for people.
        file: The file that it is for, if it is.
    """

    fields: Mapping[str, Any]
    where: str = ""
    file: str | None = None


def checked(given: Given) -> Given:
    """See that no broker would refuse the task, whatever it is set to.

    Raises:
        click.ClickException: It would be; the message says where it came from.
    """
    try:
        body = msgspec.json.encode(given.fields)
        problem = next(json_limits.problems(_task.decode(body), _WIDEST), None)
    except RecursionError:
        raise _bad(given.where, "is nested too deep") from None
    except msgspec.ValidationError as error:
        raise _bad(given.where, _plainly(error)) from None
    if problem:
        raise _bad(given.where, f"{problem.field} {problem.message}")
    return given


@contextlib.contextmanager
def task_file(name: str, defaults: Mapping[str, Any]) -> Iterator["TaskFile"]:
    """A file of tasks that can be gone through as often as it takes.

    Args:
        name: Its path; `-`: standard input.
        defaults: Fields for tasks that have not got them.

    Raises:
        click.ClickException: It cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = standard_input() if name == "-" else stack.enter_context(Path(name).open("rb"))
            if not file.seekable():
                # Kept on disk: it may be larger than memory.
                kept = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, kept)
                file = kept
        except OSError as error:
            raise _bad(name, f"cannot be read: {error.strerror}") from error
        yield TaskFile(file, "standard input" if name == "-" else name, defaults)


class TaskFile:
    """A file of tasks: one a line, or a JSON array of them, or one alone.

    Args:
        file: The file; it can be read again from its beginning.
        name: What it is called.
        defaults: Fields for tasks that have not got them.
    """

    def __init__(self, file: BinaryIO, name: str, defaults: Mapping[str, Any]) -> None:
        self._file = file
        self._name = name
        self._defaults = defaults

    def __iter__(self) -> Iterator[Given]:
        """Go through the tasks, each checked.

        Raises:
            click.ClickException: One cannot be; the message says on which line.
        """
        if self._document is not None:
            for number, item in enumerate(self._document, start=1):
                yield self._given(bytes(item), f"{self._name}, item {number}")
            return
        for number, line in enumerate(self._lines(), start=1):
            if line.strip():
                yield self._given(line, f"{self._name}, line {number}")

    def _given(self, text: bytes, where: str) -> Given:
        try:
            str(text, "utf-8")
            fields = _fields.decode(text)
        except UnicodeDecodeError:
            raise _bad(where, "is not UTF-8") from None
        except msgspec.ValidationError:
            raise _bad(where, 'is no JSON object; a task is one, like {"needs": 1}') from None
        except msgspec.DecodeError as error:
            if json_limits.lone_surrogate(text) is not None:
                raise _bad(where, json_limits.LONE_SURROGATE) from None
            raise _no_json(where, error) from None
        except RecursionError:
            raise _bad(where, "is nested too deep") from None
        if bytes(fields.get("id", b"")) == b"null":
            del fields["id"]
        return checked(Given({**self._defaults, **fields}, where))

    @cached_property
    def _document(self) -> list[Raw] | None:
        """The tasks of a file that is one JSON document; None: it has a task a line."""
        first = next((line for line in self._lines() if line.strip()), b"").strip()
        is_array = first.startswith(b"[")
        if not is_array and (not first.startswith(b"{") or _is_json(first) or self._size() > _LARGEST_TASK):
            return None
        text = b"".join(self._lines())
        try:
            items: list[Raw] = msgspec.json.decode(text, type=list[Raw]) if is_array else [_any.decode(text)]
        except msgspec.DecodeError as error:
            found = re.search(r" \(byte (\d+)\)", str(error))
            line = text.count(b"\n", 0, int(found[1]) if found else len(text.rstrip())) + 1
            raise _no_json(f"{self._name}, line {line}", error) from None
        except RecursionError:
            raise _bad(self._name, "is nested too deep") from None
        return items

    def _lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        for number, line in enumerate(self._file):
            yield line if number else line.removeprefix(BYTE_ORDER_MARK)

    def _size(self) -> int:
        return self._file.seek(0, os.SEEK_END)


def for_files(paths: Iterable[str], fields: Mapping[str, Any], *, once: bool) -> list[Given]:
    """A task for each file, each file once.

    Args:
        paths: Of the files.
        fields: What all of them have.
        once: Whether the id is made from the file, so that it is the same as long as the file is.

    Raises:
        click.ClickException: A file cannot be named in JSON, or is not there any more.
    """
    tasks = []
    for path in dict.fromkeys(Path(os.path.abspath(each)) for each in paths):  # noqa: PTH100 - links stay
        try:
            str(path).encode()
            id_ = {"id": _id_of(path, fields["needs"])} if once else {}
        except UnicodeEncodeError:
            raise _bad(repr(str(path)), "the name is not UTF-8, which JSON has to be") from None
        except OSError as error:
            raise _bad(str(path), f"cannot be read: {error.strerror}") from None
        file = str(path)
        tasks.append(checked(Given({**fields, **id_, "payload": {"file": file}}, file, file)))
    return tasks


def _id_of(path: Path, needs: Raw) -> str:
    """An id that is the same for the same path, size, time of last change and needs.

    The name in front is for people; it is the 160 bits of the hash that keep files apart.
    """
    found = path.stat()
    told = [str(path), found.st_size, found.st_mtime_ns, Raw(msgspec.json.format(needs, indent=-1))]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).lstrip("._-")[:80]
    return f"{name or 'file'}:{hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:40]}"


def _is_json(text: bytes) -> bool:
    try:
        _any.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _plainly(error: Exception) -> str:
    """The decoder's message, with the field in front."""
    message, _, place = str(error).removeprefix("JSON is malformed: ").partition(" - at `$.")
    if "matching regex" in message:
        message = "has to be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -, a letter or a digit first"
    return f"{place.rstrip('`')}: {message}" if place else message


def _no_json(where: str, error: Exception) -> click.ClickException:
    why = re.sub(r" \(byte \d+\)", "", _plainly(error))
    return _bad(where, f"is no JSON: {why} (a file has one task a line, or is one JSON array of tasks)")


def _bad(where: str, what: str) -> click.ClickException:
    return click.ClickException(f"{where}: {what}" if where else what)
