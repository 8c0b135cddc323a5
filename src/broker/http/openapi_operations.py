"""What every handler says of itself: what it takes, what it answers, and what it may refuse."""

from collections.abc import Iterator
from inspect import cleandoc
from itertools import groupby
from types import NoneType
from typing import Any, NamedTuple, cast, get_args

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter
from litestar.routes import HTTPRoute
from litestar.typing import FieldDefinition
from msgspec import Struct

from broker.errors import (
    BrokerError,
    Forbidden,
    MalformedJson,
    PayloadTooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    ValidationFailed,
)
from broker.http.guards import Allow, Anyone, Reach
from broker.http.parameters import parameters

Refusals = dict[int, tuple[type[BrokerError], ...]]


class DescribedResponse(NamedTuple):
    """What is answered when all is well.

    Args:
        form: Its type: a struct is JSON, None is nothing, and all else a text.
        description: When it is that which is answered.
    """

    form: Any
    description: str


class Operation(NamedTuple):
    """One method of one path.

    Args:
        path: The path.
        method: The method.
        handler: What answers it. The errors of its own are those in `errors=` of its decorator.
    """

    path: str
    method: str
    handler: HTTPRouteHandler

    @property
    def id(self) -> str:
        """Like `tools_register`: what generated clients call it."""
        controller = self.handler.fn.__qualname__.partition(".")[0].removesuffix("Controller")
        return f"{controller.lower()}_{self.handler.handler_name}"

    @property
    def docstring(self) -> tuple[str, str]:
        """What it does: in one sentence, and what else there is to say."""
        first, _, rest = cleandoc(self.handler.fn.__doc__ or "").partition("\n")
        return first, rest.strip()

    @property
    def parameters(self) -> dict[str, FieldDefinition]:
        """What it takes in the path and the query, by the names used there."""
        fields = self.handler.parsed_fn_signature.parameters
        return {
            name: fields[argument]
            for argument, name in parameters(self.handler).items()
            if isinstance(fields[argument].kwarg_definition, PathParameter | QueryParameter)
        }

    @property
    def takes_trace(self) -> bool:
        """Whether it takes the trace that the request belongs to."""
        return "trace_context" in self.handler.parsed_fn_signature.parameters

    @property
    def hands_on_trace(self) -> bool:
        """Whether it answers with the trace that the task was submitted in."""
        return bool(self.handler.opt.get("hands_on_trace"))

    @property
    def body(self) -> type[Struct] | None:
        """The request that it takes, if any."""
        data = self.handler.parsed_fn_signature.parameters.get("data")
        return data.annotation if data else None

    @property
    def answers(self) -> dict[int, DescribedResponse]:
        """What it answers when all is well, by status."""
        told = self.handler.parsed_fn_signature.return_type.annotation
        [form] = get_args(told) or [told]
        found = {self.handler.status_code: DescribedResponse(form, in_a_sentence(form))}
        for status, other in (self.handler.responses or {}).items():
            found[status] = DescribedResponse(other.data_container, other.description)
        return found

    @property
    def events(self) -> dict[str, type[Struct]]:
        """What the Server-Sent Events hold that it answers with, if it does, by their names."""
        found: dict[str, type[Struct]] = self.handler.opt.get("events", {})
        return found

    @property
    def roles(self) -> dict[str, Reach]:
        """Which roles may make it, about what; none: it takes no key."""
        [guard] = self.handler.guards or ()
        return {} if isinstance(guard, Anyone) else cast("Allow", guard).roles

    @property
    def refusals(self) -> Refusals:
        """The errors that it may answer with, by status: its own, and those that come with what it takes."""
        errors = {ValidationFailed, *self.handler.opt.get("errors", ())}  # any may be sent `?nope=1`
        if self.body:
            errors |= {MalformedJson, PayloadTooLarge, UnsupportedMediaType}
        if self.roles:
            errors |= {Unauthenticated, Forbidden, TooManyRequests}
        if "service" in self.handler.parsed_fn_signature.parameters:
            errors.add(Unavailable)
            if self.method.upper() != "GET":
                errors.add(PayloadTooLarge)  # it may be too much for the database
        in_order = sorted(errors, key=lambda error: (error.status, error.code))
        return {status: tuple(group) for status, group in groupby(in_order, key=lambda error: error.status)}


def operations(app: Litestar) -> list[Operation]:
    """All that are described, in the order of their paths."""
    return sorted(_described(app), key=lambda each: (each.path, each.method))


def _described(app: Litestar) -> Iterator[Operation]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.resolve_include_in_schema():
                    for method in handler.http_methods:
                        yield Operation(route.path_format, method, handler)


def is_struct(form: Any) -> bool:
    """Whether an answer of this type is JSON."""
    return isinstance(form, type) and issubclass(form, Struct)


def in_a_sentence(form: Any) -> str:
    """What an answer of this type is."""
    if is_struct(form):
        return cleandoc(form.__doc__ or "").partition("\n")[0]
    return "Done." if form in (None, NoneType) else "A text."
