"""Read and check the tasks that `broker submit` sends: the tasks of a file, or one for each file."""

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

from broker.cli.option_types import BYTE_ORDER_MARK, standard_input
from broker.http import json_limits
from broker.schemas.tasks import NewTask
from broker.settings import Settings

# Larger files are never read as one JSON document.
_LARGEST_DOCUMENT = 256 * 2**20
# The command does not know the limits of the broker, so it leaves their check to the broker.
_WIDEST = Settings(max_depth=900, max_match_bytes=sys.maxsize, max_text_chars=sys.maxsize)

_fields = msgspec.json.Decoder(dict[str, Raw])
_new_task = msgspec.json.Decoder(NewTask)
_any = msgspec.json.Decoder(Raw)


class TaskInput(NamedTuple):
    """A task to submit: the fields of the request, its place in the input, and its file if it is for one."""

    fields: Mapping[str, Any]
    where: str = ""
    file: str | None = None


def check_task(task: TaskInput) -> TaskInput:
    """Return a task. If every broker would refuse it, raise an error that names its place in the input."""
    try:
        body = msgspec.json.encode(task.fields)
        problem = next(json_limits.find_problems(_new_task.decode(body), _WIDEST), None)
    except RecursionError:
        raise _bad(task.where, "is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _bad(task.where, _message_of(error)) from None
    if problem:
        raise _bad(task.where, f"{problem.field} {problem.message}")
    return task


@contextlib.contextmanager
def open_task_file(name: str, defaults: Mapping[str, Any]) -> Iterator["TaskFile"]:
    """Open a file of tasks, or standard input (`-`). `defaults` are fields for tasks that lack them."""
    with contextlib.ExitStack() as stack:
        try:
            file = standard_input() if name == "-" else stack.enter_context(Path(name).open("rb"))
            if not file.seekable():
                # A copy on disk: the input may be larger than memory.
                copy = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, copy)
                file = copy
        except OSError as error:
            raise _bad(name, f"cannot be read: {error.strerror}") from error
        yield TaskFile(file, "standard input" if name == "-" else name, defaults)


class TaskFile:
    """A file of tasks: one task per line, one JSON array of tasks, or one task. Iterating checks each task.

    Args:
        file: The file; it must be seekable.
        name: The name for error messages.
        defaults: Fields for tasks that lack them.
    """

    def __init__(self, file: BinaryIO, name: str, defaults: Mapping[str, Any]) -> None:
        self._file = file
        self._name = name
        self._defaults = defaults

    def __iter__(self) -> Iterator[TaskInput]:
        if self._document is not None:
            for number, item in enumerate(self._document, start=1):
                yield self._parse(bytes(item), f"{self._name}, item {number}")
            return
        for number, line in enumerate(self._lines(), start=1):
            if line.strip():
                yield self._parse(line, f"{self._name}, line {number}")

    def _parse(self, text: bytes, where: str) -> TaskInput:
        try:
            str(text, "utf-8")
            fields = _fields.decode(text)
        except UnicodeDecodeError:
            raise _bad(where, "is not UTF-8") from None
        except msgspec.ValidationError:
            raise _bad(where, 'is not a JSON object; a task looks like {"needs": 1}') from None
        except msgspec.DecodeError as error:
            if json_limits.lone_surrogate(text) is not None:
                raise _bad(where, json_limits.LONE_SURROGATE) from None
            raise _no_json(where, error) from None
        except RecursionError:
            raise _bad(where, "is nested too deeply") from None
        if bytes(fields.get("id", b"")) == b"null":
            del fields["id"]
        return check_task(TaskInput({**self._defaults, **fields}, where))

    @cached_property
    def _document(self) -> list[Raw] | None:
        """The tasks of a file that is one JSON document; None if the file has one task per line."""
        first = next((line for line in self._lines() if line.strip()), b"").strip()
        is_array = first.startswith(b"[")
        if not is_array and (
            not first.startswith(b"{") or _is_json(first) or self._size() > _LARGEST_DOCUMENT
        ):
            return None
        text = b"".join(self._lines())
        try:
            items: list[Raw] = msgspec.json.decode(text, type=list[Raw]) if is_array else [_any.decode(text)]
        except msgspec.DecodeError as error:
            byte = re.search(r" \(byte (\d+)\)", str(error))
            line = text.count(b"\n", 0, int(byte[1]) if byte else len(text.rstrip())) + 1
            raise _no_json(f"{self._name}, line {line}", error) from None
        except RecursionError:
            raise _bad(self._name, "is nested too deeply") from None
        return items

    def _lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        for number, line in enumerate(self._file):
            yield line if number else line.removeprefix(BYTE_ORDER_MARK)

    def _size(self) -> int:
        return self._file.seek(0, os.SEEK_END)


def tasks_for_files(paths: Iterable[str], fields: Mapping[str, Any], *, once: bool) -> list[TaskInput]:
    """Return one task for each file. Drop duplicate paths.

    Args:
        paths: The paths of the files.
        fields: The fields that all tasks have.
        once: Whether to derive each id from its file, so that an unchanged file keeps its id.
    """
    tasks = []
    for path in dict.fromkeys(Path(os.path.abspath(path)) for path in paths):  # noqa: PTH100 - keeps links
        try:
            str(path).encode()
            id_ = {"id": _id_of(path, fields["needs"])} if once else {}
        except UnicodeEncodeError:
            raise _bad(repr(str(path)), "the name is not UTF-8, which JSON requires") from None
        except OSError as error:
            raise _bad(str(path), f"cannot be read: {error.strerror}") from None
        file = str(path)
        tasks.append(check_task(TaskInput({**fields, **id_, "payload": {"file": file}}, file, file)))
    return tasks


def _id_of(path: Path, needs: Raw) -> str:
    """Return an id that depends only on the path, size, modification time and needs.

    The name at the beginning is for people. The 160 bits of the hash make the id unique.
    """
    status = path.stat()
    facts = [str(path), status.st_size, status.st_mtime_ns, Raw(msgspec.json.format(needs, indent=-1))]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).lstrip("._-")[:80]
    return f"{name or 'file'}:{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:40]}"


def _is_json(text: bytes) -> bool:
    try:
        _any.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _message_of(error: Exception) -> str:
    """Return the decoder's message, with the name of the field first."""
    message, _, place = str(error).removeprefix("JSON is malformed: ").partition(" - at `$.")
    if "matching regex" in message:
        message = "must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and begin with a letter or a digit"
    return f"{place.rstrip('`')}: {message}" if place else message


def _no_json(where: str, error: Exception) -> click.ClickException:
    why = re.sub(r" \(byte \d+\)", "", _message_of(error))
    return _bad(
        where, f"is not JSON: {why} (a file must have one task per line, or be one JSON array of tasks)"
    )


def _bad(where: str, problem: str) -> click.ClickException:
    return click.ClickException(f"{where}: {problem}" if where else problem)
