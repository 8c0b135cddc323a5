"""Match the paths of requests with the path templates of the API."""

import re
from collections.abc import Iterable

_PARAMETER = re.compile(r"\{(\w+)\}")


class PathTemplates:
    """The path templates of an application. Regular expressions would take several times as long.

    Args:
        templates: The templates, like `/v1/tasks/{task_id}`. Each has one parameter at most; those with the
            same number of segments have it in the same place. A path that is a template itself matches no
            other.

    Raises:
        ValueError: A template has its parameter in another place.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._fixed: set[str] = set()
        # The place of the parameter, by the number of segments.
        self._places: dict[int, int] = {}
        # Each template and the name of its parameter, by the template with an empty segment in its place.
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
                raise ValueError(f"{template} does not have its parameter where other templates have it")
            self._with_parameter[_PARAMETER.sub("", template)] = template, name

    def match(self, path: str) -> tuple[str, dict[str, str]] | None:
        """Return the template that a path matches, and the path parameter by its name."""
        if path in self._fixed:
            return path, {}
        segments = path.split("/")
        if (place := self._places.get(len(segments))) and (value := segments[place]):
            segments[place] = ""
            if found := self._with_parameter.get("/".join(segments)):
                template, name = found
                return template, {name: value}
        return None
