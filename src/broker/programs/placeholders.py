"""Placeholders in a command: `{file}` stands for the field `file` of the payload."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import msgspec
from msgspec import Raw

from broker.programs.errors import CannotRunError

# `${file}` belongs to a shell.
_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
# The characters around a placeholder in an argument that is not a program text: a path, an option, a list.
_PLAIN = re.compile(r"[\w./:=,@%+-]*", re.ASCII)
# Programs that run a program text: their first argument, or what follows such an option. They may be
# arguments of other programs: `nice sh -c …`.
_INTERPRETER = re.compile(
    r"(ba|da|k|z|fi|c|tc|a|mk|)sh|busybox|python|pypy|perl|ruby|node|php|lua|tclsh|expect|Rscript|R|julia|matlab|octave"
    r"|[gmn]?awk|sed|eval"
)
_TAKES_PROGRAM = re.compile(r"-\w*[ceErS]|--eval|--command|-batch")
# They run the command that follows, and accept a text for a shell as well.
_RUNNER = ("su", "runuser", "script", "flock", "sudo", "doas", "env")
# They pass everything that follows to a shell, as one text.
_TO_A_SHELL = ("ssh", "parallel", "watch", "rsh", "pdsh")


class Template:
    """A command with placeholders for fields of a payload.

    No shell is involved, so a field becomes an argument, or a part of one, whatever it contains. It must
    never become a part of a program: an argument with spaces, or one that an interpreter runs, stays as it
    is, and no field may decide which program runs.

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
                programs += [] if texts else [each for each in command[place + 1 :] if each[:1] != "-"][:1]
                # The rest are the arguments of the program that it runs.
                break
        for program in programs:
            if _PLACEHOLDER.search(program):
                raise CannotRunError(
                    f"{program!r}: what runs is not for a payload to say, and this would be given to a shell"
                    " or an interpreter. Let a script take it as an argument: ./script.sh {file}"
                )

    @property
    def left_alone(self) -> list[str]:
        """The placeholders in program texts, which stay as they are."""
        texts = [text for place, text in enumerate(self._command) if place in self._texts]
        return [match[0] for text in texts for match in _PLACEHOLDER.finditer(text)]

    def filled(self, payload: Raw) -> list[str]:
        """Return the command for a payload: texts as they are, any other values as JSON.

        Raises:
            CannotRunError: The payload lacks a field, or the program would mistake one for an option.
        """
        return [
            argument if place in self._texts else _filled(argument, payload)
            for place, argument in enumerate(self._command)
        ]


def _texts(command: Sequence[str], begin: int) -> set[int]:
    """Return the positions of the program texts."""
    options = [place for place in range(begin, len(command)) if _TAKES_PROGRAM.fullmatch(command[place])]
    if not options:
        return set()
    # Other options may stand between such an option and the text.
    words = (place for place in range(options[0] + 1, len(command)) if command[place][:1] != "-")
    until = next(words, len(command) - 1)
    return {*range(options[0] + 1, until + 1), *(place + 1 for place in options if place + 1 < len(command))}


def _filled(argument: str, payload: Raw) -> str:
    def field(match: re.Match[str]) -> str:
        value = _field(match[1], payload)
        if match.start() == 0 and value.startswith("-") and not _NUMBER.fullmatch(value):
            raise CannotRunError(
                f"the payload's {match[1]!r} is {value[:100]!r}: the program would take it for an option"
            )
        return value

    return _PLACEHOLDER.sub(field, argument)


def _field(name: str, payload: Raw) -> str:
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Raw])
    except msgspec.ValidationError:
        raise CannotRunError(f"the payload is no object, and has no {name!r}") from None
    if name not in fields:
        raise CannotRunError(f"the payload has no {name!r}")
    try:
        return msgspec.json.decode(fields[name], type=str)
    except msgspec.ValidationError:
        return bytes(fields[name]).decode()
