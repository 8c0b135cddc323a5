"""Match the paths of requests with the path templates of the API."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_PARAMETER = re.compile(r"\{(\w+)\}")


class PathMatch(NamedTuple):
    """The template that a path matches, and its path parameters.

    Args:
        template: The template, like `/v1/tasks/{task_id}`.
        parameters: What the path has in place of each parameter.
    """

    template: str
    parameters: dict[str, str]


class PathTemplates:
    """The path templates of an application.

    Args:
        templates: The templates. A path that is a template itself matches no other.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._fixed: set[str] = set()
        # By the number of slashes, so that a path is compared with few of them.
        self._patterns: defaultdict[int, list[tuple[str, re.Pattern[str]]]] = defaultdict(list)
        for template in templates:
            if _PARAMETER.search(template):
                pattern = re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", template))
                self._patterns[template.count("/")].append((template, pattern))
            else:
                self._fixed.add(template)

    def match(self, path: str) -> PathMatch | None:
        """Return the template that a path matches, with its parameters."""
        if path in self._fixed:
            return PathMatch(path, {})
        for template, pattern in self._patterns.get(path.count("/"), ()):
            if matched := pattern.fullmatch(path):
                return PathMatch(template, matched.groupdict())
        return None
