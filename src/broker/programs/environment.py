"""The environment variables of a program."""

import os

from broker.client import AsyncJob, tracing
from broker.programs.folders import WorkFolder


def environment(job: AsyncJob, folder: WorkFolder, *, url: str, input_in_file: bool) -> dict[str, str]:
    """Return the environment of this process with the facts of a job, and without any key.

    Args:
        job: The job.
        folder: Its scratch folder.
        url: The URL of the broker.
        input_in_file: Whether the program reads its payload from a file.
    """
    # A program gets no key and no settings of a service. The trace in which the tool was started, if any, is
    # not the task's.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BROKER_") and name not in ("TRACEPARENT", "TRACESTATE")
    }
    trace = tracing.current() or job.trace_context
    facts = {
        "BROKER_URL": url,
        "BROKER_TOOL_ID": job.tool_id,
        "BROKER_TASK_ID": job.task_id,
        "BROKER_WORK_ID": str(job.id),
        "BROKER_ATTEMPT": str(job.attempt),
        "BROKER_NEEDS": job.needs_json.decode(),
        "BROKER_SCRATCH": str(folder.path),
        "TMPDIR": str(folder.path),
    }
    if input_in_file:
        facts["BROKER_INPUT"] = str(folder.payload)
    return inherited | facts | {name.upper().replace("-", "_"): value for name, value in trace.items()}
