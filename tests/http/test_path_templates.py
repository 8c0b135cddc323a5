"""Path templates: matching of paths, and their path parameters."""

import pytest

from broker.http.path_templates import PathTemplates

TEMPLATES = PathTemplates(
    ["/", "/v1/tasks", "/v1/tasks/batch", "/v1/tasks/{task_id}", "/v1/tasks/{task_id}/explain", "/{id}/of"]
)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/", ("/", {})),
        ("/v1/tasks", ("/v1/tasks", {})),
        ("/v1/tasks/batch", ("/v1/tasks/batch", {})),
        ("/v1/tasks/a.b", ("/v1/tasks/{task_id}", {"task_id": "a.b"})),
        ("/v1/tasks/a\nb", ("/v1/tasks/{task_id}", {"task_id": "a\nb"})),
        ("/v1/tasks/batch/explain", ("/v1/tasks/{task_id}/explain", {"task_id": "batch"})),
        ("/1/of", ("/{id}/of", {"id": "1"})),
        ("//of", None),
        ("/v1/tasks/", None),
        ("/v1/tasks/a/", None),
        ("/v1/tasks/a/explain/b", None),
        ("/v1/tasks/a\n/explain\n", None),
        ("/v1/tool", None),
        ("", None),
    ],
)
def test_path_matches_the_template_with_the_same_fixed_parts(path: str, match: object) -> None:
    assert TEMPLATES.match(path) == match


def test_ambiguous_templates_are_refused() -> None:
    with pytest.raises(ValueError, match="parameter"):
        PathTemplates(["/v1/tasks/{task_id}", "/v1/{kind}/batch"])
    with pytest.raises(ValueError, match="unpack"):
        PathTemplates(["/{a}/of/{b}"])
