"""What containers are made from holds what it promises; that it runs is for tests/containers/build.sh."""

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
# Made by hand, by a broker that runs: docs/operate/containers.md.
_BY_HAND = {"prometheus_key"}

needs_nginx = requires_program("nginx")


def test_nothing_is_published_but_on_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published)) > 0
    assert [port for port in published if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


def test_every_password_and_key_comes_from_a_file_that_chance_has_made(tmp_path: Path) -> None:
    subprocess.run([CONTAINERS / "secrets.sh", tmp_path / "secrets"], check=True)
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    wanted = {name: ROOT / secret["file"] for name, secret in COMPOSE["secrets"].items()}
    assert set(made) == set(wanted) - _BY_HAND
    assert {file.parent for file in wanted.values()} == {CONTAINERS / "secrets"}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len({made[name] for name in ("broker_admin_key", "database_password", "pgadmin_password")}) == 3
    assert made["database_password"].strip() in made["pgadmin_passfile"]
    # What is there stays, whatever was put into it.
    subprocess.run([CONTAINERS / "secrets.sh", tmp_path / "secrets"], check=True)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == made
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|SECRET|PGPASS", variable):
                assert re.fullmatch(r"/run/secrets/\w+", value), f"{name}: {variable}"
                assert Path(value).name in service["secrets"]
            assert not re.search(r"://[^@/]+:[^@/]+@", value), f"{name}: {variable} holds a password"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] or name == "pgadmin"
    assert service["restart"] == ("on-failure" if name == "migrate" else "unless-stopped")
    # Of the broker's own image it is in the Containerfile.
    assert "healthcheck" in service or "build" in service
    assert re.search(r":v?\d+(\.\d+)*(-\w+)*$|:\$\{BROKER_VERSION:-[\d.]+\}$", service["image"])


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounted if mount.startswith(".")]
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file).exists()] == []
    named = {mount.split(":")[0] for mount in mounted if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_brokers_wait_until_the_schema_is_there() -> None:
    brokers = [service for name, service in SERVICES.items() if name.startswith("broker")]
    assert len(brokers) == 3
    for service in brokers:
        assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_the_compose_file_is_one(profile: str, tmp_path: Path) -> None:
    # It asks podman for its version before it does anything; it is to read the file here, and nothing more.
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o755)
    environment = clean_environment(PATH=f"{tmp_path}:/usr/bin:/bin", COMPOSE_PROFILES=profile)
    command = [sys.executable, "-m", "podman_compose", "--file", str(ROOT / "compose.yaml"), "config"]
    answered = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    started = set(yaml.safe_load(answered.stdout)["services"])
    assert {"postgres", "migrate", "broker"} <= started
    assert started == {
        name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])
    }


@needs_nginx
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    file = nginx.configuration(tmp_path, port=8080, brokers=["127.0.0.1:8000", "127.0.0.1:8001"])
    told = subprocess.run([nginx.PROGRAM, "-t", "-c", file], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


@needs_nginx
async def test_behind_nginx_a_reload_and_a_rolling_restart_lose_nothing(
    database: str, tmp_path: Path
) -> None:
    seen = await rolling(database, tmp_path, tools=60)
    # A connection that is let go of is nobody's error; a GET that no broker answers would be.
    assert {what for what in seen if what.startswith("GET: 5")} == set()


@needs_nginx
async def test_through_nginx_events_come_at_once_and_errors_are_the_brokers(
    broker: Running, tmp_path: Path
) -> None:
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
        kind = {"Content-Type": "application/json"}
        large = await http.post("/v1/tasks", content=b" " * (LARGEST_BODY_BYTES + 1), headers=kind)
        assert_problem(large, 413, "payload_too_large")
        asked = [await http.get("/health/live", headers={"X-Request-ID": name}) for name in ("mine", "n o")]
        assert [response.status_code for response in asked] == [200, 200]
    logged = [json.loads(line)["request_id"] for line in (tmp_path / "access.log").read_text().splitlines()]
    assert logged[-2] == "mine"
    assert re.fullmatch("[0-9a-f]{32}", logged[-1])


@needs_nginx
async def test_where_no_broker_answers_nginx_says_so_as_a_broker_would(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    front = nginx.Nginx(tmp_path, [nobody, nobody])
    async with front.running(), httpx.AsyncClient(base_url=front.url) as http:
        response = await http.post("/v1/tasks", json={"needs": 1})
    assert response.status_code == 502
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() == {"type", "title", "status", "detail", "instance", "code"}
    assert (problem["code"], problem["instance"]) == ("unavailable", "/v1/tasks")
    assert response.headers["Retry-After"] == "1"


def test_nginx_never_sends_again_what_may_have_been_taken() -> None:
    told = re.findall(
        r"^\s*proxy_next_upstream (.+);$", (CONTAINERS / "nginx/nginx.conf").read_text(), re.MULTILINE
    )
    assert told == ["error timeout"]


def test_pgadmin_is_told_of_the_database_that_is_there() -> None:
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


def test_on_kubernetes_the_parts_fit_together() -> None:
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


def test_kubernetes_would_take_them() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="it is 108 MB, and installed by hand")
    for manifest in _manifests():
        if "postgresql.cnpg.io" not in manifest["apiVersion"]:
            validate.validate(manifest, validate.latest_version(), strict=True)


def test_every_variable_of_a_broker_is_a_setting() -> None:
    for name, service in SERVICES.items():
        if name.startswith(("broker", "migrate")):
            assert unknown_variables(service["environment"]) == []
