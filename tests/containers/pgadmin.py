"""Check in a browser that pgAdmin works with the files of containers/, set up like its image does.

    python -m tests.containers.pgadmin PYTHON [--picture FILE]

PYTHON is the Python of an environment with pgadmin4: `python3 -m venv DIR; DIR/bin/pip install pgadmin4`.
The database requires the password that containers/secrets.sh creates. The check passes if pgAdmin's tree
contains the server from the start, and if the server opens without a password prompt.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from playwright.async_api import async_playwright

from broker.postgres.account import Account
from broker.postgres.programs import Programs
from tests import ROOT
from tests.conftest import temporary_folder
from tests.support import browser
from tests.support.processes import free_port

CONTAINERS = ROOT / "containers"
MAIL = "admin@example.com"
_PATIENCE_SECONDS = 60


@contextlib.contextmanager
def running_database(folder: Path, secrets: Path, port: int) -> Iterator[None]:
    """Run a PostgreSQL that listens on TCP and requires the password, like the one of compose.yaml."""
    data = folder / "postgres"
    account = Account.for_data(data)
    programs = Programs.find(account, folder)
    account.make_private(data)
    password = account.make_private(folder / "password") / "file"
    shutil.copy(secrets / "database_password", password)
    authentication = ("--auth-local", "trust", "--auth-host", "scram-sha-256")
    options = ("--username", "broker", *authentication, "--pwfile", password)
    programs.run("initdb", "--pgdata", data, *options)
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    programs.run("pg_ctl", "--pgdata", data, "--wait", "--log", data / "log", "--options", settings, "start")
    connection = ("--host", data, "--port", str(port), "--username", "broker", "postgres")
    programs.run("psql", *connection, "--command", "create database broker")
    try:
        yield
    finally:
        programs.run("pg_ctl", "--pgdata", data, "--wait", "--mode", "fast", "stop")


@contextlib.contextmanager
def pgadmin(python: str, folder: Path, secrets: Path, *, port: int, database: int) -> Iterator[None]:
    """Set up pgAdmin with the steps of its image, but with other ports and folders, and run it."""
    find_package = [python, "-c", "import pgadmin4; print(pgadmin4.__path__[0])"]
    package = subprocess.run(find_package, capture_output=True, text=True, check=True).stdout.strip()
    (folder / "config_local.py").write_text(
        f"SERVER_MODE = True\nDATA_DIR = {str(folder)!r}\nSTORAGE_DIR = {str(folder / 'storage')!r}\n"
        f"SQLITE_PATH = {str(folder / 'pgadmin4.db')!r}\nSESSION_DB_PATH = {str(folder / 'sessions')!r}\n"
        f"LOG_FILE = {str(folder / 'pgadmin4.log')!r}\nUPGRADE_CHECK_ENABLED = False\n"
        f"DEFAULT_SERVER = '127.0.0.1'\nDEFAULT_SERVER_PORT = {port}\n"
    )
    servers = (CONTAINERS / "pgadmin/servers.json").read_text()
    servers = servers.replace('"postgres"', '"127.0.0.1"').replace("5432", str(database))
    (folder / "servers.json").write_text(servers)
    password = (secrets / "pgadmin_password").read_text().strip()
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PGADMIN_SETUP_EMAIL": MAIL,
        "PGADMIN_SETUP_PASSWORD": password,
    }
    steps = (["setup-db"], ["load-servers", str(folder / "servers.json"), "--user", MAIL])
    for step in steps:
        subprocess.run([python, "setup.py", *step], cwd=package, env=environment, check=True)
    storage = folder / "storage" / MAIL.replace("@", "_")
    storage.mkdir(parents=True)
    shutil.copy(secrets / "pgadmin_passfile", storage / ".pgpass")
    (storage / ".pgpass").chmod(0o600)
    process = subprocess.Popen([python, "pgAdmin4.py"], cwd=package, env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def check_in_browser(url: str, password: str, picture: Path | None) -> None:
    """Sign in, and open the registered server."""
    async with asyncio.timeout(_PATIENCE_SECONDS), httpx.AsyncClient() as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(f"{url}/misc/ping")).is_success:
                    break
            await asyncio.sleep(0.2)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=browser.CHROMIUM, args=browser.ARGUMENTS)
        page = await chromium.new_page(viewport={"width": 1200, "height": 700})
        page.set_default_timeout(_PATIENCE_SECONDS * 1000)
        await page.goto(url)
        await page.fill("input[name=email]", MAIL)
        await page.fill("input[name=password]", password)
        await page.click("button[type=submit]")
        await page.dblclick('.file-entry:has-text("Servers")')
        await page.dblclick('.file-entry:has-text("broker")')
        await page.wait_for_selector("text=Server connected")
        await page.wait_for_selector("text=Databases")
        if picture is not None:
            await page.screenshot(path=picture)
        await chromium.close()


def main() -> None:
    """Run the check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    with temporary_folder() as folder:
        secrets, pgadmin_folder = folder / "secrets", folder / "pgadmin"
        pgadmin_folder.mkdir()
        subprocess.run([CONTAINERS / "secrets.sh", secrets], check=True)
        port, database = free_port(), free_port()
        password = (secrets / "pgadmin_password").read_text().strip()
        with (
            running_database(folder, secrets, database),
            pgadmin(arguments.python, pgadmin_folder, secrets, port=port, database=database),
        ):
            asyncio.run(check_in_browser(f"http://127.0.0.1:{port}", password, arguments.picture))
    sys.stdout.write("the server is registered and opens without a password prompt\n")


if __name__ == "__main__":
    main()
