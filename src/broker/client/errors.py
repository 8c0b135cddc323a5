"""Errors of the client: invalid settings, and requests that the broker refuses."""

from http import HTTPStatus
from typing import Self

from msgspec import structs

from broker.schemas.problems import FieldError, Problem


class SettingError(ValueError):
    """The URL or the key of the broker is not valid.

    The message says what to change. The client reads them from `BROKER_URL` and `BROKER_KEY` by default.
    """


class ProblemError(Exception):
    """The broker refused a request.

    Example:
        try:
            handle.retry()
        except ProblemError as error:
            if error.code != "task_ended":
                raise

    Args:
        problem: The body of the response, as in RFC 9457: `status`, `code`, `title`, `detail`, `errors`.

    Attributes:
        problem: The body of the response.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")

    def __reduce__(self) -> tuple[type[Self], tuple[Problem]]:
        """Make the error picklable, so that it can be passed between processes."""
        return type(self), (self.problem,)

    @property
    def code(self) -> str:
        """The stable error code for programs, like `task_not_found`."""
        return self.problem.code

    @property
    def errors(self) -> list[FieldError]:
        """The invalid fields of the request, each with `field` and `message`; empty for other errors."""
        return self.problem.errors or []

    @property
    def advice(self) -> str | None:
        """A sentence for people on how to solve the problem, or None."""
        return _ADVICE.get(self.code)


class ProxyLimitError(ProblemError):
    """A proxy between the client and the broker refused a request because its body is too large."""

    @classmethod
    def of(cls, url: str, path: str, size: int) -> Self:
        """Return the error for a refused request.

        Args:
            url: The URL of the broker, without a password.
            path: The path of the request.
            size: The size of its body, in bytes.
        """
        problem = Problem(
            type="about:blank",
            title="Payload too large",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            detail=f"A proxy at {url} refused the request because its body has {size:,} bytes. Increase the"
            " limit of the proxy; in nginx the setting is `client_max_body_size`.",
            instance=path,
            code="payload_too_large",
        )
        return cls(problem)


class ToolLostError(ProblemError):
    """The tool no longer belongs to this program.

    Another program has registered with the same id, somebody has deleted the tool, or its key was revoked.
    The client stops the running handlers. If you call `run` or `work` again, the tool registers again, and
    the other program loses it.
    """

    advice = None

    @classmethod
    def of(cls, tool_id: str, problem: Problem) -> Self:
        """Return the error for a lost tool, from the problem that the broker returned."""
        if problem.code == "tool_not_found":
            reason = "it was deleted from the broker"
        else:
            reason = "another program has registered with its id, or its key was revoked"
        detail = f"Tool {tool_id} no longer belongs to this program: {reason}."
        return cls(structs.replace(problem, detail=detail))


_ADVICE = {
    "unauthenticated": "Set BROKER_KEY to a key of this broker. On the broker's machine,"
    " `broker keys create` creates one.",
    "forbidden": "The key in BROKER_KEY does not allow this request. On the broker's machine,"
    " `broker keys list` shows the roles of each key.",
}


def explained(error: ProblemError) -> str:
    """Describe an error for people: the problem, the invalid fields, and a solution if one is known."""
    fields = [f"{field.field}: {field.message}" for field in error.errors]
    lines = [error.problem.detail, *(field for field in fields if field not in error.problem.detail)]
    if error.advice:
        lines.append(error.advice)
    return "\n  ".join(lines)
