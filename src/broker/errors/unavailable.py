"""Errors of a service that cannot carry out a request at the moment. The client can repeat the request."""

from collections.abc import Mapping
from typing import ClassVar

from broker.errors.base import BrokerError


class Unavailable(BrokerError):
    """The database cannot be reached. You can safely repeat the request.

    The broker cannot carry out the request at the moment: the database is unreachable or too slow, the broker
    is overloaded, or it is stopping. Wait for the time in the header `Retry-After`, then repeat the request.
    You can safely repeat it, with one exception: if a submission, registration or report has no `id`, it may
    take effect twice. `GET /health/ready` and the broker's log name the cause.
    """

    status = 503
    code = "unavailable"
    title = "Service unavailable"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class ConnectionLost(Unavailable):
    """The broker has no connection to the database. You can safely repeat the request."""


class DatabaseTrouble(Unavailable):
    """The database cannot work now. The broker's log has the cause. You can safely repeat the request.

    Args:
        cause: The reason, for the log and for `/health/ready`.
    """

    def __init__(self, cause: str) -> None:
        super().__init__()
        self.cause = cause


class RowTrouble(DatabaseTrouble):
    """PostgreSQL failed, maybe because of one row. The broker's log has the cause. Repeat the request."""


class RowFailed(RowTrouble):
    """PostgreSQL failed. The broker's log has the cause. You can safely repeat the request."""


class Locked(RowTrouble):
    """Another database session locks rows that this request needs. You can safely repeat the request."""


class TooSlow(RowTrouble):
    """The database did not finish this request in time. You can safely repeat the request."""


class Overloaded(Unavailable):
    """Too many requests wait for the database. You can safely repeat the request."""


class Crowded(Unavailable):
    """The service has reached a limit of connections or memory. You can safely repeat the request."""


class Stopping(Unavailable):
    """The service stopped before it knew the result. You can safely repeat the request."""
