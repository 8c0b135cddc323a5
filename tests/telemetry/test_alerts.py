"""Alert rules: each one fires when it should, and queries existing metrics."""

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from broker.telemetry import metric_definitions
from broker.telemetry.metric_definitions import MetricDefinition
from tests import ROOT
from tests.conftest import Serve
from tests.support import api, engines
from tests.support.engines import requires_program
from tests.support.processes import free_port

FOLDER = ROOT / "containers"
RULES = FOLDER / "prometheus" / "alerts.yml"

OF = 'instance="a",job="broker"'

# For each alert, series that make it fire and series that keep it quiet, with one value per minute.
Series = dict[str, str]
CASES: dict[str, tuple[Series, Series]] = {
    "BrokerDown": ({f"up{{{OF}}}": "0x60"}, {f"up{{{OF}}}": "1x60"}),
    # If the DNS name of the brokers no longer exists, Prometheus has no series of them.
    "BrokerAbsent": ({'up{job="prometheus"}': "1x60"}, {f"up{{{OF}}}": "1x60"}),
    "BrokerDatabaseDown": (
        {f"broker_database_up{{{OF}}}": "0x60"},
        {f"broker_database_up{{{OF}}}": "1x60"},
    ),
    "BrokerListenerDisconnected": (
        {f"broker_listener_connected{{{OF}}}": "0x60"},
        {f"broker_listener_connected{{{OF}}}": "1x60"},
    ),
    "BrokerListenerReconnects": (
        {f"broker_listener_connects_total{{{OF}}}": "0+1x60"},
        {f"broker_listener_connects_total{{{OF}}}": "1x60"},
    ),
    "BrokerInternalErrors": (
        {f'broker_problems_total{{{OF},code="internal"}}': "0+1x60"},
        {f'broker_problems_total{{{OF},code="task_not_found"}}': "0+100x60"},
    ),
    "BrokerRefusesRequests": (
        {f'broker_problems_total{{{OF},code="unavailable"}}': "0+120x60"},
        {f'broker_problems_total{{{OF},code="unavailable"}}': "0+6x60"},
    ),
    "BrokerWaitingRequestsNearLimit": (
        {
            f'broker_parked_requests{{{OF},topic="tool"}}': "950x60",
            f"broker_parked_requests_max{{{OF}}}": "1000x60",
        },
        {
            f'broker_parked_requests{{{OF},topic="tool"}}': "100x60",
            f"broker_parked_requests_max{{{OF}}}": "1000x60",
        },
    ),
    "BrokerOpenFilesNearLimit": (
        {f"process_open_fds{{{OF}}}": "950x60", f"process_max_fds{{{OF}}}": "1000x60"},
        {f"process_open_fds{{{OF}}}": "100x60", f"process_max_fds{{{OF}}}": "1000x60"},
    ),
    "BrokerOldTransaction": (
        {f"broker_oldest_transaction_seconds{{{OF}}}": "1700+60x60"},
        {f"broker_oldest_transaction_seconds{{{OF}}}": "900x60"},
    ),
    "BrokerNotificationQueueFills": (
        {f"broker_notification_queue_usage{{{OF}}}": "0.6x60"},
        {f"broker_notification_queue_usage{{{OF}}}": "0.01x60"},
    ),
    "BrokerDatabaseSlow": (
        {
            f'broker_group_commit_seconds_bucket{{{OF},step="submission.submit",le="1"}}': "0x60",
            f'broker_group_commit_seconds_bucket{{{OF},step="submission.submit",le="2.5"}}': "0+60x60",
            f'broker_group_commit_seconds_bucket{{{OF},step="submission.submit",le="+Inf"}}': "0+60x60",
        },
        {
            f'broker_group_commit_seconds_bucket{{{OF},step="submission.submit",le="0.01"}}': "0+60x60",
            f'broker_group_commit_seconds_bucket{{{OF},step="submission.submit",le="+Inf"}}': "0+60x60",
        },
    ),
    "BrokerWritesQueue": (
        {f'broker_group_commit_waiting{{{OF},step="submission.submit"}}': "5000x60"},
        {f'broker_group_commit_waiting{{{OF},step="submission.submit"}}': "64x60"},
    ),
    "BrokerConnectionPoolFull": (
        {
            f"broker_database_connections_in_use{{{OF}}}": "8x60",
            f"broker_database_connections_max{{{OF}}}": "8x60",
        },
        {
            f"broker_database_connections_in_use{{{OF}}}": "2x60",
            f"broker_database_connections_max{{{OF}}}": "8x60",
        },
    ),
    "BrokerHasNoAssigner": (
        {
            f'broker_tasks{{{OF},state="available"}}': "3x60",
            f"broker_database_timestamp_seconds{{{OF}}}": "1000+60x60",
            f"broker_assigner_seen_timestamp_seconds{{{OF}}}": "900x60",
        },
        {
            f'broker_tasks{{{OF},state="available"}}': "3x60",
            f"broker_database_timestamp_seconds{{{OF}}}": "1000+60x60",
            f"broker_assigner_seen_timestamp_seconds{{{OF}}}": "995+60x60",
        },
    ),
    "BrokerHasNoTools": (
        {
            f'broker_tasks{{{OF},state="available"}}': "3x60",
            f'broker_tools{{{OF},state="offline"}}': "3x60",
            f'broker_tools{{{OF},state="idle"}}': "0x60",
        },
        {f'broker_tasks{{{OF},state="available"}}': "3x60", f'broker_tools{{{OF},state="idle"}}': "1x60"},
    ),
    "BrokerTasksWait": (
        {f"broker_oldest_available_seconds{{{OF}}}": "4000+60x60", f"broker_tools_room{{{OF}}}": "2x60"},
        {f"broker_oldest_available_seconds{{{OF}}}": "4000+60x60", f"broker_tools_room{{{OF}}}": "0x60"},
    ),
    "BrokerAttemptsFail": (
        {
            f'broker_work_ended_total{{{OF},outcome="failed"}}': "0+6x60",
            f'broker_work_ended_total{{{OF},outcome="succeeded"}}': "0+1x60",
        },
        {
            f'broker_work_ended_total{{{OF},outcome="failed"}}': "0+6x60",
            f'broker_work_ended_total{{{OF},outcome="succeeded"}}': "0+60x60",
        },
    ),
    "BrokerTasksFailed": (
        {f'broker_tasks{{{OF},state="failed"}}': "1x60"},
        {f'broker_tasks{{{OF},state="failed"}}': "0x60"},
    ),
    "BrokerToolsGoOffline": (
        {f"broker_leases_expired_total{{{OF}}}": "0+1x60"},
        {f"broker_leases_expired_total{{{OF}}}": "0 0 0 1x57"},
    ),
    "BrokerDispatchSlow": (
        {
            f'broker_dispatch_seconds_bucket{{{OF},le="1"}}': "0x60",
            f'broker_dispatch_seconds_bucket{{{OF},le="2.5"}}': "0+60x60",
            f'broker_dispatch_seconds_bucket{{{OF},le="+Inf"}}': "0+60x60",
        },
        {
            f'broker_dispatch_seconds_bucket{{{OF},le="0.005"}}': "0+60x60",
            f'broker_dispatch_seconds_bucket{{{OF},le="+Inf"}}': "0+60x60",
        },
    ),
}

