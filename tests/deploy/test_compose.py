"""Does docker-compose.yml say what it should? Its schema, its meaning, and what can run without an engine.

``engine/`` runs it where there is one.
"""

import contextlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from cli.main import main
from common.config.compose_variables import COMPOSE_VARIABLES
from common.config.settings import Settings
from common.database.engine import database_url
from common.redis.client import connect
from common.redis.probe import try_all
from common.vendors.table import VENDORS
from tests.support.fleet import ROOT, until

FILE = ROOT / "docker-compose.yml"
MORE = ("docker-compose.tls.yml", "docker-compose.secrets.yml", "docker-compose.secure.yml")
OURS = ("api", "worker")
SERVICES = ("nginx", *OURS, "redis", "postgres")  # Those that run all the time.
ENDING = ("migrate", "credentials")
OPTIONAL = ("cli", "demo")
WITH_SETTINGS = (*OURS, "migrate", "cli")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


@pytest.mark.parametrize("name", [FILE.name, *MORE])
def test_it_is_valid_by_the_specification(name: str):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / name)]

    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_these_are_the_services(services: dict[str, Any]):
    assert set(services) == {*SERVICES, *ENDING, *OPTIONAL}
    assert [name for name, service in services.items() if "profiles" in service] == list(OPTIONAL)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_watched_and_restarted(services: dict[str, Any], name: str):
    assert services[name]["restart"] == "unless-stopped"
    assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", [*SERVICES, *ENDING, *OPTIONAL])
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
    assert service["mem_limit"]
    assert 0 < service["cpus"] <= 1  # An engine refuses more than its machine has.
    assert service["pids_limit"] > 0
    assert service["logging"]["options"] == {"max-size": "50m", "max-file": "3"}


def test_only_nginx_can_be_reached_from_outside_and_by_default_from_this_machine_alone(services: dict[str, Any]):
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    assert services["nginx"]["ports"] == ["${SLUICE_PUBLISH:-127.0.0.1:8080}:8080"]
    assert "listen 8080 " in (ROOT / "deploy" / "nginx" / "listen-plain.conf").read_text()


def test_redis_and_the_database_have_no_way_out_and_the_tiers_one_of_their_own(compose: dict[str, Any]):
    internal = {name for name, network in compose["networks"].items() if network.get("internal") is True}
    services = compose["services"].items()
    ways = {name: set(service["networks"]) - internal for name, service in services if "network_mode" not in service}

    assert {name: way for name, way in ways.items() if way} == {
        "nginx": {"front"},
        "api": {"callout"},  # Key sets and webhooks; SLUICE_API_INTERNAL=true closes it.
        "worker": {"egress"},
        "cli": {"egress"},
        "demo": {"egress"},
    }
    assert compose["services"]["credentials"]["network_mode"] == "none"


def test_the_api_believes_nginx_about_addresses_and_nobody_else(compose: dict[str, Any]):
    (pool,) = compose["networks"]["relay"]["ipam"]["config"]
    trusted = compose["services"]["api"]["environment"]["SLUICE_TRUSTED_PROXIES"]
    on_relay = {name for name, service in compose["services"].items() if "relay" in service.get("networks", ())}

    assert trusted == pool["subnet"] + "${SLUICE_TRUSTED_PROXIES:+,}${SLUICE_TRUSTED_PROXIES:-}"
    assert on_relay == {"nginx", "api"}
    ipaddress.ip_network(default_of(pool["subnet"]))


def test_only_the_api_and_the_workers_reach_redis(services: dict[str, Any]):
    assert reaching(services, "redis") == {*OURS, "cli", "redis"}
    assert set(services["nginx"]["networks"]) & set(services["api"]["networks"])


def test_only_the_tiers_and_the_migration_reach_the_database(services: dict[str, Any]):
    assert reaching(services, "postgres") == {*OURS, "cli", "migrate", "postgres"}


