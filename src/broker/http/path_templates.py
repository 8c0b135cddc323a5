"""Match the paths of requests with the path templates of the API."""

import re
from collections.abc import Iterable

_PARAMETER = re.compile(r"\{(\w+)\}")


class PathTemplates:
    """The path templates of an application. They match several times faster than regular expressions.

    Args:
        templates: The templates, such as `/v1/tasks/{task_id}`. A template has at most one parameter.
            Templates with the same number of segments have it in the same segment. A path that is equal to a
            template matches no other template.

    Raises:
        ValueError: A template has its parameter in another segment.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._fixed: set[str] = set()
        # The index of the parameter's segment, by the number of segments.
        self._places: dict[int, int] = {}
        # Each template with the name of its parameter. The key is the template with this segment empty.
        self._with_parameter: dict[str, tuple[str, str]] = {}
        for template in templates:
            names = _PARAMETER.findall(template)
            if not names:
                self._fixed.add(template)
                continue
            [name] = names
            segments = template.split("/")
            place = segments.index(f"{{{name}}}")
            if self._places.setdefault(len(segments), place) != place:
                raise ValueError(f"{template} has its parameter in another segment than other templates")
            self._with_parameter[_PARAMETER.sub("", template)] = template, name

    def match(self, path: str) -> tuple[str, dict[str, str]] | None:
        """Return the template that matches a path, with its path parameter, or None if none matches."""
        if path in self._fixed:
            return path, {}
        segments = path.split("/")
        if (place := self._places.get(len(segments))) and (value := segments[place]):
            segments[place] = ""
            if match := self._with_parameter.get("/".join(segments)):
                template, name = match
                return template, {name: value}
        return None
