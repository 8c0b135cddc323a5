"""Options of a task, as keyword arguments."""

from datetime import datetime
from typing import TypedDict


class TaskOptions(TypedDict, total=False):
    """Options of a task, besides its needs and its payload.

    You pass them as keyword arguments, for example `broker.submit(needs, payload, priority=10)`.

    Attributes:
        priority: Tasks with a higher priority come first. From -32768 to 32767. Default: 0.
        not_before: The task waits until this time. The time needs a time zone. Default: the task may run at
            once.
        timeout_seconds: The maximum duration of one attempt, in seconds. A longer attempt ends as
            `timed_out`. Default: no limit.
        max_attempts: The maximum number of attempts, from 1 to 1,000. After that many unsuccessful attempts,
            the task has failed. Default: 3.
        retry_backoff_seconds: The maximum delay before the second attempt, in seconds. Each delay is random,
            at least half of its maximum. The maximum doubles with each further attempt, up to one day. 0
            means no delay. Default: 1.
    """

    priority: int
    not_before: datetime
    timeout_seconds: float
    max_attempts: int
    retry_backoff_seconds: float


def checked_options(options: TaskOptions) -> TaskOptions:
    """Return the options of a task unchanged.

    Raises:
        TypeError: A task has no option of this name.
    """
    if unknown := options.keys() - TaskOptions.__annotations__.keys():
        names = ", ".join(TaskOptions.__annotations__)
        raise TypeError(f"unknown option {min(unknown)!r}; the options of a task are {names}")
    return options