def reaching(services: dict[str, Any], name: str) -> set[str]:
    networks = set(services[name]["networks"])
    return {other for other, service in services.items() if networks & set(service.get("networks", ()))}


def default_of(text: str) -> str:
    return re.sub(r"\$\{\w+:?-(.*?)\}", r"\1", text)


def test_each_service_waits_for_what_it_needs(services: dict[str, Any]):
    needs = {name: dict(service.get("depends_on", {})) for name, service in services.items()}

    healthy, done = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    made, started = {"credentials": done}, {"condition": "service_started"}
    assert needs == {
        "nginx": {},  # Else `down` would stop it before the API, and cut what the API ends properly.
        # Both tiers start without Redis, and work when it is there; but `down` must not stop it before they have drained.
        "api": made | {"redis": started},
        "worker": made | {"redis": started, "migrate": done, "demo": {**started, "required": False}},
        "migrate": made | {"postgres": healthy},
        "redis": made,
        "postgres": made,
        "cli": {},  # Else each command would begin with three lines about `credentials`, which `up` has long started.
        "credentials": {},
        "demo": {},
    }


def test_the_tables_are_made_before_a_worker_writes_and_after_each_update(services: dict[str, Any]):
    migrate = services["migrate"]

    assert migrate["command"] == ["migrate"]
    assert migrate["image"] == services["worker"]["image"]
    assert migrate["restart"] == "on-failure"  # It ends.
    assert main.get_command(None, "migrate") is not None


def test_the_variables_that_compose_alone_reads_are_known_as_such():
    """Else `sluice doctor` would call them mistakes."""
    read = {name for file in (FILE.name, *MORE) for name in re.findall(r"\$\{(SLUICE_\w+)", (ROOT / file).read_text())}
    settings = {f"SLUICE_{name.upper()}" for name in Settings.model_fields}

    assert {name for name in read if name not in settings and name.removesuffix("_FILE") not in settings} == COMPOSE_VARIABLES


def run_credentials(folder: Path, **variables: str) -> None:
    for service in ("api", "worker", "redis", "postgres"):
        (folder / service).mkdir(exist_ok=True)
    script = ROOT / "deploy" / "credentials.sh"
    subprocess.run(["sh", script, folder], env={"PATH": os.environ["PATH"], **variables}, check=True)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_credentials_are_made_once_and_each_container_gets_its_own(services: dict[str, Any], tmp_path: Path):
    run_credentials(tmp_path)
    first = contents(tmp_path)
    run_credentials(tmp_path)

    assert contents(tmp_path) == first
    made = services["postgres"]["environment"]
    password = first["postgres/password"]
    for tier in OURS:
        address = database_url(first[f"{tier}/database-url"])
        assert (address.drivername, address.host) == ("postgresql+asyncpg", "postgres")
        assert (address.username, address.database, address.password) == (made["POSTGRES_USER"], made["POSTGRES_DB"], password)
        assert first[f"{tier}/redis-url"].startswith(f"redis://{tier}:")
    assert first["api/redis-url"] != first["worker/redis-url"]
    assert first["api/secret"] == first["worker/secret"]
    assert len({password, first["api/secret"], first["api/redis-password"], first["worker/redis-password"]}) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", first[name]) for name in first if name.endswith(("password", "secret")))
    assert first["api/redis-password"] not in first["redis/users.acl"]
    assert "worker/redis-password" in first
    readable = {name for name in first if (tmp_path / name).stat().st_mode & 0o077}
    assert readable == {"redis/users.acl", "redis/operator-password", "postgres/password"}  # Their readers are other users.


def test_what_the_operator_sets_is_used_instead_and_may_be_taken_back(tmp_path: Path):
    run_credentials(tmp_path)
    made = contents(tmp_path)
    own = {"SLUICE_REDIS_URL": "rediss://mine/1", "SLUICE_DATABASE_URL": "postgresql://mine/x", "SLUICE_SECRET": "s" * 40}
    run_credentials(tmp_path, **own)
    found = contents(tmp_path)
    run_credentials(tmp_path)

    for tier in OURS:
        assert [found[f"{tier}/{name}"] for name in ("redis-url", "database-url", "secret")] == list(own.values())
    assert contents(tmp_path) == made


