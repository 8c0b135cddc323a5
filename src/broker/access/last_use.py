"""Record when keys are used, every ten seconds at most, without a request waiting for it."""

import asyncio
import math

import structlog

from broker.errors import Unavailable
from broker.store import Store, keys

log = structlog.get_logger(__name__)

# The last use of a key is recorded at most once in this time.
_SECONDS = 10.0


class LastUse:
    """Records in the database when keys are used.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # By the hash of the key and the loop's clock.
        self._recorded: dict[bytes, float] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def note(self, key_hash: bytes) -> None:
        """Note that a key is used now; the database learns it soon."""
        now = asyncio.get_running_loop().time()
        if now - self._recorded.get(key_hash, -math.inf) < _SECONDS:
            return
        self._recorded[key_hash] = now
        recording = asyncio.create_task(self._record(key_hash), name="last use of a key")
        self._under_way.add(recording)
        recording.add_done_callback(self._under_way.discard)

    async def _record(self, key_hash: bytes) -> None:
        try:
            await self._store.one(keys.used, key_hash)
        except Unavailable as error:
            log.debug("last use of a key not recorded", error=repr(error))
            # The next request with this key tries again.
            self._recorded.pop(key_hash, None)
