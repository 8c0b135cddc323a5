"""Tests of the files for containers. tests/containers/build.sh tests that the image runs."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from broker.schemas.limits import LARGEST_BODY_BYTES
from broker.settings import unknown_variables
from tests import ROOT
from tests.conftest import Running
from tests.containers import nginx
from tests.containers.rolling import rolling
from tests.support.api import Json, assert_problem
from tests.support.engines import requires_program
from tests.support.processes import clean_environment, free_port

CONTAINERS = ROOT / "containers"
COMPOSE: Json = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Json] = COMPOSE["services"]
PROFILES = sorted({profile for service in SERVICES.values() for profile in service.get("profiles", [])})
# An operator creates it with a running broker: docs/operate/containers.md.
_BY_HAND = {"prometheus_key"}

needs_nginx = requires_program("nginx")


def test_ports_are_published_on_loopback_addresses_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published)) > 0
    assert [port for port in published if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


def test_every_password_and_key_comes_from_a_random_secret_file(tmp_path: Path) -> None:
    subprocess.run([CONTAINERS / "secrets.sh", tmp_path / "secrets"], check=True)
    created = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    expected = {name: ROOT / secret["file"] for name, secret in COMPOSE["secrets"].items()}
    assert set(created) == set(expected) - _BY_HAND
    assert {file.parent for file in expected.values()} == {CONTAINERS / "secrets"}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len({created[name] for name in ("broker_admin_key", "database_password", "pgadmin_password")}) == 3
    assert created["database_password"].strip() in created["pgadmin_passfile"]
    # A second run changes no existing file.
    subprocess.run([CONTAINERS / "secrets.sh", tmp_path / "secrets"], check=True)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == created
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|SECRET|PGPASS", variable):
                assert re.fullmatch(r"/run/secrets/\w+", value), f"{name}: {variable}"
                assert Path(value).name in service["secrets"]
            assert not re.search(r"://[^@/]+:[^@/]+@", value), f"{name}: {variable} holds a password"


@pytest.mark.parametrize("name", SERVICES)
def test_services_run_with_restricted_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] or name == "pgadmin"
    assert service["restart"] == ("on-failure" if name == "migrate" else "unless-stopped")
    # The image of the broker has its health check in the Containerfile.
    assert "healthcheck" in service or "build" in service
    assert re.search(r":v?\d+(\.\d+)*(-\w+)*$|:\$\{BROKER_VERSION:-[\d.]+\}$", service["image"])


def test_every_mounted_file_exists() -> None:
    mounted = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounted if mount.startswith(".")]
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file).exists()] == []
    named = {mount.split(":")[0] for mount in mounted if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_brokers_wait_for_the_migration() -> None:
    brokers = [service for name, service in SERVICES.items() if name.startswith("broker")]
    assert len(brokers) == 3
    for service in brokers:
        assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_podman_compose_accepts_the_file_with_each_profile(profile: str, tmp_path: Path) -> None:
    # podman-compose first asks podman for its version. Here it only reads the file, so a stub is enough.
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o755)
    environment = clean_environment(PATH=f"{tmp_path}:/usr/bin:/bin", COMPOSE_PROFILES=profile)
    command = [sys.executable, "-m", "podman_compose", "--file", str(ROOT / "compose.yaml"), "config"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    started = set(yaml.safe_load(result.stdout)["services"])
    assert {"postgres", "migrate", "broker"} <= started
    assert started == {
        name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])
    }


@needs_nginx
def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    file = nginx.configuration(tmp_path, port=8080, brokers=["127.0.0.1:8000", "127.0.0.1:8001"])
    result = subprocess.run([nginx.PROGRAM, "-t", "-c", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@needs_nginx
async def test_a_reload_and_a_rolling_restart_behind_nginx_lose_nothing(
    database: str, tmp_path: Path
) -> None:
    failures = await rolling(database, tmp_path, tools=60)
    # A closed connection is no error. A GET that no broker responds to would be one.
    assert {name for name in failures if name.startswith("GET: 5")} == set()


@needs_nginx
async def test_nginx_forwards_events_at_once_and_errors_unchanged(broker: Running, tmp_path: Path) -> None:
    address = broker.url.removeprefix("http://")
    front = nginx.Nginx(tmp_path, [address, address])
    async with front.running(), httpx.AsyncClient(base_url=front.url, timeout=30) as http:
        async with asyncio.timeout(30), http.stream("GET", "/v1/events") as events:
            lines = events.aiter_lines()
            await anext(lines)
            await http.post("/v1/tasks", json={"id": "a", "needs": 1})
            async for line in lines:
                if line.startswith("event: task"):
                    break
        assert_problem(await http.get("/v1/tasks/b"), 404, "task_not_found")
        headers = {"Content-Type": "application/json"}
        large = await http.post("/v1/tasks", content=b" " * (LARGEST_BODY_BYTES + 1), headers=headers)
        assert_problem(large, 413, "payload_too_large")
        responses = [
            await http.get("/health/live", headers={"X-Request-ID": name}) for name in ("mine", "n o")
        ]
        assert [response.status_code for response in responses] == [200, 200]
    logged = [json.loads(line)["request_id"] for line in (tmp_path / "access.log").read_text().splitlines()]
    assert logged[-2] == "mine"
    assert re.fullmatch("[0-9a-f]{32}", logged[-1])


@needs_nginx
async def test_nginx_without_a_broker_returns_a_problem(tmp_path: Path) -> None:
    unused = f"127.0.0.1:{free_port()}"
    front = nginx.Nginx(tmp_path, [unused, unused])
    async with front.running(), httpx.AsyncClient(base_url=front.url) as http:
        response = await http.post("/v1/tasks", json={"needs": 1})
    assert response.status_code == 502
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() == {"type", "title", "status", "detail", "instance", "code"}
    assert (problem["code"], problem["instance"]) == ("unavailable", "/v1/tasks")
    assert response.headers["Retry-After"] == "1"


def test_nginx_does_not_repeat_requests_that_a_broker_may_have_processed() -> None:
    values = re.findall(
        r"^\s*proxy_next_upstream (.+);$", (CONTAINERS / "nginx/nginx.conf").read_text(), re.MULTILINE
    )
    assert values == ["error timeout"]


def test_pgadmin_knows_the_database_of_the_compose_file() -> None:
    [server] = json.loads((CONTAINERS / "pgadmin/servers.json").read_text())["Servers"].values()
    postgres = SERVICES["postgres"]["environment"]
    assert server["Host"] in SERVICES
    assert (server["Username"], server["MaintenanceDB"]) == (
        postgres["POSTGRES_USER"],
        postgres["POSTGRES_DB"],
    )


def _manifests() -> list[Json]:
    folder = CONTAINERS / "kubernetes"
    named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {*named, "kustomization.yaml"} == {file.name for file in folder.iterdir()}
    return [manifest for name in named for manifest in yaml.safe_load_all((folder / name).read_text())]


def test_the_kubernetes_manifests_fit_together() -> None:
    manifests = {manifest["kind"]: manifest for manifest in _manifests()}
    pod = manifests["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert manifests["Service"]["spec"]["selector"].items() <= labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    database = manifests["Cluster"]["metadata"]["name"]
    secrets = {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    assert secrets == {f"{database}-app", "broker-admin-key"}
    owner = manifests["Cluster"]["spec"]["bootstrap"]["initdb"]
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        url = urlsplit(variables["BROKER_DATABASE_URL"])
        assert (url.username, url.hostname, url.path) == (
            owner["owner"],
            f"{database}-rw",
            f"/{owner['database']}",
        )
        assert unknown_variables(variables) == []
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_kubernetes_manifests_are_valid() -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes_validate (108 MB) is not installed"
    )
    for manifest in _manifests():
        if "postgresql.cnpg.io" not in manifest["apiVersion"]:
            validate.validate(manifest, validate.latest_version(), strict=True)


def test_every_variable_of_a_broker_is_a_setting() -> None:
    for name, service in SERVICES.items():
        if name.startswith(("broker", "migrate")):
            assert unknown_variables(service["environment"]) == []
