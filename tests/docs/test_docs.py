"""Every block of code in the pages runs, in the page's order, against a real broker."""

from pathlib import Path

import pytest

from broker.postgres.cluster import EmbeddedPostgres
from broker.store import migration
from tests import ROOT
from tests.conftest import Running
from tests.support import markdown

README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("text", [page.read_text() for page in PAGES], ids=[page.stem for page in PAGES])
async def test_every_block_of_a_page_runs(text: str, broker: Running, tmp_path: Path, data_dir: Path) -> None:
    if "broker backup" in text:
        # What a service has made that ran before.
        with EmbeddedPostgres(data_dir) as postgres:
            await migration.migrate(postgres.url())
    await markdown.run(text, tmp_path, broker.url, BROKER_DATA_DIR=str(data_dir))


async def test_a_newcomer_has_a_result_in_five_minutes(broker: Running, tmp_path: Path) -> None:
    await markdown.run(markdown.section(README, "In five minutes"), tmp_path, broker.url)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert markdown.broken_links(page) == []
