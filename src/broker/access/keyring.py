"""Find the caller of a request by its key or token, and briefly cache the keys.

A key is 32 secure random bytes. A token has 32 such bytes and the id of its tool. The broker looks up the
tool by this id and compares the token in constant time. The database stores only the SHA-256 of keys and
tokens. A slower hash would add nothing, because nobody can guess 32 random bytes.
"""

import asyncio
import math
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest

import structlog
from cachetools import TTLCache
from msgspec import Struct

from broker.access.ownership import FRESH_SECONDS, Owners
from broker.errors import Unauthenticated, Unavailable, VoidToken
from broker.schemas.keys import KEY_PREFIX, ROLES, Role
from broker.schemas.values import ID_PATTERN
from broker.store import Store, keys
from broker.store.leases import Beat
from broker.store.ownership import Token, ToolOwner

log = structlog.get_logger(__name__)

#: The name of the admin key in the settings. No key in the database can have this name.
ADMIN = "@admin"

_ID = re.compile(ID_PATTERN)
# How long the cached keys stay valid while the database is unreachable.
_STALE_SECONDS = 30.0
# The shortest time between two queries for the keys.
_PAUSE_SECONDS = 0.1
# The last use of a key is recorded at most once in this time.
_LAST_USE_SECONDS = 10.0
_MOST_LAST_USES = 20_000

_TOKEN = "bt_"  # noqa: S105 - a prefix, no token
# 32 random bytes are 43 characters.
_TOKEN_PARTS = re.compile(rf"{_TOKEN}(?P<id>[A-Za-z0-9_-]+)_(?P<secret>[A-Za-z0-9_-]{{43}})")


class Caller(Struct, frozen=True, kw_only=True):
    """The caller of a request.

    Args:
        key: The name of the key. None if no keys exist or the caller is a tool with its token.
        roles: The roles of the key.
        tool_id: The id of the tool if the caller is a tool with its token.
        registered_by: The name of the key that registered the tool.
        token: The tool's token in the request. Also set while no keys exist.
    """

    key: str | None = None
    roles: frozenset[Role] = frozenset()
    tool_id: str | None = None
    registered_by: str | None = None
    token: Token | None = None

    @property
    def is_anonymous(self) -> bool:
        """True if no keys exist, so that every request is allowed."""
        return self.key is None and self.tool_id is None

    def beat(self, tool_id: str) -> Beat:
        """Return the heartbeat of a tool, with the token if the token belongs to this tool."""
        token = self.token
        return Beat(tool_id, token.hash) if token and token.tool_id == tool_id else Beat(tool_id)


#: The caller while no keys exist.
ANONYMOUS = Caller(roles=frozenset(ROLES))


def new_key() -> str:
    """Return a new key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_secret() -> str:
    """Return the secret part of a new token."""
    return secrets.token_urlsafe(32)


def token_of(tool_id: str, secret: str) -> str:
    """Return a tool's token."""
    return f"{_TOKEN}{urlsafe_b64encode(tool_id.encode()).decode().rstrip('=')}_{secret}"


def hashed(secret: str) -> bytes:
    """Return the hash under which a secret is stored."""
    return sha256(secret.encode()).digest()