@contextlib.contextmanager
def redis_with_users(folder: Path) -> Iterator[Path]:
    """Yield the socket of a Redis with the users that ``credentials.sh`` made. Its log of commands stays in the folder."""
    socket = folder / "r.sock"
    words = ["--port", "0", "--unixsocket", socket, "--aclfile", folder / "redis" / "users.acl", "--dir", folder]
    server = subprocess.Popen(["redis-server", *words, "--appendonly", "yes", "--save", ""], stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(socket), "Redis has started")
        yield socket
    finally:
        server.terminate()
        server.wait(120)


def answers(socket: Path) -> bool:
    health = redis.Redis(unix_socket_path=str(socket), username="health", password="any")
    with contextlib.suppress(redis.exceptions.ConnectionError), health as client:
        return bool(client.ping())
    return False


def refused(client: redis.Redis, *commands: str) -> bool:
    for command in commands:
        with pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.AuthenticationError)):
            client.execute_command(*command.split(" "))
    return True


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
async def test_each_tier_has_a_user_of_redis_that_may_do_what_sluice_does_and_no_more(tmp_path: Path):
    run_credentials(tmp_path)
    with redis_with_users(tmp_path) as socket:
        for tier in OURS:
            password = (tmp_path / tier / "redis-password").read_text()
            async with connect(f"unix://{tier}:{password}@{socket}") as client:
                assert await try_all(client) == []
            with redis.Redis(unix_socket_path=str(socket), username=tier, password=password) as plain:
                assert refused(plain, "FLUSHALL", "KEYS *", "CONFIG GET *", "ACL LIST", "SHUTDOWN", "GET other")
        with redis.Redis(unix_socket_path=str(socket)) as nobody:
            assert refused(nobody, "PING", "GET sluice:q:turn", "INFO")
        with redis.Redis(unix_socket_path=str(socket), username="health", password="any") as health:
            assert refused(health, "GET sluice:q:turn", "INFO", "PUBLISH a b", "EVAL return 0")


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_what_a_tier_wrote_in_a_transaction_is_there_after_a_restart(tmp_path: Path):
    """Redis reads its log of transactions as the default user, and drops what this user may not do."""
    run_credentials(tmp_path)
    password = (tmp_path / "worker" / "redis-password").read_text()

    with (
        redis_with_users(tmp_path) as socket,
        redis.Redis(unix_socket_path=str(socket), username="worker", password=password) as client,
    ):
        client.pipeline(transaction=True).set("sluice:a", "1").set("sluice:b", "2").execute()
        client.eval("redis.call('SET', KEYS[1], '3') redis.call('SET', KEYS[2], '4')", 2, "sluice:c", "sluice:d")
    with (
        redis_with_users(tmp_path) as socket,
        redis.Redis(unix_socket_path=str(socket), username="worker", password=password) as client,
    ):
        assert client.mget("sluice:a", "sluice:b", "sluice:c", "sluice:d") == [b"1", b"2", b"3", b"4"]


