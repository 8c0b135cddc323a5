"""Read the contents of the OpenAPI document from the handlers: parameters, bodies, responses and errors."""

from inspect import cleandoc
from itertools import groupby
from types import NoneType
from typing import Any, NamedTuple, get_args

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
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
from broker.http.guards import Allow, Reach
from broker.http.parameters import parameters


class Operation(NamedTuple):
    """One method of one path. The decorator of its handler lists its specific errors in `errors=`."""

    path: str
    method: str
    handler: HTTPRouteHandler

    @property
    def id(self) -> str:
        """The operation id, such as `tools_register`. Generated clients use it as a name."""
        if isinstance(named := self.handler.operation_id, str):
            return named
        controller = self.handler.fn.__qualname__.partition(".")[0].removesuffix("Controller")
        return f"{controller.lower()}_{self.handler.handler_name}"

    @property
    def docstring(self) -> tuple[str, str]:
        """The first line of the docstring, and the rest of it."""
        first, _, rest = cleandoc(self.handler.fn.__doc__ or "").partition("\n")
        return first, rest.strip()

    @property
    def parameters(self) -> dict[str, FieldDefinition]:
        """The path and query parameters by their names."""
        fields = self.handler.parsed_fn_signature.parameters
        return {
            name: fields[argument]
            for argument, name in parameters(self.handler).items()
            if isinstance(fields[argument].kwarg_definition, PathParameter | QueryParameter)
        }

    @property
    def accepts_trace(self) -> bool:
        """True if the operation accepts a trace context."""
        return "trace_context" in self.handler.parsed_fn_signature.parameters

    @property
    def returns_trace(self) -> bool:
        """True if the response has the trace context in which the task was submitted."""
        return bool(self.handler.opt.get("returns_trace"))

    @property
    def body(self) -> type[Struct] | None:
        """The type of the request body, or None if the request has no body."""
        data = self.handler.parsed_fn_signature.parameters.get("data")
        return data.annotation if data else None

    @property
    def responses(self) -> dict[int, ResponseSpec]:
        """The responses of successful requests, by status.

        If the type is a struct, the body is JSON. If it is None, there is no body. Otherwise it is a text.
        """
        returned = self.handler.parsed_fn_signature.return_type.annotation
        [body] = get_args(returned) or [returned]
        usual = ResponseSpec(body, description=summary_of(body))
        return {self.handler.status_code: usual, **(self.handler.responses or {})}

    @property
    def events(self) -> dict[str, type[Struct]]:
        """The types of the Server-Sent Events in the response, by the names of the events."""
        events: dict[str, type[Struct]] = self.handler.opt.get("events", {})
        return events

    @property
    def roles(self) -> dict[str, Reach]:
        """The roles that may make the request, with their reach. Empty if it needs no key."""
        [guard] = self.handler.guards or ()
        return guard.roles if isinstance(guard, Allow) else {}

    @property
    def errors(self) -> dict[int, tuple[type[BrokerError], ...]]:
        """The errors of the operation by status: its specific ones, and those of its kind of request."""
        errors = {ValidationFailed, *self.handler.opt.get("errors", ())}
        if self.body:
            errors |= {MalformedJson, PayloadTooLarge, UnsupportedMediaType}
        if self.roles:
            errors |= {Unauthenticated, Forbidden, TooManyRequests}
        if "service" in self.handler.parsed_fn_signature.parameters:
            errors.add(Unavailable)
            if self.method.upper() != "GET":
                errors.add(PayloadTooLarge)  # `TooHeavy`
        in_order = sorted(errors, key=lambda error: (error.status, error.code))
        return {status: tuple(group) for status, group in groupby(in_order, key=lambda error: error.status)}


def operations(app: Litestar) -> list[Operation]:
    """Return all operations of the OpenAPI document, ordered by path."""
    described = [
        Operation(route.path_format, method, handler)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.resolve_include_in_schema()
        for method in handler.http_methods
    ]
    return sorted(described, key=lambda each: (each.path, each.method))


def is_struct(body: Any) -> bool:
    """Return whether a response body of a type is JSON."""
    return isinstance(body, type) and issubclass(body, Struct)


def summary_of(body: Any) -> str:
    """Return the description of a response body of a type."""
    if is_struct(body):
        return cleandoc(body.__doc__ or "").partition("\n")[0]
    return "Success, without a body." if body in (None, NoneType) else "A text."