class Keyring:
    """The valid keys and tokens.

    Args:
        store: The database.
        owners: Looks up the hashes of tools' tokens.
        admin_key: An admin key that is not in the database.
        may_be_open: Whether every request is allowed while no keys exist.
    """

    def __init__(
        self, store: Store, owners: Owners, *, admin_key: str | None = None, may_be_open: bool = True
    ) -> None:
        self._store = store
        self._owners = owners
        self._admin = hashed(admin_key) if admin_key else None
        #: Whether every request is allowed.
        self.is_open = may_be_open and admin_key is None
        self._keys: dict[bytes, Caller] = {}
        # The keys whose tools may use their tokens. None stands for tools that were registered without a key.
        self._registrars: set[str | None] = set()
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None
        # The hashes of the keys whose use was recorded lately.
        self._used: TTLCache[bytes, None] = TTLCache(_MOST_LAST_USES, _LAST_USE_SECONDS)
        self._recording: set[asyncio.Task[None]] = set()

    async def caller(self, bearer: str | None, *, fenced: bool = False) -> Caller:
        """Return the caller with a key or token. Keys that were read in the last two seconds count.

        Args:
            bearer: The key or token.
            fenced: Whether the SQL statement of the request refuses an invalid token. If so, the token needs
                no check here while no keys exist.

        Raises:
            Unauthenticated: The key or token is missing or invalid.
            Unavailable: The keys could not be read.
        """
        now = asyncio.get_running_loop().time()
        if now - self._read_at > FRESH_SECONDS:
            await self._refresh(now)
        if self.is_open:
            return await self._without_keys(bearer, fenced=fenced)
        if not bearer:
            raise Unauthenticated("The request has no key. Send it as `Authorization: Bearer KEY`.")
        digest = hashed(bearer)
        if self._admin is not None and compare_digest(digest, self._admin):
            return Caller(key=ADMIN, roles=frozenset({"admin"}))
        return await (self._of_token(bearer) if bearer.startswith(_TOKEN) else self._of_key(digest))

    async def _refresh(self, now: float) -> None:
        try:
            await self.load(now - FRESH_SECONDS)
        except Unavailable:
            # While the database is unreachable, keep accepting keys that were valid a moment ago.
            if now - self._read_at > _STALE_SECONDS:
                raise

    async def load(self, since: float = -math.inf) -> None:
        """Read the keys, unless they were read since a given time.

        Concurrent requests share one query.

        Args:
            since: A time of the event loop's clock. By default, the keys are read only once.

        Raises:
            Unavailable: The keys could not be read.
        """
        while self._read_at < since or self._read_at == -math.inf:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="keys")
            await asyncio.shield(self._reading)

    async def _read(self) -> None:
        # Without this pause, each request with an invalid key would cause a query.
        await asyncio.sleep(self._read_at + _PAUSE_SECONDS - asyncio.get_running_loop().time())
        began = asyncio.get_running_loop().time()
        stored_keys = await self._store.read(keys.read_all)
        self._keys = {
            key.hash: Caller(key=key.name, roles=frozenset(ROLES).intersection(key.roles))
            for key in stored_keys
            if key.revoked_at is None
        }
        self._registrars = {
            caller.key for caller in self._keys.values() if not caller.roles.isdisjoint(("tool", "admin"))
        } | {None, ADMIN if self._admin else None}
        self._read_at = began
        if stored_keys and self.is_open:
            self.is_open = False
            log.info("first key found, every request needs a key now")

    async def _of_key(self, digest: bytes) -> Caller:
        if digest not in self._keys:
            # The key may have been created just now.
            await self.load(asyncio.get_running_loop().time())
        if (caller := self._keys.get(digest)) is None:
            raise Unauthenticated
        if digest not in self._used:
            self._used[digest] = None
            recording = asyncio.create_task(self._record_use(digest), name="last use of a key")
            self._recording.add(recording)
            recording.add_done_callback(self._recording.discard)
        return caller

    async def _record_use(self, digest: bytes) -> None:
        try:
            await self._store.one(keys.used, digest)
        except Unavailable as error:
            log.debug("last use of a key not recorded", error=repr(error))
            # The next request with this key tries again.
            self._used.pop(digest, None)

    async def _without_keys(self, bearer: str | None, *, fenced: bool) -> Caller:
        """Return the caller while no keys exist. A key is ignored, but a tool's token is checked.

        Without this check, two programs with the same tool id would both do its work.
        """
        if bearer is None or not bearer.startswith(_TOKEN):
            return ANONYMOUS
        token = _token_in(bearer)
        registered_by = None if fenced else await self._registrar_of(token)
        return Caller(roles=ANONYMOUS.roles, token=token, registered_by=registered_by)

    async def _of_token(self, bearer: str) -> Caller:
        token = _token_in(bearer)
        registered_by = await self._registrar_of(token)
        if registered_by not in self._registrars:
            raise VoidToken
        return Caller(tool_id=token.tool_id, registered_by=registered_by, token=token)

    async def _registrar_of(self, token: Token) -> str | None:
        """Return the name of the key that registered a token's tool, or None if there was no key."""
        registered_by: str | None = None

        def has_token(owner: ToolOwner) -> bool:
            nonlocal registered_by
            registered_by = owner.key
            return owner.token_hash is not None and compare_digest(owner.token_hash, token.hash)

        if not await self._owners.tool_is(token.tool_id, has_token):
            raise VoidToken
        return registered_by


def _token_in(token: str) -> Token:
    """Return the tool and the hash of a token.

    Raises:
        Unauthenticated: The text is not a token.
    """
    if (parts := _TOKEN_PARTS.fullmatch(token)) is None:
        raise Unauthenticated
    try:
        tool_id = urlsafe_b64decode(parts["id"] + "=" * (-len(parts["id"]) % 4)).decode("ascii")
    except ValueError:
        raise Unauthenticated from None
    if not _ID.match(tool_id):
        raise Unauthenticated
    return Token(tool_id, hashed(parts["secret"]))
