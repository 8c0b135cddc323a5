"""The connections of clients: one that is slow, silent or greedy hurts only itself.

uvicorn looks after a connection that is idle after an answer, and after no other. Deadlines are plain
attributes here, and about once a second one sweep looks at the connections that may have one: a request
costs no timer, and one that waits for its answer nothing at all.
"""

from broker.server.connections.connection import Connection
from broker.server.connections.shared import Connections

__all__ = ["Connection", "Connections"]
