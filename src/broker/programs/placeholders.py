"""Fill placeholders in a command: `{file}` stands for the field `file` of the payload."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import msgspec
from msgspec import Raw

from broker.programs.errors import CannotRunError

# `${file}` is a variable of a shell.
_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
# The characters of arguments that are not program texts, such as a path, an option or a list.
_PLAIN = re.compile(r"[\w./:=,@%+-]*", re.ASCII)
# Interpreters. The program text that they run is their first argument, or the argument of an option. An
# interpreter may be an argument of another program: `nice sh -c …`.
_INTERPRETER = re.compile(
    r"(ba|da|k|z|fi|c|tc|a|mk|)sh|busybox|python|pypy|perl|ruby|node|php|lua|tclsh|expect|Rscript|R|julia|matlab|octave"
    r"|[gmn]?awk|sed|eval"
)
_TAKES_PROGRAM = re.compile(r"-\w*[ceErS]|--eval|--command|-batch")
# Programs that run the command in their arguments, and also accept a text for a shell.
_RUNNER = ("su", "runuser", "script", "flock", "sudo", "doas", "env")
# Programs that pass all their arguments to a shell, as one text.
_TO_A_SHELL = ("ssh", "parallel", "watch", "rsh", "pdsh")


class Template:
    """A command with placeholders for fields of a payload.

    No shell is involved, so a field becomes an argument, or a part of one. A field must never become a part
    of a program text. So arguments with spaces and arguments that an interpreter runs stay unchanged, and no
    field may decide which program runs.

    Raises:
        CannotRunError: A field could decide which program runs, or would pass through a shell.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._texts = {
            place
            for place, argument in enumerate(command)
            if not _PLAIN.fullmatch(_PLACEHOLDER.sub("", argument))
        }
        programs = [command[0]]
        for place, word in enumerate(command):
            name = PurePath(word).name
            if name in _TO_A_SHELL:
                programs += command[place + 1 :]
            elif name in _RUNNER:
                self._texts |= _texts(command, place + 1)
            elif _INTERPRETER.fullmatch(name.rstrip("0123456789.")):
                texts = _texts(command, place + 1)
                self._texts |= texts
                programs += [] if texts else [word for word in command[place + 1 :] if word[:1] != "-"][:1]
                # The rest are the arguments of the program that it runs.
                break
        for program in programs:
            if _PLACEHOLDER.search(program):
                raise CannotRunError(
                    f"{program!r}: a payload must not decide which program runs, or become a part of a text"
                    " for a shell or an interpreter. Use a script with an argument: ./script.sh {file}"
                )

    @property
    def unfilled(self) -> list[str]:
        """The placeholders in program texts, which stay unchanged."""
        texts = [text for place, text in enumerate(self._command) if place in self._texts]
        return [match[0] for text in texts for match in _PLACEHOLDER.finditer(text)]

    def fill(self, payload: Raw) -> list[str]:
        """Return the command for a payload, with texts unchanged and other values as JSON.

        Raises:
            CannotRunError: The payload lacks a field, or the program would treat one as an option.
        """
        return [
            argument if place in self._texts else _fill(argument, payload)
            for place, argument in enumerate(self._command)
        ]


def _texts(command: Sequence[str], begin: int) -> set[int]:
    """Return the positions of the arguments that may be program texts, by options such as `-c`."""
    options = [place for place in range(begin, len(command)) if _TAKES_PROGRAM.fullmatch(command[place])]
    if not options:
        return set()
    # There may be other options between such an option and the text.
    words = (place for place in range(options[0] + 1, len(command)) if command[place][:1] != "-")
    until = next(words, len(command) - 1)
    return {*range(options[0] + 1, until + 1), *(place + 1 for place in options if place + 1 < len(command))}


def _fill(argument: str, payload: Raw) -> str:
    def field(match: re.Match[str]) -> str:
        value = _field(match[1], payload)
        if match.start() == 0 and value.startswith("-") and not _NUMBER.fullmatch(value):
            raise CannotRunError(
                f"The field {match[1]!r} of the payload is {value[:100]!r}, which the program would treat as"
                " an option. Use a value that does not begin with a hyphen, for example ./-name."
            )
        return value

    return _PLACEHOLDER.sub(field, argument)


def _field(name: str, payload: Raw) -> str:
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Raw])
    except msgspec.ValidationError:
        raise CannotRunError(f"The payload is not an object, so it has no field {name!r}.") from None
    if name not in fields:
        raise CannotRunError(f"The payload has no field {name!r}.")
    try:
        return msgspec.json.decode(fields[name], type=str)
    except msgspec.ValidationError:
        return bytes(fields[name]).decode()
