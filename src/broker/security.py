"""Who calls: keys with their roles, tools' tokens, and what is known of them for a moment.

A key is 32 bytes of chance. So is a token, which also says whose it is: it is looked up by that, and compared
in constant time. Of both the database has the SHA-256 alone; there is nothing slower to be gained by, as
there is nothing to guess.
"""

import asyncio
import binascii
import math
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest
from typing import Literal, get_args

import structlog
from msgspec import Struct

from broker.errors import Unauthenticated, Unavailable
from broker.owners import FRESH_SECONDS, Owners
from broker.schemas import ID_PATTERN
from broker.store import Store, keys
from broker.store.ownership import ToolOwner

log = structlog.get_logger(__name__)

Role = Literal["submitter", "tool", "assigner", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

#: The admin key of the settings; no key in the database can be called so.
ADMIN = "@admin"

_ID = re.compile(ID_PATTERN)
# The least time between two readings of the keys.
_PAUSE_SECONDS = 0.1

_KEY, _TOKEN = "bk_", "bt_"
_SECRET_LENGTH = len(secrets.token_urlsafe(32))


class Caller(Struct, frozen=True, kw_only=True):
    """Who calls.

    Args:
        key: The name of the key; None: there are no keys, and everybody may do everything, or a tool calls.
        roles: What it may do.
        tool_id: The tool, where one calls by its token.
    """

    key: str | None = None
    roles: frozenset[Role] = frozenset()
    tool_id: str | None = None


#: Whoever calls while there are no keys.
ANYBODY = Caller(roles=frozenset(ROLES))


def new_key() -> str:
    """A key nobody has had."""
    return _KEY + secrets.token_urlsafe(32)


def new_secret() -> str:
    """The secret part of a token nobody has had."""
    return secrets.token_urlsafe(32)


def token_of(tool_id: str, secret: str) -> str:
    """A tool's token."""
    return f"{_TOKEN}{urlsafe_b64encode(tool_id.encode()).decode().rstrip('=')}_{secret}"


def hashed(secret: str) -> bytes:
    """A secret as it is kept."""
    return sha256(secret.encode()).digest()


class Keyring:
    """The keys and tokens that are good.

    Args:
        store: The database, which has them.
        owners: Knows whose the tools are, and the hashes of their tokens.
        admin_key: An admin key that is not in the database.
        may_be_open: Whether everybody may do everything for as long as there are no keys.
    """

    def __init__(
        self, store: Store, owners: Owners, *, admin_key: str | None = None, may_be_open: bool = True
    ) -> None:
        self._store = store
        self._owners = owners
        self._admin = hashed(admin_key) if admin_key else None
        #: Whether everybody may do everything.
        self.is_open = may_be_open and admin_key is None
        self._keys: dict[bytes, Caller] = {}
        # The names of the keys that are good; a token is, while the key that registered its tool is.
        self._names: set[str | None] = set()
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def caller(self, bearer: str | None) -> Caller:
        """Who calls with this key or token, as it was known two seconds ago at most.

        Raises:
            Unauthenticated: Nobody whom we know.
            Unavailable: That could not be found out.
        """
        await self.know(asyncio.get_running_loop().time() - FRESH_SECONDS)
        if self.is_open:
            return ANYBODY
        if not bearer:
            raise Unauthenticated
        digest = hashed(bearer)
        if self._admin is not None and compare_digest(digest, self._admin):
            return Caller(key=ADMIN, roles=frozenset({"admin"}))
        return await (self._of_token(bearer) if bearer.startswith(_TOKEN) else self._of_key(digest))

    async def know(self, since: float = -math.inf) -> None:
        """Know the keys as they were then, or later; all who ask at once share a reading.

        Where the database says nothing, what was known stays so: nothing else is to be had then, either.

        Args:
            since: By the loop's clock; else: as they were at any time.

        Raises:
            Unavailable: The keys were never read.
        """
        while self._read_at < since or self._read_at == -math.inf:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="keys")
            try:
                await asyncio.shield(self._reading)
            except Unavailable:
                if self._read_at == -math.inf:
                    raise
                return

    async def _read(self) -> None:
        # For whoever guesses keys, they are not read all the time.
        await asyncio.sleep(self._read_at + _PAUSE_SECONDS - asyncio.get_running_loop().time())
        began = asyncio.get_running_loop().time()
        found = await self._store.read(keys.all_of_them)
        self._keys = {
            key.hash: Caller(key=key.name, roles=frozenset(ROLES).intersection(key.roles))
            for key in found
            if key.revoked_at is None
        }
        self._names = {caller.key for caller in self._keys.values()} | {None, ADMIN if self._admin else None}
        self._read_at = began
        if found and self.is_open:
            self.is_open = False
            log.info("there are keys: every call needs one")

    async def _of_key(self, digest: bytes) -> Caller:
        if digest not in self._keys:
            # It may have been made just now.
            await self.know(asyncio.get_running_loop().time())
        if (found := self._keys.get(digest)) is None:
            raise Unauthenticated
        return found

    async def _of_token(self, token: str) -> Caller:
        coded, secret = token[len(_TOKEN) : -_SECRET_LENGTH - 1], token[-_SECRET_LENGTH:]
        try:
            tool_id = urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode("ascii")
        except (binascii.Error, UnicodeDecodeError):
            raise Unauthenticated from None
        if not _ID.match(tool_id):
            raise Unauthenticated
        given = hashed(secret)

        def is_its(owner: ToolOwner) -> bool:
            is_good = owner.token_hash is not None and compare_digest(owner.token_hash, given)
            return is_good and owner.key in self._names

        if not await self._owners.tool_is(tool_id, is_its):
            raise Unauthenticated
        return Caller(tool_id=tool_id)
