"""Functions by their names: what an `Executor` submits, and what a tool of functions does."""

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

#: What a task needs, and a tool of functions has, by this name.
NEEDED = "function"


class Call(Struct, forbid_unknown_fields=True):
    """The payload of a task that is the call of a function."""

    function: str
    args: list[Raw] = []
    kwargs: dict[str, Raw] = {}


class Functions:
    """A handler that calls the functions that it knows, and no others.

    Arguments come as JSON, and are made to what the function's annotations say, where it has any.

    Args:
        functions: Functions of modules, by whose names they are called.

    Raises:
        ValueError: A function has no name by which others could call it.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._known = {name_of(function): function for function in functions}

    @property
    def skills(self) -> dict[str, list[str]]:
        """What a tool has by this handler."""
        return {NEEDED: sorted(self._known)}

    def __call__(self, job: Job) -> Any:
        """Call the function that a task asks for.

        Raises:
            FailedError: It is not known, or takes other arguments; no other attempt is worth it.
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
    """The name by which a function can be called elsewhere, like `laboratory.fits:measure`.

    Raises:
        ValueError: There is none: it is a lambda, inside of another one, bound to an object, or of the
            program itself.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function or module in ("__main__", "builtins"):
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


def as_call(function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call of a function, as a payload.

    Raises:
        ValueError: The function has no name by which it could be called.
    """
    return {"function": name_of(function), "args": list(args), "kwargs": dict(kwargs)}


def returned(function: Callable[..., Any], result: Raw) -> Any:
    """What a function has returned, as its annotation says, or as JSON has it where it is something else."""
    hint = _hints(function).get("return", Any)
    try:
        return _made(result, hint)
    except msgspec.ValidationError:
        # It has succeeded, whatever was announced.
        return msgspec.json.decode(result)


def _bound(
    function: Callable[..., Any], args: Iterable[Raw], kwargs: Mapping[str, Raw]
) -> inspect.BoundArguments:
    """The arguments, as the function's annotations say."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    hints = _hints(function)
    for name, given in bound.arguments.items():
        hint, kind = hints.get(name, Any), bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_made(each, hint) for each in given)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: _made(each, hint) for key, each in given.items()}
        else:
            bound.arguments[name] = _made(given, hint)
    return bound


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        # Names that only a type checker sees: it takes what comes.
        return {}


def _made(value: Raw, form: Any) -> Any:
    try:
        decoder = msgspec.json.Decoder(form, dec_hook=_from_json)
    except TypeError:
        # What msgspec has no way to make, like `str | Path`: it takes what comes.
        return msgspec.json.decode(value)
    return decoder.decode(value)


def _from_json(form: type, value: Any) -> Any:
    """A path of its text; of other types JSON knows nothing, and what comes is seen to be one."""
    if issubclass(form, PurePath):
        return form(value)
    return Path(value) if form is os.PathLike else value
