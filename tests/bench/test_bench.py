"""`broker bench`: the calculation of its figures, and a short run."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.bench.figures import Measured, Spread, latencies, percentile
from broker.bench.http import BenchError, HttpConnection
from broker.bench.load import closed_loop
from broker.bench.meter import COSTS, DEAD_TUPLES
from broker.bench.pgbench import tps
from broker.bench.run import LONG, SCENARIOS
from broker.bench.scenarios import Size
from broker.cli import main
from tests.client.test_foreign import running_proxy, text

RUN = ("submit", "drain", "bulk", "match")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return subprocess.run(
        [sys.executable, "-m", "broker.cli", "bench", *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_a_redirect_ends_the_benchmark_with_an_error() -> None:
    async with running_proxy("http://127.0.0.1:9") as proxy:
        proxy.own = text("301 Moved Permanently", "", "Location: https://new.example/")
        async with HttpConnection(proxy.url) as connection:
            with pytest.raises(BenchError, match="GET /v1/stats failed with status 301"):
                await connection.call("GET", "/v1/stats", into=None)


async def test_round_in_which_no_operation_ends_is_an_error_with_advice() -> None:
    async def once(connection: HttpConnection, number: int) -> None:
        await asyncio.sleep(1)

    async with running_proxy("http://127.0.0.1:9") as proxy:
        with pytest.raises(BenchError, match=r"^No operation ended within 0\.2 seconds\. .* --seconds\.$"):
            await closed_loop(proxy.url, 1, 0.2, once)


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
def test_spread_has_the_median_the_least_and_the_greatest_value(
    values: list[float], spread: tuple[float, float, float]
) -> None:
    result = Spread.of(values)
    assert (result.median, result.least, result.greatest) == spread


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
def test_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_percentile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    assert percentile([float(number) for number in range(1, 101)], 0.5) == 50
    assert percentile([1.0, 2.0], 0.5) == 1


def test_latencies_are_in_milliseconds() -> None:
    assert latencies([0.002] * 100, prefix="poll ") == {
        "poll p50 ms": 2.0,
        "poll p95 ms": 2.0,
        "poll p99 ms": 2.0,
    }


def test_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    # Both figures have the median 100, so the ratio of the medians would be 1.
    rounds = ({"ours": 10.0, "bare": 100.0}, {"ours": 100.0, "bare": 200.0}, {"ours": 180.0, "bare": 90.0})
    summary = measured(*rounds, share=("ours", "bare")).summary()
    assert summary["ours"] == Spread(median=100.0, least=10.0, greatest=180.0)
    assert summary["share"] == Spread(median=0.5, least=0.1, greatest=2.0)


def test_ratio_is_left_out_if_a_figure_was_not_measured() -> None:
    assert set(measured({"ours": 10.0}, share=("ours", "bare")).summary()) == {"ours"}


def test_ratio_to_zero_is_left_out() -> None:
    rounds = ({"ours": 10.0, "bare": 0.0}, {"ours": 10.0, "bare": 20.0})
    assert measured(*rounds, share=("ours", "bare")).summary()["share"].median == 0.5
    assert "share" not in measured({"ours": 10.0, "bare": 0.0}, share=("ours", "bare")).summary()


def test_summary_without_rounds_is_empty() -> None:
    assert measured(share=("ours", "bare")).summary() == {}


def test_a_small_share_of_a_number_is_at_least_one() -> None:
    assert [Size(share=0.02).of(usual) for usual in (1000, 100, 1)] == [20, 2, 1]


def test_transactions_per_second_are_read_from_the_output_of_pgbench() -> None:
    output = "latency average = 1.5 ms\ntps = 1234.567890 (without initial connection time)\n"
    assert tps(output) == 1234.56789


@pytest.mark.parametrize("output", ["", "pgbench: error: connection to server failed", "tps = -nan"])
def test_error_of_pgbench_contains_its_output(output: str) -> None:
    with pytest.raises(BenchError) as raised:
        tps(output)
    assert output in str(raised.value)


def test_help_describes_each_scenario_in_a_line() -> None:
    result = CliRunner().invoke(main, ["bench", "--help"])
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for name, scenario in SCENARIOS.items():
        assert f"{name} {scenario.says}" in lines


def test_error_about_an_unknown_scenario_lists_all_scenarios() -> None:
    result = CliRunner().invoke(main, ["bench", "sprint"])
    assert result.exit_code == 2
    assert "sprint" in result.stderr
    assert "Traceback" not in result.stderr
    for name in (*RUN, *LONG):
        assert name in result.stderr


def test_unreachable_service_is_reported_in_one_line() -> None:
    result = bench("submit", "--rounds", "1", "--seconds", "0.2", "--url", "http://127.0.0.1:1")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_short_run_prints_a_table_and_writes_all_figures_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ("--rounds", "1", "--seconds", "0.2", "--share", "0.02", "--json", str(file))
    result = bench(*RUN, *options)
    assert result.returncode == 0, result.stderr

    rows = [line.split("│")[1].strip() for line in result.stdout.splitlines() if line.startswith("│")]
    with_costs = [name for name in RUN if name != "match"]
    assert [name for name in rows if name] == [*RUN, *with_costs]
    assert str(file) in result.stdout.replace("\n", "")

    written = json.loads(file.read_text())
    assert written["command"] == ["broker", "bench", *RUN, *options]
    assert {"cores", "cpu", "memory", "python", "postgres", "broker", "date"} == written["machine"].keys()
    assert [scenario["scenario"] for scenario in written["scenarios"]] == list(RUN)
    for scenario in written["scenarios"]:
        [only] = scenario["rounds"]
        assert only
        assert all(isinstance(value, float | int) and value >= 0 for value in only.values())
        expected = only | {
            ratio: only[upper] / only[lower]
            for ratio, (upper, lower) in scenario["ratios"].items()
            if only.get(lower) and upper in only
        }
        assert scenario["summary"] == {
            name: {"median": value, "least": value, "greatest": value} for name, value in expected.items()
        }
        assert scenario["wanted"].keys() <= scenario["summary"].keys(), (
            "a target for a figure that is not measured"
        )
        if scenario["scenario"] != "match":
            # Nothing changes the rows of submitted tasks.
            assert [name for name in COSTS if not only[name]] in ([], [DEAD_TUPLES])
