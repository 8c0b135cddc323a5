"""The base class of all errors, with the status, the code and the texts of the response."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from broker.schemas.problems import ErrorCode, FieldError


class BrokerError(Exception):
    """The broker failed unexpectedly. You can repeat the request.

    This is a defect of the broker. Find the id of the response header `X-Request-ID` in the broker's log, and
    report the defect with the lines there. The broker may or may not have carried out the request. You can
    safely repeat a request that submits a task, registers a tool or sends a report, if its body has an `id`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[ErrorCode] = "internal"
    #: By default the code in words.
    title: ClassVar[str] = "Internal error"
    #: Headers of the response with the problem.
    headers: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.code.replace("_", " ").capitalize()

    def __init__(self, detail: str | None = None, *, errors: Sequence[FieldError] = ()) -> None:
        self.errors = list(errors)
        fields = "; ".join(f"{error.field}: {error.message}" for error in self.errors[:3])
        self.detail = detail or fields or (type(self).__doc__ or "").split("\n", 1)[0]
        super().__init__(self.detail)