def test_docker_waits_for_longer_than_a_tier_drains(services: dict[str, Any]):
    drain_s = {name: float(default_of(services[name]["environment"][f"SLUICE_{name.upper()}_DRAIN_S"])) for name in OURS}

    assert drain_s == {"api": Settings().api_drain_s, "worker": Settings().worker_drain_s}
    for name in OURS:
        assert seconds(services[name]["stop_grace_period"]) > drain_s[name]
    assert seconds(services["nginx"]["stop_grace_period"]) > seconds(services["api"]["stop_grace_period"])


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_every_setting_in_env_reaches_the_containers(services: dict[str, Any], name: str):
    """By env_file. What ``environment`` says is stronger, so it must not drop what an operator wrote without a reason."""
    service, known = services[name], {f"SLUICE_{field.upper()}" for field in Settings.model_fields}
    vendors = {f"{vendor.env}_{part}" for vendor in VENDORS.values() for part in ("API_KEY", "BASE_URL")}
    numbers = {"SLUICE_API_REPLICAS": "", "SLUICE_WORKER_REPLICAS": ""}
    assert service["environment"].items() >= numbers.items()  # Else Compose would make all replicas anew for one more.
    environment = {variable: value for variable, value in service["environment"].items() if variable not in numbers}

    assert service["env_file"] == [{"path": ".env", "required": False}]
    assert {variable.removesuffix("_FILE") for variable in environment} <= known | vendors
    fixed = {variable for variable, value in environment.items() if value is not None and variable not in str(value)}
    by_file = {variable for variable in fixed if f"{variable}_FILE" in environment}  # `credentials` writes what .env says.
    assert by_file == {"SLUICE_REDIS_URL", "SLUICE_DATABASE_URL", "SLUICE_SECRET"}
    addresses = {"SLUICE_HOST", "SLUICE_PORT", "SLUICE_WORKER_PORT"}  # Inside the container.
    clients = {"SLUICE_API_KEYS", "SLUICE_ADMIN_KEYS", "SLUICE_JWT_SECRET"} if name == "worker" else set()
    assert fixed - by_file <= addresses | clients


def test_what_others_wait_for_does_not_change_with_a_setting(services: dict[str, Any]):
    """Compose makes anew what depends on a service that it makes anew: Redis and PostgreSQL would restart for each setting."""
    credentials = services["credentials"]
    variables = {*re.findall(r"\$\{(SLUICE_\w+)", (ROOT / "deploy" / "credentials.sh").read_text())}

    assert credentials["env_file"] == []
    assert set(credentials["environment"]) == variables
    assert not any(credentials["environment"].values())  # As .env says.


def test_the_number_of_replicas_is_in_env(services: dict[str, Any]):
    assert {name: services[name]["scale"] for name in OURS} == {
        "api": "${SLUICE_API_REPLICAS:-1}",
        "worker": "${SLUICE_WORKER_REPLICAS:-1}",
    }


