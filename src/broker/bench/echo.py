"""Measure the limit for HTTP: one process of a bare Litestar, without a database, that echoes requests.

Run as a module, with the port as its argument.
"""

import sys
from typing import Any

import uvicorn
from litestar import Litestar, post
from msgspec import Struct

from broker.server.http_server import UVICORN


class EchoTask(Struct):
    """The fields of a task that the load sends."""

    needs: Any
    payload: Any = None


@post("/echo")
async def echo(data: EchoTask) -> EchoTask:
    """Return the task."""
    return data


if __name__ == "__main__":
    app = Litestar([echo], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=int(sys.argv[1]), **UVICORN)
