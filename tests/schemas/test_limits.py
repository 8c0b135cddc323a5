"""The numbers in the documentation, the containers and the descriptions equal the limits of the contract."""

import re

import asyncpg
import pytest

from broker.schemas import limits
from broker.settings import Settings
from broker.store import group_commit
from broker.store.overview import queue, tools
from broker.store.pages import MOST_BYTES
from tests import ROOT
from tests.support import description

MIB = 2**20
WAIT = f"{limits.LONGEST_WAIT_SECONDS} s"
BODY = f"{limits.LARGEST_BODY_BYTES // MIB} MiB"
TEXT = f"{limits.LONGEST_TEXT_CHARS:,} characters"

# The numbers in texts for people: the file, the words around the number, and the number.
NUMBERS = [
    ("docs/guides/submit-and-wait.md", r"has not ended after (\d+ s)econds", WAIT),
    ("docs/guides/python-tools.md", r"cuts a message at ([\d,]+ characters)", TEXT),
    ("docs/guides/large-files.md", r"up to (\d+ MiB)", BODY),
    ("containers/nginx/nginx.conf", r"BROKER_MAX_BODY_BYTES, (\d+ MiB)", BODY),
    ("containers/nginx/nginx.conf", r"longest wait is (\d+ s)", WAIT),
    ("containers/prometheus/alerts.yml", r"When ([\d,]+) requests wait", f"{group_commit._MOST_WAITING:,}"),
]


@pytest.mark.parametrize(("file", "pattern", "number"), NUMBERS)
def test_numbers_in_the_documentation_equal_the_limits_of_the_contract(
    file: str, pattern: str, number: str
) -> None:
    assert re.findall(pattern, (ROOT / file).read_text()) == [number]


def test_examples_use_only_valid_waits() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        waits = [float(wait) for wait in re.findall(r"[?&]wait=([\d.]+)", page.read_text())]
        assert max(waits, default=0) <= limits.LONGEST_WAIT_SECONDS, page.name


def test_nginx_has_larger_limits_than_the_broker() -> None:
    text = (ROOT / "containers/nginx/nginx.conf").read_text()
    [read_seconds] = re.findall(r"proxy_read_timeout (\d+)s;", text)
    [body_mib] = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(read_seconds) > limits.LONGEST_WAIT_SECONDS
    assert int(body_mib) * MIB > limits.LARGEST_BODY_BYTES


def test_default_settings_equal_the_limits_of_the_contract() -> None:
    settings = Settings()
    assert settings.max_body_bytes == limits.LARGEST_BODY_BYTES
    assert settings.max_text_chars == limits.LONGEST_TEXT_CHARS
    assert settings.max_depth == limits.DEEPEST_NESTING
    assert settings.max_match_bytes == limits.LARGEST_MATCH_BYTES


async def test_database_constraint_has_the_capacity_limits_of_the_contract(sql: asyncpg.Connection) -> None:
    definitions = await sql.fetch(
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where contype = 'c' and conrelid = cast('tools' as regclass)"
    )
    [(capacity,)] = [row for row in definitions if "capacity" in row[0]]
    assert re.findall(r"\d+", capacity) == ["1", str(limits.MOST_CAPACITY)]


def test_descriptions_name_the_limits() -> None:
    document = description.make()
    schemas, paths = document["components"]["schemas"], document["paths"]
    described = {
        "WorkWithReports.reports": f"Fewer if they are larger than {MOST_BYTES // MIB} MiB.",
        "ToolSummary.work": f"at most {tools.MOST_WORK}.",
        "QueuedKind.passed_by": f"the latest {queue.LATELY:,} in progress",
    }
    for name, words in described.items():
        schema, field = name.split(".")
        assert words in schemas[schema]["properties"][field]["description"], name
    summaries = {
        ("/v1/tasks/batch", "post"): f"up to {limits.MOST_IN_BATCH:,} tasks",
        ("/v1/tasks/remarks", "post"): f"up to {limits.MOST_IN_BATCH:,} tasks",
        ("/v1/work/batch", "post"): f"up to {limits.MOST_IN_BATCH:,} tasks",
        ("/v1/work/complete", "post"): f"up to {limits.MOST_COMPLETIONS:,} work items",
    }
    for (path, method), words in summaries.items():
        assert words in paths[path][method]["summary"], path
