"""Every block of code in the pages runs, in the page's order, against a real broker."""

import re
from pathlib import Path
from typing import Any

import pytest

from broker.cli.serve import serve
from broker.postgres.cluster import EmbeddedPostgres
from broker.settings import Settings
from broker.store import group_commit, migration
from tests import ROOT
from tests.conftest import Running
from tests.support import markdown

GROWTH = (ROOT / "docs" / "operate" / "scale.md").read_text()
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [
    page for page in PAGES if any(block.kind != "text" for block in markdown.blocks(page.read_text()))
]


@pytest.mark.parametrize(
    "text", [page.read_text() for page in WITH_CODE], ids=[page.stem for page in WITH_CODE]
)
async def test_every_code_block_of_a_page_runs(
    text: str, broker: Running, tmp_path: Path, data_dir: Path
) -> None:
    if "broker backup" in text:
        # `broker backup` needs the database of an earlier service.
        with EmbeddedPostgres(data_dir) as postgres:
            await migration.migrate(postgres.url())
    await markdown.run(text, tmp_path, broker.url, BROKER_DATA_DIR=str(data_dir))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *PAGES], ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert markdown.broken_links(page) == []


# The capacity program

# Round costs, so that each result can be checked by hand.
ROUND_COSTS = {
    "service_ms_per_task": 1,
    "database_ms_per_task": 2,
    "service_ms_in_batches": 0.1,
    "database_ms_in_batches": 0.2,
    "service_ms_per_report": 0.5,
    "database_ms_per_report": 0.25,
    "idle_percent_per_10k_tools": 1,
    "kib_per_tool": 16,
    "mib_per_process": 100,
    "bytes_per_record": 1000,
    "commits_that_notify": 1000,
}


def capacity(**numbers: float) -> dict[str, Any]:
    """Run the program of docs/operate/scale.md with these numbers, and return its variables."""
    [program] = [block.code for block in markdown.blocks(GROWTH) if block.directive == "file: capacity.py"]
    for name, number in numbers.items():
        program, replaced = re.subn(rf"(?m)^{name} = \S+", f"{name} = {number}", program)
        assert replaced == 1, name
    variables: dict[str, Any] = {}
    exec(program, variables)
    return variables


def test_the_capacity_for_a_load_is_the_sum_of_its_parts() -> None:
    load = {
        "tools": 10_000,
        "tasks_per_second": 100,
        "reports_per_task": 2,
        "bytes_per_task": 9000,
        "cores_of_postgresql": 4,
    }
    needs = capacity(**ROUND_COSTS, **load)
    # In each second 100 ms for tasks, 100 ms for reports, and 10 ms for the tools that wait.
    assert needs["service_cores"] == pytest.approx(0.21)
    assert needs["database_cores"] == pytest.approx(0.25)
    assert (needs["brokers"], needs["processes"]) == (1, 1)
    assert needs["memory_mib"] == pytest.approx(256.25)
    assert needs["archive_gb_per_day"] == pytest.approx(86.4)
    # A task in a batch costs a tenth.
    assert capacity(**ROUND_COSTS, **load, share_in_batches=1)["service_cores"] == pytest.approx(0.12)


def test_a_load_beyond_one_postgresql_needs_several_brokers() -> None:
    needs = capacity(
        **ROUND_COSTS, tools=0, tasks_per_second=10_000, reports_per_task=0, cores_of_postgresql=8
    )
    assert needs["database_cores"] == pytest.approx(20)
    # 20 cores that are busy to 70 %, and 8 for each broker.
    assert (needs["brokers"], needs["processes"]) == (4, 4)
    # With 7,500 requests and 700 commits a second for each broker, a set has 10.7 requests.
    assert needs["set_size"] == pytest.approx(10.7, abs=0.05)


def test_the_limits_that_the_page_computes_with_are_the_services() -> None:
    settings = Settings(database_url="postgresql://unused")
    numbers = capacity()
    assert numbers["waiting_tools_per_process"] == settings.max_waits
    # Further ones are for statistics, the event stream and the listener.
    assert numbers["connections_per_process"] == settings.pool_size + settings.read_pool_size + 3
    assert numbers["largest_set"] == group_commit._LARGEST_SET
    [workers] = [option for option in serve.params if option.name == "workers"]
    assert f"`broker serve --workers N` on one machine, up to {workers.type.max}," in GROWTH


def test_the_costs_that_the_page_computes_with_are_those_of_its_tables() -> None:
    numbers = capacity()
    for name, text in {
        "one request for each step": (
            f"{numbers['service_ms_per_task']:.2f} | {numbers['database_ms_per_task']:.2f}"
        ),
        "batches": f"{numbers['service_ms_in_batches']:.2f} | {numbers['database_ms_in_batches']:.2f}",
        "reports": (
            f"A report costs {numbers['service_ms_per_report']:.2f} ms of the service"
            f" and {numbers['database_ms_per_report']:.2f} ms of the database"
        ),
        "records": f"a record takes {numbers['bytes_per_record'] / 1000:.1f} kB",
        "processes": f"has {numbers['mib_per_process']} MiB",
        "commits": f"{numbers['commits_that_notify']:,} transactions per second that notify",
    }.items():
        assert text in " ".join(GROWTH.split()), name