# The metrics of Prometheus itself.
_NOT_OURS = {"up"}
_OF_EVERY_SERIES = {"job", "instance", "le"}
METRICS = [each for each in vars(metric_definitions).values() if isinstance(each, MetricDefinition)]


def series(metric: MetricDefinition) -> list[str]:
    """Return the names of a metric in queries."""
    match metric.kind:
        case "counter":
            return [f"{metric.name}_total"]
        case "histogram":
            return [metric.name, *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))]
    return [metric.name]


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[str]:
    """Return the queries of the dashboards."""
    return [
        target["expr"]
        for file in (FOLDER / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


def test_every_alert_has_a_test_case_and_complete_texts() -> None:
    assert rules().keys() == CASES.keys()
    for name, rule in rules().items():
        assert rule["annotations"].keys() == {"summary", "reason", "look_at"}, name
        assert rule["labels"]["severity"] in ("page", "ticket"), name


@requires_program("promtool")
def test_every_alert_fires_only_when_it_should(tmp_path: Path) -> None:
    tests = []
    for name, (bad, good) in CASES.items():
        for series, fires in ((bad, True), (good, False)):
            tests.append(
                {
                    "name": f"{name} {'fires' if fires else 'is quiet'}",
                    "interval": "1m",
                    "input_series": [{"series": key, "values": value} for key, value in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                            "eval_time": "50m",
                            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                        }
                    ],
                }
            )
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    run = subprocess.run(
        [str(engines.find_program("promtool")), "test", "rules", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


async def test_alerts_and_dashboards_query_existing_metrics(serve: Serve) -> None:
    running = await serve()
    http = running.client
    pair = await api.add_running_work(http)
    await api.complete(http, pair.work)
    await api.get(http, "/v1/candidates")
    text = (await http.get("/metrics")).text
    known = {
        name
        for family in text_string_to_metric_families(text)
        for name in (family.name, *(sample.name for sample in family.samples), f"{family.name}_bucket")
    }
    expressions = [rule["expr"] for rule in rules().values()] + panels()
    for expression in expressions:
        names = set(re.findall(r"\b(?:(?:broker|process)_[a-z_]+|up)\b", expression))
        assert names, expression
        assert names <= known | _NOT_OURS, expression


def test_labels_in_rules_dashboards_and_documentation_are_those_of_the_metrics() -> None:
    labels = {name: set(metric.labels) for metric in METRICS for name in series(metric)}
    expressions = [rule["expr"] for rule in rules().values()] + panels()
    for expression in expressions:
        for name, matchers in re.findall(r"\b(broker_[a-z_]+)\{([^}]*)\}", expression):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert used <= labels[name] | _OF_EVERY_SERIES, expression
    page = (FOLDER.parent / "docs" / "operate" / "monitor.md").read_text()
    documented = re.findall(r"^\| .+\? \| (.+) \|$", page, re.MULTILINE)
    named = re.findall(r"`(broker_[a-z_]+)(?:\{(\w+)\})?", " ".join(documented))
    assert len(named) > 20
    for name, label in named:
        assert labels[name] == ({label} if label else set()), name


@requires_program("prometheus")
async def test_prometheus_accepts_the_metrics_and_the_rules(serve: Serve, tmp_path: Path) -> None:
    running = await serve()
    await api.add_task(running.client)
    given = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    [job] = given["scrape_configs"]
    assert job["job_name"] == "broker"
    # Only the targets and the intervals differ from the real configuration.
    del job["dns_sd_configs"]
    del job["authorization"]
    job["static_configs"] = [{"targets": [running.url.removeprefix("http://").rstrip("/")]}]
    given["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    given["rule_files"] = [str(RULES)]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(given))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        str(engines.find_program("prometheus")),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            while not await has_result(http, 'max(broker_tasks{state="available"}) == 1'):
                await asyncio.sleep(0.2)
            assert await has_result(http, 'up{job="broker"} == 1')
            loaded_rules = (await http.get("/api/v1/rules")).json()
        loaded = {rule["name"]: rule for group in loaded_rules["data"]["groups"] for rule in group["rules"]}
        assert loaded.keys() == CASES.keys()
        assert {rule.get("lastError", "") for rule in loaded.values()} == {""}
    finally:
        process.terminate()
        await process.wait()


async def has_result(http: httpx.AsyncClient, expression: str) -> bool:
    try:
        response = await http.get("/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return False
    return response.status_code == 200 and bool(response.json()["data"]["result"])


@pytest.mark.parametrize(
    "file", sorted((FOLDER / "grafana" / "dashboards").glob("*.json")), ids=lambda f: f.name
)
def test_each_dashboard_is_valid(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["title"]
    assert board["uid"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