def test_without_keys_it_says_what_to_do(services: dict[str, Any]):
    assert services["api"]["environment"]["SLUICE_API_KEYS"].startswith("${SLUICE_API_KEYS?Write SLUICE_API_KEYS=")
    assert services["worker"]["environment"]["SLUICE_API_KEYS"] == ""


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False), (None, False)])
@pytest.mark.parametrize("name", OURS)
def test_a_tier_is_healthy_while_it_says_so(
    services: dict[str, Any], tmp_path: Path, name: str, status: int | None, *, is_healthy: bool
):
    check = check_of(services[name], tmp_path)
    port = services[name]["environment"]["SLUICE_PORT" if name == "api" else "SLUICE_WORKER_PORT"]
    assert check[-1].count(f"/{port} ") == 1

    with HTTPServer(("127.0.0.1", 0), answering(status)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check[-1] = check[-1].replace(f"/{port} ", f"/{server.server_port} ")
        found = subprocess.run(check, capture_output=True, check=False)
        server.shutdown()

    assert (found.returncode == 0) is is_healthy


def check_of(service: dict[str, Any], folder: Path) -> list[str]:
    """The command of a health check, with another folder than the container's /tmp."""
    return [word.replace("$$", "$").replace("/tmp/", f"{folder}/") for word in service["healthcheck"]["test"][1:]]


@pytest.mark.parametrize("name", SERVICES)
def test_a_check_sleeps_first_only_after_one_that_succeeded(services: dict[str, Any], tmp_path: Path, name: str):
    (tmp_path / "sleep").write_text('#!/bin/sh\necho "sleep $1"\n')
    (tmp_path / "sleep").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLUICE_HEALTH_INTERVAL": "90s"}
    check = check_of(services[name], tmp_path)
    wrapper = check[: check.index("check") + 1]

    tried = [
        subprocess.run([*wrapper, command], env=env, capture_output=True, text=True, check=False)
        for command in ("false", "true", "true", "false", "true")
    ]

    assert [done.returncode == 0 for done in tried] == [False, True, True, False, True]
    assert [done.stdout for done in tried] == ["", "", "sleep 90s\n", "sleep 90s\n", ""]
    assert services[name]["healthcheck"]["interval"] == "3s"


def answering(status: int | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == "/readyz"
            if status:
                self.send_response(status)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def test_one_service_builds_the_image_that_both_tiers_run(services: dict[str, Any]):
    builders = [name for name, service in services.items() if "build" in service]

    assert builders == ["api"]
    assert services["api"]["image"] == services["worker"]["image"]
    assert (ROOT / services["api"]["build"]["dockerfile"]).is_file()


def test_nginx_runs_the_configuration_that_is_tested_here(services: dict[str, Any]):
    nginx = services["nginx"]
    version = re.search(r":(\d+)\.(\d+)", nginx["image"])

    assert nginx["volumes"] == ["./deploy/nginx:/etc/nginx/sluice:ro"]
    assert nginx["entrypoint"][1].startswith("/etc/nginx/sluice/")
    assert (ROOT / "deploy" / "nginx" / Path(nginx["entrypoint"][1]).name).is_file()
    assert version
    assert (int(version[1]), int(version[2])) >= (1, 28)  # keepalive_min_timeout, which came with 1.27.4.
    servers = (ROOT / "deploy" / "nginx" / "api-servers.conf").read_text()
    assert "resolver 127.0.0.11 valid=" in servers
    assert f"default api:{Settings().port};" in servers


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_redis_understands_its_flags(services: dict[str, Any], tmp_path: Path):
    command = [default_of(word) for word in services["redis"]["command"]]
    (tmp_path / "users.acl").write_text("user default on nopass ~* &* +@all\n")
    command[command.index("--aclfile") + 1] = str(tmp_path / "users.acl")
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
    assert "redis-data:/data" in compose["services"]["redis"]["volumes"]
    assert "postgres-data:/var/lib/postgresql/data" in compose["services"]["postgres"]["volumes"]


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_special():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1].rstrip("/") for line in lines if line.startswith("COPY ") and "--from" not in line]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert set(copied) == kept
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert 'ENTRYPOINT ["sluice"]' in lines
    assert lines.index("USER 10001:10001") > max(number for number, line in enumerate(lines) if line.startswith("RUN"))


def seconds(duration: str) -> int:
    return int(default_of(duration).removesuffix("s"))


def test_no_replica_is_taken_out_for_a_failure():
    """nginx takes one back when a response of it is over, and streams last for minutes."""
    servers = re.findall(r"^#? *server .*", (ROOT / "deploy" / "nginx" / "api-servers.conf").read_text(), re.MULTILINE)

    assert servers
    assert all("max_fails=0" in server for server in servers)


@pytest.mark.skipif(shutil.which("apparmor_parser") is None, reason="apparmor is not installed")
def test_the_apparmor_profile_is_one():
    command = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", ROOT / "deploy" / "secure" / "apparmor-sluice"]

    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr


def test_the_profile_of_system_calls_names_none_that_a_gateway_has_no_business_with():
    profile = json.loads((ROOT / "deploy" / "secure" / "seccomp-sluice.json").read_text())
    (rule,) = profile["syscalls"]

    assert (profile["defaultAction"], rule["action"]) == ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")
    assert {"execve", "openat", "epoll_pwait", "futex", "accept4", "clone3"} <= set(rule["names"])
    forbidden = {"ptrace", "mount", "umount2", "bpf", "unshare", "setns", "keyctl", "io_uring_setup", "init_module", "reboot"}
    assert not forbidden & set(rule["names"])
