"""The errors of the client: settings that are not valid, and requests that the broker refuses."""

from http import HTTPStatus
from typing import Self

from broker.schemas.problems import FieldError, Problem


class SettingError(ValueError):
    """The URL or the key of the broker is not valid."""


class ProblemError(Exception):
    """The broker refused a request.

    Args:
        problem: The body of its response; `problem.code` is for programs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")

    def __reduce__(self) -> tuple[type[Self], tuple[Problem]]:
        """Make the error picklable, so that it can be passed between processes."""
        return type(self), (self.problem,)

    @property
    def code(self) -> str:
        """The stable error code, like `task_not_found`."""
        return self.problem.code

    @property
    def errors(self) -> list[FieldError]:
        """The invalid fields."""
        return self.problem.errors or []

    @property
    def advice(self) -> str | None:
        """What to do about the error, for people, if that is known."""
        return _ADVICE.get(self.code)


class ProxyLimitError(ProblemError):
    """A proxy between the client and the broker refused a request because its body is too large."""

    @classmethod
    def of(cls, url: str, path: str, size: int) -> Self:
        """Return the error for a request to a URL (without a password), whose body has `size` bytes."""
        problem = Problem(
            type="about:blank",
            title="Payload Too Large",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            detail=f"A proxy at {url} refused the request because its body has {size:,} bytes. Increase the"
            " limit of the proxy; in nginx the setting is `client_max_body_size`.",
            instance=path,
            code="payload_too_large",
        )
        return cls(problem)


_ADVICE = {
    "unauthenticated": "Set BROKER_KEY to a key of this broker; `broker keys create` makes one there.",
    "forbidden": "The key in BROKER_KEY is good for something else; where the broker runs, `broker keys list`"
    " tells what.",
}


def explained(error: ProblemError) -> str:
    """Describe an error for people: what is wrong, in which fields, and what to do."""
    fields = [f"{field.field}: {field.message}" for field in error.errors]
    lines = [error.problem.detail, *(field for field in fields if field not in error.problem.detail)]
    if error.advice:
        lines.append(error.advice)
    return "\n  ".join(lines)
