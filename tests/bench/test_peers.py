"""`broker bench --peers`: its installations, its programs, its table."""

import asyncio
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from broker.bench.figures import Figures, Measured
from broker.bench.meter import WAL
from broker.bench.peers import contest, installation, measure
from broker.bench.peers.contest import compare
from broker.bench.peers.installation import install, installed_in, reason
from broker.bench.peers.measure import measure_broker, measure_peer
from broker.bench.peers.peer import GRAPHILE_WORKER, PEERS, PGQUEUER, Peer, PeerError
from broker.bench.peers.subprocesses import running
from broker.bench.peers.table import comparison_table
from broker.bench.peers.workloads import BATCHES, CPU, PACED, SINGLE, WORKLOADS, Workload
from broker.bench.scenarios import Size
from broker.bench.stage import Stage
from broker.cli import main
from broker.postgres.cluster import EmbeddedPostgres
from tests.conftest import temporary_folder

FAKE = Peer(
    name="Fake",
    version="1.0",
    packages=("fake==1.0",),
    program=str(Path(__file__).with_name("fake_peer.py")),
    left="select 0",
)
SMALL = Size(share=0.01)
Say = Callable[[str], None]
DATABASE = "postgresql://broker@/bench_1?host=/run/here&port=5432&sslmode=disable&password="


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with temporary_folder() as folder, EmbeddedPostgres(folder / "data", durable=False) as postgres:
        yield Stage(postgres)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep installations in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_PEER_FOLDER", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Return the folder of an installed fake peer."""
    python = tmp_path / "fake" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return tmp_path / "fake"


