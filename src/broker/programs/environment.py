"""The environment that a program finds."""

import os

from broker.client import AsyncJob, tracing
from broker.programs.folders import WorkFolder


def environment(job: AsyncJob, folder: WorkFolder, *, url: str, input_in_file: bool) -> dict[str, str]:
    """Ours, with what a program may want to know of its work, and without any key.

    Args:
        job: The job.
        folder: Its scratch folder.
        url: Where the broker is.
        input_in_file: Whether the program reads its payload from a file.
    """
    # Settings of a service that runs beside us are no business of a program's, nor is what gives access.
    # The trace that we were started in, if any, is not the task's.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BROKER_") and name not in ("TRACEPARENT", "TRACESTATE")
    }
    trace = tracing.current() or job.trace_context
    given = {
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
        given["BROKER_INPUT"] = str(folder.payload)
    return inherited | given | {name.upper().replace("-", "_"): value for name, value in trace.items()}
