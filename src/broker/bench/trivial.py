"""A tool of the Python client with nothing to do: what a work costs its process.

Run as a module, with the service's URL and how much work it takes at once; it works until it is told to stop.
"""

import sys

from broker.client import AsyncWork, Tool

ID = "bench-trivial"


async def nothing(work: AsyncWork) -> None:
    """Do nothing."""


if __name__ == "__main__":
    tool = Tool(ID, {"can": ["render"]}, url=sys.argv[1], capacity=int(sys.argv[2]))
    tool.handler(nothing)
    tool.run()
