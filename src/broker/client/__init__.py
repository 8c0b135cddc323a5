"""The Python client of the broker.

`Broker` submits tasks and waits for their results. `Tool` does the work. `Assigner` decides which tool gets
which task. `Executor` calls Python functions on tools, like a process pool.

The client reads the URL of the broker from the environment variable `BROKER_URL` and the key from
`BROKER_KEY`, unless you pass them. Times are numbers of seconds.

Example:
    A tool:

        from broker.client import Job, Tool

        tool = Tool("xrd-1", skills={"format": ["raw"]})

        @tool.handler
        def process(job: Job):
            job.report(0.5, "half way")
            return {"peaks": 3}

        tool.run()

    A program that submits a task for it:

        from broker.client import Broker

        with Broker() as broker:
            handle = broker.submit({"format": "raw"}, {"file": "/data/scan-7.raw"})
            print(handle.result(timeout=600))
"""

from broker.client.assigner import Assigner
from broker.client.async_broker import AsyncBroker
from broker.client.async_handle import AsyncHandle, TaskCancelledError, TaskFailedError
from broker.client.broker import Broker
from broker.client.connection import Connection
from broker.client.errors import ProblemError, SettingError, ToolLostError
from broker.client.executor import Executor
from broker.client.handle import Handle
from broker.client.job import AsyncJob, FailedError, Job, StoppedError
from broker.client.task_options import TaskOptions
from broker.client.tool import Tool
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
