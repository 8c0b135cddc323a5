"""Take the screenshots of the dashboard in the documentation: `python -m tests.support.screenshots`.

They show the demo while it runs and after it has ended.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from playwright.async_api import Locator, Page, async_playwright, expect

from tests import ROOT
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.processes import clean_environment, free_port, wait_until_ready

FOLDER = ROOT / "docs" / "images"
SIZE = {"width": 1280, "height": 885}
PHONE = {"width": 390, "height": 844}
# The number of tools in the demo.
TOOLS = 5


def main() -> None:
    """Run the demo and take the screenshots."""
    FOLDER.mkdir(exist_ok=True)
    url = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory(prefix="broker-pictures-") as folder:
        Path(folder).chmod(0o755)
        options = ["--keep", "--port", str(port), "--data-dir", f"{folder}/data"]
        demo = subprocess.Popen(
            [sys.executable, "-m", "broker.cli", "demo", *options],
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
        )
        try:
            asyncio.run(take_screenshots(url))
        finally:
            demo.terminate()
            demo.wait()


async def take_screenshots(url: str) -> None:
    """Follow the demo from its start to its end."""
    await wait_until_ready(url)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport=SIZE, color_scheme="light")
        phone = await browser.new_page(viewport=PHONE, color_scheme="dark", device_scale_factor=2)
        await asyncio.gather(page.goto(url), phone.goto(url))
        await asyncio.gather(wait_for_progress(page), wait_for_progress(phone))
        await asyncio.gather(
            page.screenshot(path=FOLDER / "overview.png"), phone.screenshot(path=FOLDER / "phone.png")
        )
        await expect(page.get_by_text("No work in progress.")).to_be_visible(timeout=120_000)
        await page.goto(f"{url}/#/history/{'/'.join(await time_range(url))}")
        await expect(page.locator("canvas").first).to_be_visible()
        await expect(page.get_by_text("Loading…")).to_have_count(0)
        await expect(running_count(page)).to_have_text("0")
        await page.screenshot(path=FOLDER / "history.png")
        await browser.close()


async def time_range(url: str) -> tuple[str, str]:
    """Return the start of the first attempt and the end of the last one."""
    async with httpx.AsyncClient(base_url=url) as http:
        attempts = (await http.get("/v1/overview/timeline")).json()["items"]
    return min(each["assigned_at"] for each in attempts), max(each["ended_at"] for each in attempts)


async def wait_for_progress(page: Page) -> None:
    """Wait until all tools have registered and several have reported progress.

    The header and the queue are updated less often than the tools.
    """
    await expect(page.locator(".tile")).to_have_count(TOOLS, timeout=60_000)
    await expect(running_count(page)).not_to_have_text("0")
    await expect(page.get_by_text("The queue is empty")).to_have_count(0)
    await expect(page.locator(".tile progress[value]").nth(2)).to_be_visible(timeout=60_000)


def running_count(page: Page) -> Locator:
    """Return the number of running tasks in the header."""
    return page.locator(".counts div").filter(has_text="running").locator("dd")


if __name__ == "__main__":
    main()