def commands(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Run programs in Python instead of pip. They get the folder of the installation as their argument."""

    def pip(_: Peer, folder: Path) -> list[list[str]]:
        return [[sys.executable, "-c", text, str(folder)] for text in programs]

    monkeypatch.setattr(installation, "_pip", pip)


# Installation.


async def test_peer_is_installed_once_and_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    commands(monkeypatch, "import pathlib, sys; pathlib.Path(sys.argv[1], 'installed').touch()")
    said: list[str] = []
    for _ in range(2):
        folder = await install(FAKE, said.append)
        assert (folder / "installed").exists()
    assert said == [f"Installing Fake 1.0 into {folder}. This happens only once."]


async def test_failed_installation_says_why_and_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    commands(monkeypatch, "print('ERROR: No matching distribution found for fake==1.0'); raise SystemExit(1)")
    for _ in range(2):
        with pytest.raises(PeerError, match=r"failed: No matching distribution found for fake==1\.0$"):
            await install(FAKE, lambda _: None)
    assert not installed_in(FAKE).exists()
    commands(monkeypatch, "pass")
    assert (await install(FAKE, lambda _: None)).exists()


async def test_installation_into_a_folder_that_cannot_be_created_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", __file__)
    with pytest.raises(PeerError, match="It cannot be installed into"):
        await install(FAKE, lambda _: None)


async def test_peer_that_needs_npm_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PeerError, match=r"^node is not installed\.$"):
        await install(GRAPHILE_WORKER, lambda _: None)


async def test_installation_that_takes_too_long_is_ended_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = "import time; time.sleep(60)"
    file = tmp_path / "pid"
    commands(
        monkeypatch,
        "import pathlib, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid))\n"
        "child.wait()",
    )
    monkeypatch.setattr(installation, "_LIMIT_SECONDS", 2)
    with pytest.raises(PeerError, match=r"did not end within 2 seconds\.$"):
        await install(FAKE, lambda _: None)
    # A zombie may remain until process 1 collects it.
    pid = int(file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "WARNING: a\nERROR: Could not find it\nERROR: No matching distribution\n",
            "No matching distribution",
        ),
        ("npm error code ECONNREFUSED\nnpm error syscall connect\n", "code ECONNREFUSED"),
        ("\nensurepip is not available.\nFailing command: a\n", "ensurepip is not available."),
        ("", "no output"),
    ],
)
def test_reason_of_a_failure_is_one_line_of_the_output(output: str, expected: str) -> None:
    assert reason(output) == expected


def test_each_version_has_its_own_folder(cache: Path) -> None:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert installed_in(PGQUEUER) == cache / "broker" / "peers" / f"pgqueuer-1.6.0-{python}"
    assert installed_in(GRAPHILE_WORKER) == cache / "broker" / "peers" / "graphile-worker-0.17.3"


# Programs.


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_peer_is_measured(stage: Stage, fake: Path, workload: Workload) -> None:
    figures = await measure_peer(stage, FAKE, fake, workload, SMALL)
    assert set(workload.figures) <= set(figures)
    if workload is PACED:
        assert figures["p50 ms"] == 2
    else:
        assert figures["tasks/s"] > 0
        assert figures[CPU] > 0
        assert figures[WAL] >= 0


async def test_error_of_a_program_has_the_line_that_names_the_error(
    stage: Stage, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("worker", "submitter"):
        monkeypatch.setenv("FAKE_PEER_FAULT", f"fail {role}")
        with pytest.raises(PeerError, match=r"^Its program ended: ValueError: the disk is full$"):
            await measure_peer(stage, FAKE, fake, SINGLE, SMALL)


async def test_programs_that_hang_are_ended(
    stage: Stage, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PEER_FAULT", "hang worker")
    monkeypatch.setattr(measure, "_limit", lambda _: 1)
    with pytest.raises(PeerError, match=r"^It did not finish within 1 seconds\.$"):
        await measure_peer(stage, FAKE, fake, SINGLE, SMALL)
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if FAKE.program in child.cmdline()]


async def test_program_ends_when_the_measurement_is_cancelled() -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        command = [sys.executable, "-c", "print('ready', flush=True); input()"]
        async with running(command, DATABASE) as program:
            await program.read_line()
            started.set_result(program.pid)
            await program.read_line()

    task = asyncio.create_task(run())
    pid = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)


async def test_programs_get_the_database_in_variables_but_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "of another server")
    monkeypatch.setenv("BROKER_KEY", "a key")
    show = "import os; print({name: os.environ[name] for name in os.environ if name[:2] in ('PG', 'BR')})"
    async with running([sys.executable, "-c", show], DATABASE) as program:
        line = await program.read_line()
    assert line == str(
        {
            "PGHOST": "/run/here",
            "PGPORT": "5432",
            "PGUSER": "broker",
            "PGDATABASE": "bench_1",
            "PGSSLMODE": "disable",
        }
    )


async def test_missing_program_is_an_error_of_the_peer() -> None:
    with pytest.raises(PeerError, match="Its program cannot be started"):
        async with running(["/no/such/program"], DATABASE):
            pass


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
async def test_real_peer_is_measured_if_it_is_installed(
    stage: Stage, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    folder = installed_in(peer)
    if not folder.exists():
        pytest.skip("`broker bench --peers` installs it")
    figures = await measure_peer(stage, peer, folder, SINGLE, SMALL)
    assert figures["tasks/s"] > 0


@pytest.mark.parametrize("workload", [BATCHES, PACED], ids=lambda workload: workload.name)
async def test_broker_is_measured(stage: Stage, workload: Workload) -> None:
    figures = await measure_broker(stage, workload, SMALL)
    assert all(figures[name] > 0 for name in workload.figures)


# The comparison.


async def contest_of(
    monkeypatch: pytest.MonkeyPatch, *peers: Peer, failing: dict[str, int] | None = None
) -> tuple[list[str], str]:
    """Compare with peers of which some fail in a round, and return the lines for the user and the table."""
    calls: dict[str, int] = {}
    ours = {"tasks/s": 200.0, CPU: 10.0, WAL: 300.0, "p50 ms": 1.0, "p99 ms": 3.0}
    theirs = {"tasks/s": 100.0, CPU: 20.0, WAL: 300.0, "p50 ms": 4.0, "p99 ms": 4.0}

    async def of_broker(stage: Stage, workload: Workload, size: Size) -> Figures:
        return {figure: ours[figure] for figure in workload.figures}

    async def of_peer(stage: Stage, peer: Peer, folder: Path, workload: Workload, size: Size) -> Figures:
        calls[peer.name] = calls.get(peer.name, 0) + 1
        if calls[peer.name] == (failing or {}).get(peer.name):
            raise PeerError("It has no time.")
        return {figure: theirs[figure] for figure in workload.figures}

    async def installed(peer: Peer, say: object) -> Path:
        if (failing or {}).get(peer.name) == 0:
            raise PeerError("pip failed: no index.")
        return Path()

    monkeypatch.setattr(contest, "measure_broker", of_broker)
    monkeypatch.setattr(contest, "measure_peer", of_peer)
    monkeypatch.setattr(contest, "install", installed)
    said: list[str] = []
    progress: list[tuple[str, int]] = []
    measured = await compare(
        Stage(None),
        peers,
        rounds=2,
        size=SMALL,
        say=said.append,
        show_progress=lambda name, done: progress.append((name, done)),
    )
    assert progress == [(workload.name, done) for workload in WORKLOADS for done in range(3)]
    return said, comparison_table(measured, peers)


async def test_comparison_is_a_table_in_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    said, table = await contest_of(monkeypatch, PGQUEUER, GRAPHILE_WORKER)
    assert said == []
    assert table.splitlines() == [
        "| scenario                   | broker | PgQueuer | ratio | graphile-worker | ratio |",
        "| -------------------------- | -----: | -------: | ----: | --------------: | ----: |",
        "| one by one, tasks/s        |    200 |      100 |  2.00 |             100 |  2.00 |",
        "| one by one, CPU µs/task    |   10.0 |     20.0 |  0.50 |            20.0 |  0.50 |",
        "| one by one, WAL bytes/task |    300 |      300 |  1.00 |             300 |  1.00 |",
        "| in batches, tasks/s        |    200 |      100 |  2.00 |             100 |  2.00 |",
        "| in batches, CPU µs/task    |   10.0 |     20.0 |  0.50 |            20.0 |  0.50 |",
        "| in batches, WAL bytes/task |    300 |      300 |  1.00 |             300 |  1.00 |",
        "| one each 50 ms, p50 ms     |   1.00 |     4.00 |  0.25 |            4.00 |  0.25 |",
        "| one each 50 ms, p99 ms     |   3.00 |     4.00 |  0.75 |            4.00 |  0.75 |",
    ]


async def test_peer_that_cannot_be_installed_is_skipped_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said, table = await contest_of(monkeypatch, PGQUEUER, GRAPHILE_WORKER, failing={"PgQueuer": 0})
    assert said == ["PgQueuer is skipped. pip failed: no index."]
    assert "PgQueuer" not in table
    assert "graphile-worker" in table


async def test_peer_that_fails_later_has_no_figures_of_incomplete_workloads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The fourth measurement is the second round of the second workload.
    said, table = await contest_of(monkeypatch, PGQUEUER, GRAPHILE_WORKER, failing={"PgQueuer": 4})
    assert said == ["PgQueuer is skipped. It has no time."]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2] == ["one by one, tasks/s", "200", "100", "2.00", "100", "2.00"]
    assert rows[5] == ["in batches, tasks/s", "200", "", "", "100", "2.00"]
    assert rows[8] == ["one each 50 ms, p50 ms", "1.00", "", "", "4.00", "0.25"]


async def test_without_any_peer_the_table_has_the_figures_of_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, table = await contest_of(monkeypatch, PGQUEUER, failing={"PgQueuer": 0})
    assert table.splitlines()[2] == "| one by one, tasks/s        |    200 |"


def test_number_of_tasks_in_batches_is_a_multiple_of_the_batch() -> None:
    assert [BATCHES.number(Size(share=share)) for share in (1, 0.0623, 0.001)] == [20_000, 1_000, 1_000]
    assert SINGLE.number(SMALL) == 50


def test_command_prints_the_table_and_writes_all_figures_to_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def compared(stage: Stage, peers: object, *, say: Say, **_: object) -> list[Measured]:
        say("PgQueuer is skipped. [no] index.")
        return [
            Measured(
                scenario=workload.name,
                says=workload.says,
                rounds=[{f"broker {figure}": 1234.0 for figure in workload.figures}],
            )
            for workload in WORKLOADS
        ]

    monkeypatch.setattr("broker.cli.bench.compare", compared)
    monkeypatch.setattr("broker.cli.bench._stage", lambda *_: nullcontext(Stage(None)))
    file = tmp_path / "figures.json"
    result = CliRunner().invoke(main, ["bench", "--peers", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "PgQueuer is skipped. [no] index." in result.output
    assert f"Python {platform.python_version()} (built with" in result.output
    assert "| one by one, tasks/s        |  1,234 |\n" in result.output
    assert "A ratio is that of the broker to the peer." in result.output
    written = json.loads(file.read_text())
    assert [results["scenario"] for results in written["scenarios"]] == [
        workload.name for workload in WORKLOADS
    ]


@pytest.mark.parametrize("arguments", [["drain"], ["--url", "http://127.0.0.1:1"]])
def test_peers_cannot_be_combined_with_scenarios_or_a_url(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["bench", "--peers", *arguments])
    assert result.exit_code == 2
    assert "--peers has its own workloads and services. Omit SCENARIO and --url." in result.stderr
