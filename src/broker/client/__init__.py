"""The Python client: `Tool` does work, `Assigner` pairs tasks with tools, `Broker` submits tasks.

    from broker.client import Job, Tool

    tool = Tool("xrd-1", skills={"format": ["raw"]})

    @tool.handler
    def process(job: Job):
        job.report(0.5, "half way")
        return {"peaks": 3}

    tool.run()

The URL of the broker and the key default to `BROKER_URL` and `BROKER_KEY`.
"""

from broker.client.assigner import Assigner
from broker.client.broker import AsyncBroker, Broker, TaskOptions
from broker.client.connection import Connection
from broker.client.errors import ProblemError, SettingError
from broker.client.executor import Executor
from broker.client.handle import AsyncHandle, Handle, TaskCancelledError, TaskFailedError
from broker.client.job import AsyncJob, FailedError, Job, StoppedError
from broker.client.tool import Tool, ToolLostError
from broker.matching.contains import contains
from broker.matching.mismatch import MismatchError
from broker.matching.unmatched import Unmatched, UnmatchedNeeds, UnmatchedSkills

__all__ = [
    "Assigner",
    "AsyncBroker",
    "AsyncHandle",
    "AsyncJob",
    "Broker",
    "Connection",
    "Executor",
    "FailedError",
    "Handle",
    "Job",
    "MismatchError",
    "ProblemError",
    "SettingError",
    "StoppedError",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskOptions",
    "Tool",
    "ToolLostError",
    "Unmatched",
    "UnmatchedNeeds",
    "UnmatchedSkills",
    "contains",
]
