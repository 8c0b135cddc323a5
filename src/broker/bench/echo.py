"""The ceiling for HTTP: a bare Litestar that answers what it was sent, one process, no database.

Run as a module; it serves on the port that it is given.
"""

import sys
from typing import Any

import uvicorn
from litestar import Litestar, post
from msgspec import Struct

from broker.server.http_server import UVICORN


class Task(Struct):
    """As much of a task as the load sends."""

    needs: Any
    payload: Any = None


@post("/echo")
async def echo(data: Task) -> Task:
    """Answer what was sent."""
    return data


if __name__ == "__main__":
    app = Litestar([echo], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=int(sys.argv[1]), **UVICORN)
