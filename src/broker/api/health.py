"""/health: report whether the process is alive, and whether the service is ready."""

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE

from broker.errors import BrokerError, DatabaseTrouble
from broker.http.guards import anyone
from broker.http.parameters import extra_response
from broker.schemas.health import Alive, Ready
from broker.service import Service
from broker.store import schema_version


class HealthController(Controller):
    """Health checks for load balancers and container platforms."""

    path = "/health"
    tags = ("Health",)

    @get("/live", guards=[anyone])
    async def live(self) -> Alive:
        """Report that the process is running."""
        return Alive()

    @get(
        "/ready",
        guards=[anyone],
        responses={
            HTTP_503_SERVICE_UNAVAILABLE: extra_response(Ready, "Not ready. The failed check says why.")
        },
    )
    async def ready(self, service: NamedDependency[Service]) -> Response[Ready]:
        """Report whether the service can handle requests.

        It is ready if it reaches the database, the schema is current and the listener is connected. Otherwise
        the status is 503.
        """
        checks = {"database": "ok", "schema": "ok", "listener": "ok"}
        troubles, list_troubles = service.store.troubles, service.primary_reads.store.troubles
        try:
            problem = await service.store.read(schema_version.schema_problem)
            checks["schema"] = problem or "ok"
            checks["database"] = "; ".join(troubles.causes(of_service=True)) or "ok"
        except BrokerError as error:
            checks["database"] = error.cause if isinstance(error, DatabaseTrouble) else "does not respond"
            checks["schema"] = "unknown"
        if not service.listener.connected.is_set():
            checks["listener"] = "is not connected, so the broker checks once a second for waiting requests"
        # Lists have their own connections, so their errors do not make the service unready.
        causes = sorted({*troubles.causes(), *list_troubles.causes()})
        ready = all(state == "ok" for state in checks.values())
        return Response(
            Ready(status="ready" if ready else "unready", checks=checks, causes=causes),
            status_code=HTTP_200_OK if ready else HTTP_503_SERVICE_UNAVAILABLE,
        )
