"""The connections of clients. A client that is slow, silent or greedy affects no other client.

uvicorn has a timeout only for a connection that is idle after a response. In this package, deadlines are
plain attributes, and a sweep once a second checks the connections that may have one. So a request needs no
timer, and a waiting request costs nothing.
"""

from broker.server.connections.client_connection import ClientConnection
from broker.server.connections.shared import Connections

__all__ = ["ClientConnection", "Connections"]
