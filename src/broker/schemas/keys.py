"""Requests and responses about keys."""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from broker.schemas.values import Id, Moment, Next, Request

#: The first characters of each key.
KEY_PREFIX = "bk_"
Role = Literal["submitter", "tool", "assigner", "operator", "admin"]
#: The rights of each role in words. The guard of each endpoint defines them exactly.
ROLES: Mapping[Role, str] = {
    "submitter": "submits tasks; reads, retries and cancels its own tasks",
    "tool": "registers tools, and does the work of its own tools",
    "assigner": "reads candidates, assigns tasks to tools, and writes remarks",
    "operator": "reads all except keys; cancels and retries tasks, drains and deletes tools,"
    " accepts late results",
    "admin": "does everything, also creates and revokes keys",
}
KeyName = Annotated[Id, Meta(description="Name of the key. Tasks and tools of a key belong to its name.")]
KeyRoles = Annotated[list[Role], Meta(description="The roles of the key.")]
KeyCreatedAt = Annotated[Moment, Meta(description="Time when the key was created.")]


class NewKey(Request, kw_only=True):
    """A key to create: its name and its roles."""

    name: KeyName
    roles: Annotated[
        list[Role], Meta(min_length=1, max_length=100, description="The roles of the key, one or more.")
    ]
    replace: Annotated[
        bool,
        Meta(
            description="True: if a key with this name exists, revoke it. Its tasks and tools then belong to"
            " the new key. False: if a key with this name exists, respond with 409."
        ),
    ] = False


class Key(Struct, kw_only=True):
    """A key that is not revoked. The broker shows the secret itself only when it creates the key."""

    name: KeyName
    roles: KeyRoles
    created_at: KeyCreatedAt
    last_used_at: Annotated[
        Moment | None,
        Meta(
            description="Time of the last use, accurate to about ten seconds. Null if the key was never used."
        ),
    ]


class CreatedKey(Struct, kw_only=True):
    """The key that was created, with its secret."""

    name: KeyName
    roles: KeyRoles
    created_at: KeyCreatedAt
    key: Annotated[str, Meta(description="The secret. Store it now: the broker does not show it again.")]


class KeyPage(Struct, kw_only=True):
    """A page of the keys that are not revoked, in the order of their names."""

    items: Annotated[list[Key], Meta(description="The keys of this page.")]
    next: Next
