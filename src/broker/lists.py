"""Lists: what may be some moments old is read from a copy of the database, where there is one."""

import math
import time
from typing import Protocol

import structlog

from broker.errors import Unavailable
from broker.store import Store
from broker.store.engine import Answer, Do, Given

log = structlog.get_logger(__name__)

# A copy that does not answer is not asked again for so long; who lists does not wait for it.
_PAUSE_SECONDS = 10.0


class Reader(Protocol):
    """Whatever reads."""

    async def read(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """What something that needs no transaction finds."""


class Lists:
    """Reads from the copy, or from the database itself where there is none, or it does not answer.

    Args:
        store: The database.
        copy: A hot standby of it.
    """

    def __init__(self, store: Store, copy: Store | None = None) -> None:
        self._store = store
        self._copy = copy
        self._again_at = -math.inf
        #: How often the database itself was read though there is a copy.
        self.missed = 0

    async def read(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """What a reading finds.

        Raises:
            Unavailable: The database does not answer, either.
            BadRequest: PostgreSQL refuses a value.
        """
        if self._copy is not None:
            if time.monotonic() >= self._again_at:
                try:
                    return await self._copy.read(do, *args, **kwargs)
                except Unavailable as error:
                    self._again_at = time.monotonic() + _PAUSE_SECONDS
                    log.warning("lists are read from the database itself", error=repr(error.__cause__))
            self.missed += 1
        return await self._store.read(do, *args, **kwargs)

    def break_off(self) -> None:
        """End every connection to the copy."""
        if self._copy is not None:
            self._copy.break_off()

    async def close(self) -> None:
        """Let go of the copy."""
        if self._copy is not None:
            await self._copy.close()
