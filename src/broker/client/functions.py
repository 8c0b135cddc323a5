"""Call functions by their names: tasks of an `Executor`, and the tools that do them."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, get_type_hints

import msgspec
from msgspec import Raw, Struct

from broker.client.job import FailedError, Job

#: The name in needs and skills under which functions are listed.
NEEDED = "function"


class Call(Struct, forbid_unknown_fields=True):
    """The payload of a task that calls a function."""

    function: str
    args: list[Raw] = []
    kwargs: dict[str, Raw] = {}


class Functions:
    """A handler that calls known functions only.

    It converts the arguments from JSON to what the function's annotations say, if it has any.

    Raises:
        ValueError: A function has no name by which other programs could call it.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._known = {name_of(function): function for function in functions}

    @property
    def skills(self) -> dict[str, list[str]]:
        """The skills of a tool with this handler."""
        return {NEEDED: sorted(self._known)}

    def __call__(self, job: Job) -> Any:
        """Call the function that a task names.

        Raises:
            FailedError: The function is unknown, or the arguments do not fit. The task is not retried.
        """
        try:
            call = job.payload_as(Call)
            function = self._known[call.function]
            arguments = _bound(function, call.args, call.kwargs)
        except KeyError as error:
            raise FailedError(f"this tool knows no function {error}", retry=False) from error
        except (TypeError, msgspec.ValidationError) as error:
            raise FailedError(f"the arguments do not fit: {error}", retry=False) from error
        return function(*arguments.args, **arguments.kwargs)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which other programs can call a function, like `laboratory.fits:measure`.

    Raises:
        ValueError: There is none: it is a lambda, a nested function, a bound method, or a function of the
            main program.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    importable: Any = sys.modules.get(str(module))
    for part in name.split("."):
        importable = getattr(importable, part, None)
    if importable is not function or module in ("__main__", "builtins"):
        raise ValueError(
            f"{function!r} cannot be called elsewhere: let it be a function of a module that the program"
            " and the tool import"
        )
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        raise ValueError(
            f"{function!r} does not say which arguments it takes: wrap it in a function"
        ) from None
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{function!r} is asynchronous: let a Tool handle that")
    return f"{module}:{name}"


def returned(function: Callable[..., Any], result: Raw) -> Any:
    """Return a function's result as its annotation says, or as plain JSON values if it does not fit."""
    hint = _hints(function).get("return", Any)
    try:
        return _converted(result, hint)
    except msgspec.ValidationError:
        # The function has succeeded, whatever its annotation says.
        return msgspec.json.decode(result)


def _bound(
    function: Callable[..., Any], args: Iterable[Raw], kwargs: Mapping[str, Raw]
) -> inspect.BoundArguments:
    """Return the arguments, converted to what the function's annotations say."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    hints = _hints(function)
    for name, argument in bound.arguments.items():
        hint, kind = hints.get(name, Any), bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_converted(each, hint) for each in argument)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: _converted(each, hint) for key, each in argument.items()}
        else:
            bound.arguments[name] = _converted(argument, hint)
    return bound


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        # Names that only a type checker sees: do not convert.
        return {}


def _converted(value: Raw, type_: Any) -> Any:
    try:
        decoder = msgspec.json.Decoder(type_, dec_hook=_from_json)
    except TypeError:
        # A type that msgspec cannot decode, like `str | Path`: do not convert.
        return msgspec.json.decode(value)
    return decoder.decode(value)


def _from_json(type_: type, value: Any) -> Any:
    """Convert a text to a path. For other types return the value, whose type msgspec then checks."""
    if issubclass(type_, PurePath):
        return type_(value)
    return Path(value) if type_ is os.PathLike else value
