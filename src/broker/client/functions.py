"""Call functions by their names: tasks of an `Executor`, and tools that do them."""

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

#: The field of needs and skills that names functions.
NEEDED = "function"


class Call(Struct, forbid_unknown_fields=True):
    """The payload of a task that calls a function."""

    function: str
    args: list[Raw] = []
    kwargs: dict[str, Raw] = {}


class Functions:
    """A handler that calls the functions it was created with, and no others.

    It converts the JSON arguments to the types in the annotations of the function.

    Raises:
        ValueError: Other programs cannot import a function by its name.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._known = {name_of(function): function for function in functions}

    @property
    def skills(self) -> dict[str, list[str]]:
        """The skills of a tool with this handler: the names of its functions."""
        return {NEEDED: sorted(self._known)}

    def __call__(self, job: Job) -> Any:
        """Call the function that a task names.

        Raises:
            FailedError: The function is unknown, or it does not accept the arguments. The broker does not
                retry the task.
        """
        try:
            call = job.payload_as(Call)
            function = self._known[call.function]
            arguments = _bound(function, call.args, call.kwargs)
        except KeyError as error:
            raise FailedError(f"this tool does not offer the function {error}", retry=False) from error
        except (TypeError, msgspec.ValidationError) as error:
            raise FailedError(f"the function does not accept the arguments: {error}", retry=False) from error
        return function(*arguments.args, **arguments.kwargs)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which other programs can import a function, like `laboratory.fits:measure`.

    Raises:
        ValueError: Other programs cannot import the function: it is a lambda, a nested function, a bound
            method, a function of the main program, or asynchronous.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    importable: Any = sys.modules.get(str(module))
    for part in name.split("."):
        importable = getattr(importable, part, None)
    if importable is not function or module in ("__main__", "builtins"):
        raise ValueError(
            f"other programs cannot import {function!r}; move it to the top level of a module that both the"
            " program and the tool import"
        )
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        raise ValueError(
            f"{function!r} has no signature that Python can read; wrap it in a function with named arguments"
        ) from None
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{function!r} is an `async def` function; use it as the handler of a Tool instead")
    return f"{module}:{name}"


def returned(function: Callable[..., Any], result: Raw) -> Any:
    """Return a function's result, converted to the type in its annotation if that is possible."""
    hint = _hints(function).get("return", Any)
    try:
        return _converted(result, hint)
    except msgspec.ValidationError:
        # The annotation is wrong, but the function has succeeded.
        return msgspec.json.decode(result)


def _bound(
    function: Callable[..., Any], args: Iterable[Raw], kwargs: Mapping[str, Raw]
) -> inspect.BoundArguments:
    """Return the arguments, converted to the types in the function's annotations."""
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
        # Only a type checker can resolve some of the names.
        return {}


def _converted(value: Raw, type_: Any) -> Any:
    try:
        decoder = msgspec.json.Decoder(type_, dec_hook=_from_json)
    except TypeError:
        # msgspec cannot decode such a type, like `str | Path`.
        return msgspec.json.decode(value)
    return decoder.decode(value)


def _from_json(type_: type, value: Any) -> Any:
    """Convert a string to a path. Return other values unchanged: msgspec then checks their type."""
    if issubclass(type_, PurePath):
        return type_(value)
    return Path(value) if type_ is os.PathLike else value
