"""A tool or an assigner in its own process: `python -m tests.crash.program tool --id t1`."""

import argparse
import asyncio
import os
import random
from pathlib import Path

from broker.client import Assigner, AsyncJob, FailedError, Tool

# Longer than the timeout of a task that hangs.
HANG_SECONDS = 2
# The data of every tenth report, about 300 kB of JSON.
LARGE = [0.123456789] * 25_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["tool", "assigner"])
    parser.add_argument("--id", default="t")
    parser.add_argument("--runs", type=Path, help="The file to which every completed run is appended.")
    arguments = parser.parse_args()
    if arguments.kind == "assigner":
        Assigner().run()
        return
    tool = Tool(arguments.id, {}, capacity=8, lease_seconds=5)
    runs = os.open(arguments.runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @tool.handler
    async def work(job: AsyncJob) -> object:
        await job.report(0.5, "half way")
        await asyncio.sleep(random.uniform(0, 0.02))
        if job.attempt == 1 and job.payload["at_first"] == "fails":
            raise FailedError("the first attempt fails on purpose")
        if job.attempt == 1:
            reports = job.payload["reports"]
            for number in range(reports):
                await job.report(number / reports, "a long report", LARGE if number % 10 == 0 else number)
        if job.attempt == 1 and job.payload["at_first"] == "hangs":
            await asyncio.sleep(HANG_SECONDS)
        # A single write does not mix with those of other processes.
        os.write(runs, f"{job.task_id} {job.id}\n".encode())
        return job.payload["name"]

    tool.run()


if __name__ == "__main__":
    main()
