"""Who calls: keys with their roles, tools' tokens, and what is known of them for a moment.

A key is 32 bytes of chance. So is a token, which also says whose it is: it is looked up by that, and compared
in constant time. Of both the database has the SHA-256 alone; there is nothing slower to be gained by, as
there is nothing to guess.
"""

import asyncio
import math
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest

import structlog
from msgspec import Struct

from broker.access.last_use import LastUse
from broker.access.ownership import FRESH_SECONDS, Owners
from broker.errors import Unauthenticated, Unavailable, VoidToken
from broker.schemas.keys import KEY_PREFIX, ROLES, Role
from broker.schemas.values import ID_PATTERN
from broker.store import Store, keys
from broker.store.leases import Beat
from broker.store.ownership import Token, ToolOwner

log = structlog.get_logger(__name__)

#: The admin key of the settings; no key in the database can be called so.
ADMIN = "@admin"

_ID = re.compile(ID_PATTERN)
# How long we go on with what is known when the keys cannot be read.
_STALE_SECONDS = 30.0
# The least time between two readings of the keys.
_PAUSE_SECONDS = 0.1

_TOKEN = "bt_"  # noqa: S105 - none of them is one
# What is 32 bytes of chance is 43 characters.
_TOKEN_PARTS = re.compile(rf"{_TOKEN}(?P<id>[A-Za-z0-9_-]+)_(?P<secret>[A-Za-z0-9_-]{{43}})")


class Caller(Struct, frozen=True, kw_only=True):
    """Who calls.

    Args:
        key: The name of the key; None: there are no keys, and everybody may do everything, or a tool calls.
        roles: What it may do.
        tool_id: The tool, where one calls by its token.
        registered_by: And the name of the key that registered it.
        token: The token of a tool that came with the request, also while there are no keys.
    """

    key: str | None = None
    roles: frozenset[Role] = frozenset()
    tool_id: str | None = None
    registered_by: str | None = None
    token: Token | None = None

    @property
    def is_anybody(self) -> bool:
        """Whether there are no keys, and so everybody may do everything."""
        return self.key is None and self.tool_id is None

    def beat(self, tool_id: str) -> Beat:
        """Return a sign of life of a tool: with the token, if it is that tool's."""
        token = self.token
        return Beat(tool_id, token.hash) if token and token.tool_id == tool_id else Beat(tool_id)


#: Whoever calls while there are no keys.
ANYBODY = Caller(roles=frozenset(ROLES))


def new_key() -> str:
    """A key nobody has had."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


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
        # The names of the keys whose tools' tokens are good; nobody's tool has a good one, too.
        self._registrars: set[str | None] = set()
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._last_use = LastUse(store)

    async def caller(self, bearer: str | None, *, fenced: bool = False) -> Caller:
        """Who calls with this key or token, as it was known two seconds ago at most.

        Args:
            bearer: The key or token.
            fenced: Whether the statement that does what is asked refuses a void token. While there are no
                keys, the token is then not looked up here.

        Raises:
            Unauthenticated: Nobody whom we know.
            Unavailable: That could not be found out.
        """
        now = asyncio.get_running_loop().time()
        if now - self._read_at > FRESH_SECONDS:
            await self._be_fresh(now)
        if self.is_open:
            return await self._of_anybody(bearer, fenced=fenced)
        if not bearer:
            raise Unauthenticated("No key came with this call: send it as `Authorization: Bearer KEY`.")
        digest = hashed(bearer)
        if self._admin is not None and compare_digest(digest, self._admin):
            return Caller(key=ADMIN, roles=frozenset({"admin"}))
        return await (self._of_token(bearer) if bearer.startswith(_TOKEN) else self._of_key(digest))

    async def _be_fresh(self, now: float) -> None:
        try:
            await self.know(now - FRESH_SECONDS)
        except Unavailable:
            # Little else is to be had of us then; but what is, is for those who were good just now.
            if now - self._read_at > _STALE_SECONDS:
                raise

    async def know(self, since: float = -math.inf) -> None:
        """Know the keys as they were then, or later; all who ask at once share a reading.

        Args:
            since: By the loop's clock; else: as they were at any time.

        Raises:
            Unavailable: They could not be read.
        """
        while self._read_at < since or self._read_at == -math.inf:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="keys")
            await asyncio.shield(self._reading)

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
        self._registrars = {
            caller.key for caller in self._keys.values() if not caller.roles.isdisjoint(("tool", "admin"))
        } | {None, ADMIN if self._admin else None}
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
        self._last_use.note(digest)
        return found

    async def _of_anybody(self, bearer: str | None, *, fenced: bool) -> Caller:
        """While there are no keys, a key is no hindrance; a tool's token is checked all the same.

        Else two programs with one tool's id would both do its work.
        """
        if bearer is None or not bearer.startswith(_TOKEN):
            return ANYBODY
        token = _token_in(bearer)
        registered_by = None if fenced else await self._registrar_of(token)
        return Caller(roles=ANYBODY.roles, token=token, registered_by=registered_by)

    async def _of_token(self, bearer: str) -> Caller:
        token = _token_in(bearer)
        registered_by = await self._registrar_of(token)
        if registered_by not in self._registrars:
            raise VoidToken
        return Caller(tool_id=token.tool_id, registered_by=registered_by, token=token)

    async def _registrar_of(self, token: Token) -> str | None:
        """The name of the key that registered a token's tool; None: it was registered without one.

        Raises:
            VoidToken: The tool has another token now, or is gone.
        """
        registered_by: str | None = None

        def is_its(owner: ToolOwner) -> bool:
            nonlocal registered_by
            registered_by = owner.key
            return owner.token_hash is not None and compare_digest(owner.token_hash, token.hash)

        if not await self._owners.tool_is(token.tool_id, is_its):
            raise VoidToken
        return registered_by


def _token_in(token: str) -> Token:
    """A tool's token as the database knows it.

    Raises:
        Unauthenticated: It is no token.
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
