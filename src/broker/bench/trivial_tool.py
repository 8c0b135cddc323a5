"""Run a tool with the Python client that does nothing, to measure the cost of a work item in its process.

Run as a module, with the URL of the service and the capacity as arguments.
"""

import sys

from broker.client import AsyncJob, Tool

ID = "bench-trivial"


async def nothing(job: AsyncJob) -> None:
    """Do nothing."""


if __name__ == "__main__":
    tool = Tool(ID, {"can": ["render"]}, url=sys.argv[1], capacity=int(sys.argv[2]))
    tool.handler(nothing)
    tool.run()
