"""Does docker-compose.yml say what it should? There is no engine here: its schema, its meaning, and what can run without."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from cli.main import main
from common.config.settings import Settings
from common.database.engine import database_url
from common.vendors.table import VENDORS
from tests.support.fleet import ROOT, until

FILE = ROOT / "docker-compose.yml"
OURS = ("api", "worker")
SERVICES = ("nginx", *OURS, "redis", "postgres")  # Those that run all the time; `migrate` ends.


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def test_it_is_valid_by_the_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]

    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_these_are_the_services(services: dict[str, Any]):
    assert set(services) == {*SERVICES, "migrate"}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_watched_and_restarted(services: dict[str, Any], name: str):
    assert services[name]["restart"] == "unless-stopped"
    assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", [*SERVICES, "migrate"])
def test_each_service_is_confined(services: dict[str, Any], name: str):
    service = services[name]

    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    assert "container_name" not in service  # Replicas would fight over it.
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")


def test_only_nginx_can_be_reached_from_outside_and_by_default_from_this_machine_alone(services: dict[str, Any]):
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    assert services["nginx"]["ports"] == ["${SLUICE_PUBLISH:-127.0.0.1:8080}:8080"]
    assert "listen 8080 " in (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()


def test_only_nginx_and_the_workers_have_a_way_out(compose: dict[str, Any]):
    internal = {name for name, network in compose["networks"].items() if network.get("internal")}
    open_to = {name: set(service["networks"]) - internal for name, service in compose["services"].items()}

    assert {name for name, networks in open_to.items() if networks} == {"nginx", "worker"}
    assert open_to["nginx"].isdisjoint(open_to["worker"])


def test_only_the_api_and_the_workers_reach_redis(services: dict[str, Any]):
    of_redis = set(services["redis"]["networks"])

    assert {name for name, service in services.items() if of_redis & set(service["networks"])} == {*OURS, "redis"}
    assert set(services["nginx"]["networks"]) & set(services["api"]["networks"])


def test_only_the_tiers_and_the_migration_reach_the_database(services: dict[str, Any]):
    of_postgres = set(services["postgres"]["networks"])

    assert {name for name, service in services.items() if of_postgres & set(service["networks"])} == {
        *OURS,
        "migrate",
        "postgres",
    }


def test_each_service_waits_for_what_it_needs(services: dict[str, Any]):
    needs = {name: dict(service.get("depends_on", {})) for name, service in services.items()}

    healthy, done = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    assert needs == {
        "nginx": {"api": healthy},
        "api": {"redis": healthy},
        "worker": {"redis": healthy, "migrate": done},
        "migrate": {"postgres": healthy},
        "redis": {},
        "postgres": {},
    }


def test_the_tables_are_made_before_a_worker_writes_and_after_each_update(services: dict[str, Any]):
    migrate = services["migrate"]

    assert migrate["command"] == ["migrate"]
    assert migrate["image"] == services["worker"]["image"]
    assert migrate["restart"] == "on-failure"  # It ends.
    assert main.get_command(None, "migrate") is not None


def test_all_use_the_database_that_is_there(services: dict[str, Any]):
    made = services["postgres"]["environment"]
    urls = {services[name]["environment"]["SLUICE_DATABASE_URL"] for name in (*OURS, "migrate")}

    assert urls == {f"postgresql://{made['POSTGRES_USER']}@postgres/{made['POSTGRES_DB']}"}
    assert database_url(urls.pop()).drivername == "postgresql+asyncpg"


def test_docker_waits_for_longer_than_a_tier_drains(services: dict[str, Any]):
    drain_s = {name: float(services[name]["environment"][f"SLUICE_{name.upper()}_DRAIN_S"]) for name in OURS}
    conf = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()
    cut_s = int(re.search(r"worker_shutdown_timeout (\d+)s;", conf)[1])

    assert drain_s == {"api": Settings().api_drain_s, "worker": Settings().worker_drain_s}
    for name in OURS:
        assert seconds(services[name]["stop_grace_period"]) > drain_s[name]
    assert drain_s["api"] < cut_s < seconds(services["nginx"]["stop_grace_period"])


def test_what_the_tiers_are_set_to_are_settings(services: dict[str, Any]):
    known = {f"SLUICE_{field.upper()}" for field in Settings.model_fields}
    known |= {f"{vendor.env}_{part}" for vendor in VENDORS.values() for part in ("API_KEY", "BASE_URL")}
    providers = {f"{vendor.env}_{part}" for vendor in VENDORS.values() for part in ("API_KEY", "BASE_URL")} - {"DEMO_API_KEY"}

    for name in OURS:
        environment = services[name]["environment"]
        assert set(environment) <= known
        assert providers <= set(environment), "a provider's variables do not reach the container"
        assert environment["SLUICE_SECRET"] is None, "passed through; an empty one would be a secret too"
        assert "SLUICE_HOST" not in environment, "the image says it"


def test_without_keys_it_says_what_to_do(services: dict[str, Any]):
    assert services["api"]["environment"]["SLUICE_API_KEYS"].startswith("${SLUICE_API_KEYS:?Write SLUICE_API_KEYS=")
    assert "SLUICE_API_KEYS" not in services["worker"]["environment"]


def test_health_is_asked_where_it_is_served(services: dict[str, Any]):
    port = services["worker"]["environment"]["SLUICE_WORKER_PORT"]

    assert f"127.0.0.1:{port}/readyz" in services["worker"]["healthcheck"]["test"][-1]
    assert f"127.0.0.1:{Settings().port}/readyz" in services["api"]["healthcheck"]["test"][-1]
    for name in OURS:
        compile(services[name]["healthcheck"]["test"][-1], name, "exec")


def test_one_service_builds_the_image_that_both_tiers_run(services: dict[str, Any]):
    builders = [name for name, service in services.items() if "build" in service]

    assert builders == ["api"]
    assert services["api"]["image"] == services["worker"]["image"]
    assert (ROOT / services["api"]["build"]["dockerfile"]).is_file()


def test_nginx_runs_the_configuration_that_is_tested_here(services: dict[str, Any]):
    nginx = services["nginx"]
    version = re.search(r":(\d+)\.(\d+)", nginx["image"])

    assert nginx["volumes"] == ["./deploy/nginx:/etc/nginx/sluice:ro"]
    assert "/etc/nginx/sluice/nginx.conf" in nginx["entrypoint"]
    assert version
    assert (int(version[1]), int(version[2])) >= (1, 28)  # `resolve`, which came with 1.27.3.
    servers = (ROOT / "deploy" / "nginx" / "api-servers.conf").read_text()
    assert "resolver 127.0.0.11 valid=" in servers
    assert f"server api:{Settings().port} resolve " in servers


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_redis_understands_its_flags(services: dict[str, Any], tmp_path: Path):
    command = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in services["redis"]["command"]]
    socket = tmp_path / "r.sock"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)], stdout=log, stderr=log
        )
    try:
        until(lambda: socket.exists() or server.poll() is not None, "Redis has started")
        with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            config = client.config_get("*")
    finally:
        server.terminate()
        server.wait(120)

    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["save"] == ""
    assert config["maxmemory-policy"] == "noeviction"
    assert config["maxmemory"] == str(2 << 30)
    assert config["client-output-buffer-limit"].endswith("pubsub 268435456 67108864 60")


def test_redis_and_postgresql_keep_their_data(compose: dict[str, Any]):
    assert compose["services"]["redis"]["volumes"] == ["redis-data:/data"]
    assert compose["services"]["postgres"]["volumes"] == ["postgres-data:/var/lib/postgresql/data"]
    assert set(compose["volumes"]) == {"redis-data", "postgres-data"}


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_special():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1].rstrip("/") for line in lines if line.startswith("COPY ") and "--from" not in line]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert set(copied) == kept
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert 'ENTRYPOINT ["sluice"]' in lines
    assert lines.index("USER 10001:10001") > max(number for number, line in enumerate(lines) if line.startswith("RUN"))


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_no_replica_is_taken_out_for_a_failure():
    """nginx takes one back when a response of it is over, and streams last for minutes."""
    servers = re.findall(r"^server .*;$", (ROOT / "deploy" / "nginx" / "api-servers.conf").read_text(), re.MULTILINE)

    assert servers
    assert all("max_fails=0" in server for server in servers)
