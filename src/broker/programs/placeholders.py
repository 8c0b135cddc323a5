"""Fields of a payload in a command: `{file}` is what the payload has as `file`."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import msgspec
from msgspec import Raw

from broker.programs.errors import CannotRunError

# `${file}` is a shell's own.
_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Programs that are told another program, in a file or after such an option.
_INTERPRETER = re.compile(r"(ba|da|k|z|fi|c|tc|)sh|python|perl|ruby|node|Rscript|julia|matlab|octave")
_TAKES_PROGRAM = re.compile(r"-\w*[ceEr]|--eval|-batch")


class Template:
    """A command with places for fields of a payload.

    No shell comes between, so what a payload has is an argument, or a part of one, whatever is in it. It
    never becomes a part of a program: the text of a program that is an argument stays as it is.

    Args:
        command: The program and its arguments.

    Raises:
        CannotRunError: A field would say which program runs.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._texts: set[int] = set()
        programs = [command[0]]
        if _INTERPRETER.fullmatch(PurePath(command[0]).name.rstrip("0123456789.")):
            self._texts = {
                place + 1
                for place, option in enumerate(command)
                if place and _TAKES_PROGRAM.fullmatch(option)
            }
            if not self._texts:
                programs += [each for each in command[1:] if not each.startswith("-")][:1]
        for program in programs:
            if _PLACEHOLDER.search(program):
                raise CannotRunError(f"{program!r}: which program runs is not for a payload to say.")

    @property
    def left_alone(self) -> list[str]:
        """The places that are in the text of a program, and stay as they are."""
        texts = [text for place, text in enumerate(self._command) if place in self._texts]
        return [found[0] for text in texts for found in _PLACEHOLDER.finditer(text)]

    def filled(self, payload: Raw) -> list[str]:
        """The command for a payload: texts as they are, everything else as JSON.

        Args:
            payload: The payload.

        Raises:
            CannotRunError: The payload has no such field, or one that the program would take for an option.
        """
        return [
            argument if place in self._texts else _filled(argument, payload)
            for place, argument in enumerate(self._command)
        ]


def _filled(argument: str, payload: Raw) -> str:
    def field(found: re.Match[str]) -> str:
        value = _field(found[1], payload)
        if found.start() == 0 and value.startswith("-") and not _is_number(value):
            raise CannotRunError(
                f"the payload's {found[1]!r} is {value[:100]!r}: the program would take it for an option"
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


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
