"""The names that the OpenAPI document has for classes that are called otherwise in the code."""

import re
from typing import Any

import msgspec
from msgspec import Struct

from broker.schemas.tools import ToolStatus

# `broker.client` has classes of these names, and they are what users import.
_NAMES: dict[type[Struct], str] = {ToolStatus: "Tool"}


def component_name(form: type[Struct]) -> str:
    """Return the name of a class in the document."""
    return _NAMES.get(form, form.__name__)


def renamed(schemas: dict[str, Any]) -> Any:
    """Return the schemas, which msgspec names after their classes, under the names of the document."""
    text = msgspec.json.encode(schemas).decode()
    for form, name in _NAMES.items():
        # The name is a key, a title, or the end of a reference.
        text = re.sub(rf'(?<=["/]){form.__name__}(?=")', name, text)
    return msgspec.json.decode(text)
