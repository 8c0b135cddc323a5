"""Match the paths of requests with the path templates of the API."""

import re
from collections import defaultdict
from collections.abc import Iterable

_PARAMETER = re.compile(r"\{(\w+)\}")


class PathTemplates:
    """The path templates of an application. Regular expressions would take several times as long.

    Args:
        templates: The templates, like `/v1/tasks/{task_id}`, with one parameter at most. A path that is a
            template itself matches no other.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._fixed: set[str] = set()
        # By the number of segments: the places that a parameter may have.
        self._places: defaultdict[int, set[int]] = defaultdict(set)
        # Each template and the name of its parameter, by the template with an empty segment in its place.
        self._with_parameter: dict[str, tuple[str, str]] = {}
        for template in templates:
            names = _PARAMETER.findall(template)
            if not names:
                self._fixed.add(template)
                continue
            [name] = names
            segments = template.split("/")
            self._places[len(segments)].add(segments.index(f"{{{name}}}"))
            self._with_parameter[_PARAMETER.sub("", template)] = template, name

    def match(self, path: str) -> tuple[str, dict[str, str]] | None:
        """Return the template that a path matches, and the path parameter by its name."""
        if path in self._fixed:
            return path, {}
        segments = path.split("/")
        for place in self._places.get(len(segments), ()):
            value, segments[place] = segments[place], ""
            if value and (found := self._with_parameter.get("/".join(segments))):
                template, name = found
                return template, {name: value}
            segments[place] = value
        return None
