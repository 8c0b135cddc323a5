"""`broker bench`: what its figures mean, and one short run of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.bench.figures import Measured, Spread, latencies, percentile
from broker.bench.http import BenchError, HttpConnection
from broker.bench.pgbench import tps
from broker.bench.run import LONG, SCENARIOS
from broker.bench.scenarios import Size
from broker.cli import main
from tests.client.test_foreign import running_proxy, text

RUN = ("submit", "drain", "bulk", "match")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return subprocess.run(
        [sys.executable, "-m", "broker.cli", "bench", *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_what_a_proxy_redirects_is_not_measured() -> None:
    async with running_proxy("http://127.0.0.1:9") as proxy:
        proxy.own = text("301 Moved Permanently", "", "Location: https://new.example/")
        async with HttpConnection(proxy.url) as connection:
            with pytest.raises(BenchError, match="GET /v1/stats was answered 301"):
                await connection.call("GET", "/v1/stats", into=None)


def measured(*rounds: dict[str, float], **ratios: tuple[str, str]) -> Measured:
    return Measured(scenario="s", says="something", rounds=list(rounds), ratios=ratios)


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([3.0], (3.0, 3.0, 3.0)),
        ([9.0, 1.0, 2.0], (2.0, 1.0, 9.0)),
        ([4.0, 1.0, 2.0, 9.0], (3.0, 1.0, 9.0)),
    ],
)
def test_a_spread_is_the_median_the_least_and_the_greatest(
    values: list[float], spread: tuple[float, float, float]
) -> None:
    found = Spread.of(values)
    assert (found.median, found.least, found.greatest) == spread


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7.0], 0.5, 7.0),
        ([7.0], 1, 7.0),
        ([3.0, 1.0, 2.0], 0, 1.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([3.0, 1.0, 2.0], 1, 3.0),
    ],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    assert percentile([float(number) for number in range(1, 101)], 0.5) == 50
    assert percentile([1.0, 2.0], 0.5) == 1


def test_latencies_are_told_in_milliseconds() -> None:
    found = latencies([0.002] * 100, prefix="poll ")
    assert found == {"poll p50 ms": 2.0, "poll p95 ms": 2.0, "poll p99 ms": 2.0}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine was twice as fast in the last round: the ratio of the medians would be 1.
    rounds = ({"ours": 10.0, "bare": 100.0}, {"ours": 100.0, "bare": 200.0}, {"ours": 180.0, "bare": 90.0})
    summary = measured(*rounds, share=("ours", "bare")).summary()
    assert summary["ours"] == Spread(median=100.0, least=10.0, greatest=180.0)
    assert summary["share"] == Spread(median=0.5, least=0.1, greatest=2.0)


def test_a_ratio_to_what_was_not_measured_is_left_out() -> None:
    assert set(measured({"ours": 10.0}, share=("ours", "bare")).summary()) == {"ours"}


def test_a_ratio_to_nothing_is_left_out() -> None:
    rounds = ({"ours": 10.0, "bare": 0.0}, {"ours": 10.0, "bare": 20.0})
    assert measured(*rounds, share=("ours", "bare")).summary()["share"].median == 0.5
    assert "share" not in measured({"ours": 10.0, "bare": 0.0}, share=("ours", "bare")).summary()


def test_without_a_round_there_is_nothing_to_say() -> None:
    assert measured(share=("ours", "bare")).summary() == {}


def test_of_a_usual_number_a_share_is_taken_and_never_none() -> None:
    assert [Size(share=0.02).of(usual) for usual in (1000, 100, 1)] == [20, 2, 1]


def test_pgbench_is_read() -> None:
    output = "latency average = 1.5 ms\ntps = 1234.567890 (without initial connection time)\n"
    assert tps(output) == 1234.56789


@pytest.mark.parametrize("output", ["", "pgbench: error: connection to server failed", "tps = -nan"])
def test_pgbench_that_measured_nothing_is_an_error_that_says_why(output: str) -> None:
    with pytest.raises(BenchError) as raised:
        tps(output)
    assert output in str(raised.value)


def test_help_tells_of_every_scenario_in_a_line() -> None:
    answer = CliRunner().invoke(main, ["bench", "--help"])
    assert answer.exit_code == 0, answer.stderr
    lines = [" ".join(line.split()) for line in answer.stdout.splitlines()]
    for name, scenario in SCENARIOS.items():
        assert f"{name} {scenario.says}" in lines


def test_what_is_no_scenario_is_refused_with_those_there_are() -> None:
    answer = CliRunner().invoke(main, ["bench", "sprint"])
    assert answer.exit_code == 2
    assert "sprint" in answer.stderr
    assert "Traceback" not in answer.stderr
    for name in (*RUN, *LONG):
        assert name in answer.stderr


def test_a_service_that_is_not_there_is_told_in_a_sentence() -> None:
    answer = bench("submit", "--rounds", "1", "--seconds", "0.2", "--url", "http://127.0.0.1:1")
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: ")
    assert "Traceback" not in answer.stderr


def test_a_short_run_shows_a_table_and_writes_everything_down(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ("--rounds", "1", "--seconds", "0.2", "--share", "0.02", "--json", str(file))
    answer = bench(*RUN, *options)
    assert answer.returncode == 0, answer.stderr

    rows = [line.split("│")[1].strip() for line in answer.stdout.splitlines() if line.startswith("│")]
    assert [name for name in rows if name] == list(RUN)
    assert str(file) in answer.stdout.replace("\n", "")

    written = json.loads(file.read_text())
    assert written["command"] == ["broker", "bench", *RUN, *options]
    assert {"cores", "cpu", "memory", "python", "broker", "date"} <= written["machine"].keys()
    assert [each["scenario"] for each in written["scenarios"]] == list(RUN)
    for each in written["scenarios"]:
        [only] = each["rounds"]
        assert only
        assert all(isinstance(value, float | int) and value >= 0 for value in only.values())
        expected = only | {
            ratio: only[upper] / only[lower]
            for ratio, (upper, lower) in each["ratios"].items()
            if only.get(lower) and upper in only
        }
        assert each["summary"] == {
            name: {"median": value, "least": value, "greatest": value} for name, value in expected.items()
        }
        assert each["wanted"].keys() <= each["summary"].keys(), "a bound of what nobody measures"
