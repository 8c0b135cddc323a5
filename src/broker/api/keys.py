"""/v1/keys: create, list and revoke keys."""

import asyncio
import contextlib

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from broker.access.keyring import hashed, new_key
from broker.errors import KeyExists, KeyNotFound, Unavailable
from broker.http.guards import allow
from broker.http.parameters import After, Limit, id_of
from broker.schemas.keys import CreatedKey, KeyPage, NewKey
from broker.service import Service
from broker.store import keys


class KeysController(Controller):
    """Keys: each has a name and one or more roles."""

    path = "/v1/keys"
    tags = ("Keys",)

    @post(guards=[allow()], errors=[KeyExists])
    async def create(self, data: JSONBody[NewKey], service: NamedDependency[Service]) -> CreatedKey:
        """Create a key.

        The broker shows the `key` only in this response. With `replace`, it revokes the key that has the
        name, and the new key gets the tasks and tools of that key. As soon as a key exists, every request
        needs one. Therefore give the first key the role `admin`.
        """
        key = new_key()
        roles = list(dict.fromkeys(data.roles))
        created_at = await service.store.run(keys.create, data.name, roles, hashed(key), replace=data.replace)
        if created_at is None:
            raise KeyExists
        await _read_keys(service)
        return CreatedKey(name=data.name, roles=roles, created_at=created_at, key=key)

    @get(guards=[allow()])
    async def list(
        self, service: NamedDependency[Service], limit: Limit = 100, after: After = None
    ) -> KeyPage:
        """List the keys that are not revoked, in the order of their names."""
        return await service.store.read(keys.page, limit=limit, after=after)

    @delete("/{key_name:str}", guards=[allow()], errors=[KeyNotFound])
    async def revoke(self, key_name: FromPath[str], service: NamedDependency[Service]) -> None:
        """Revoke a key and the tokens of its tools.

        Within two seconds, every process of the broker refuses the key and the tokens. When the leases of the
        tools expire, the tools go offline, and their tasks become available again. The tasks and tools of the
        key still belong to its name.
        """
        if not await service.store.run(keys.revoke, id_of(key_name, KeyNotFound)):
            raise KeyNotFound
        await _read_keys(service)


async def _read_keys(service: Service) -> None:
    """Read the keys again after a change. Other processes do so within two seconds."""
    with contextlib.suppress(Unavailable):
        await service.keyring.load(asyncio.get_running_loop().time())
