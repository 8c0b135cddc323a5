"""Requests and responses about keys."""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from broker.schemas.values import Id, Moment, Next, Request

#: The first characters of each key.
KEY_PREFIX = "bk_"
Role = Literal["submitter", "tool", "assigner", "operator", "admin"]
#: What each role may do, in words. The guard of each endpoint says it exactly.
ROLES: Mapping[Role, str] = {
    "submitter": "submits tasks; reads, retries and deletes those that its key submitted",
    "tool": "registers tools, and does the work of those that its key registered",
    "assigner": "sees what waits, pairs tasks with tools, makes remarks",
    "operator": "reads everything; cancels, retries, drains, deletes, accepts",
    "admin": "everything",
}
KeyName = Annotated[Id, Meta(description="What the key submits and registers belongs to this name.")]


class NewKey(Request, kw_only=True):
    """A key to make: its name, and what it may do."""

    name: KeyName
    roles: Annotated[list[Role], Meta(min_length=1, max_length=100)]
    replace: Annotated[
        bool, Meta(description="Revoke the key that has the name; the new one gets what belongs to the name.")
    ] = False


class Key(Struct, kw_only=True):
    """A key in use; the key itself is shown only once, when it is made."""

    name: str
    roles: list[Role]
    created_at: Moment
    last_used_at: Annotated[
        Moment | None, Meta(description="To about ten seconds; null if it was never used.")
    ]


class MadeKey(Struct, kw_only=True):
    """A key that was made just now, with the key itself."""

    name: str
    roles: list[Role]
    created_at: Moment
    key: Annotated[str, Meta(description="Keep it: it is shown only here.")]


class KeyPage(Struct, kw_only=True):
    """Some of the keys in use; `next` goes into `?after=`, null at the end."""

    items: list[Key]
    next: Next
