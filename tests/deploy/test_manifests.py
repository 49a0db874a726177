"""The compose file and the manifests: well formed, and saying what the service understands."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sysconfig
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.database import CALLERS_PATIENCE
from app.settings import FILE_SUFFIX, PREFIX, Settings, _variables
from sandbox.__main__ import _bff_environment, _kept_keys
from tests.processes import ROOT
from tests.test_docs import sourced

SCRIPTS = Path(sysconfig.get_path("scripts"))
COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "bff.yaml"
SANDBOX_ENVIRONMENT = "deploy/sandbox.env"
LAST_WRITES = CALLERS_PATIENCE + timedelta(seconds=3)
"""What a process may need after its calls have ended: writes that wait for the database, and to close."""


def random_key(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


SECRETS = {
    "cert_client_secret": "a secret\n",
    "database_url": "postgresql://bff:secret@db.example/bff\n",
    "login_decryption_keys": json.dumps([random_key("login")]),
    "login_unlink_auth": "toss:a-long-random-text",
    "redis_url": "redis://redis.example",
    "vault_hash_key": random_key("hash"),
    "vault_keys": json.dumps({"k1": random_key("vault")}),
}


@pytest.fixture
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
    return document


@pytest.fixture
def manifests() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES.read_text("utf-8"))}


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Settings of a container with this environment, which sees these files in these folders."""

    def settings(environment: dict[str, str], files: dict[str, dict[str, str]]) -> Settings:
        for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
            monkeypatch.delenv(name)
        for folder, contents in files.items():
            (tmp_path / folder.strip("/")).mkdir(parents=True)
            for name, content in contents.items():
                (tmp_path / folder.strip("/") / name).write_text(content, "utf-8")
        for name, value in environment.items():
            is_file = name.endswith(FILE_SUFFIX) and name.removesuffix(FILE_SUFFIX) in dict(_variables())
            monkeypatch.setenv(name, f"{tmp_path}{value}" if is_file else value)
        return Settings.from_environment()

    return settings


def sample_secrets() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (ROOT / "deploy" / "secrets.sample").iterdir()}


# --- Form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        ["hadolint", "Dockerfile"],
        ["caddy", "fmt", "--diff", "deploy/proxy/Caddyfile"],
    ],
    ids=lambda command: command[0],
)
def test_linters_find_nothing(command):
    done = subprocess.run(
        [SCRIPTS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("release", ["1.31", "1.37"])
def test_the_manifests_are_kubernetes(release):
    for manifest in yaml.safe_load_all(KUBERNETES.read_text("utf-8")):
        kubernetes_validate.validate(manifest, release, strict=True)


def test_the_image_has_one_pinned_base_no_root_and_the_service_as_its_default():
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert set(re.findall(r"^FROM (\S+:\S+)", dockerfile, re.MULTILINE)) == {"python:3.13-slim-trixie"}
    assert re.findall(r"pip install .*uv==[\d.]+$", dockerfile, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^FROM .* AS (\S+)$", dockerfile, re.MULTILINE)[-1] == "service"


# --- The compose file ----------------------------------------------------------------------------------------


def test_compose_is_valid_with_the_sample_environment(compose, read):
    environment = sourced(". ./.env.example") | compose["services"]["app"]["environment"]
    settings = read(environment, {"/run/secrets": sample_secrets()})
    assert settings.database.url.get_secret_value().startswith("postgresql+asyncpg://bff:")
    assert settings.budget.replicas == compose["services"]["app"]["deploy"]["replicas"]


def test_compose_is_fit_for_production_with_real_values(compose, read):
    files = ("cert_client_secret", "vault_hash_key", "vault_keys")
    names = ("BFF_CERT__CLIENT_SECRET", "BFF_VAULT__HASH_KEY", "BFF_VAULT__KEYS")
    own = {f"{name}{FILE_SUFFIX}": f"/run/secrets/{file}" for name, file in zip(names, files, strict=True)}
    own |= {"BFF_ENVIRONMENT": "production", "BFF_CERT__CLIENT_ID": "client", "BFF_VAULT__ACTIVE_KEY": "k1"}
    settings = read(own | compose["services"]["app"]["environment"], {"/run/secrets": SECRETS})
    assert settings.faults() == []


def test_the_proxy_is_trusted_and_nothing_else(compose, read):
    environment = sourced(". ./.env.example") | compose["services"]["app"]["environment"]
    settings = read(environment, {"/run/secrets": sample_secrets()})
    (network,) = compose["networks"]["default"]["ipam"]["config"]
    proxy = ip_address(compose["services"]["proxy"]["networks"]["default"]["ipv4_address"])
    assert settings.network.trusted_proxies == (ip_network(proxy),)
    fixed = [
        ip_address(service["networks"]["default"]["ipv4_address"])
        for service in compose["services"].values()
        if "networks" in service
    ]
    assert len(set(fixed)) == 2
    for address in fixed:
        assert address in ip_network(network["subnet"])
        assert address not in ip_network(network["ip_range"])


def test_migrations_come_first_and_with_the_same_settings(compose):
    app, migrate = compose["services"]["app"], compose["services"]["migrate"]
    assert app["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert (migrate["command"], app["command"]) == (["migrate"], ["serve"])
    for key in ("environment", "env_file", "volumes", "image"):
        assert app[key] == migrate[key]


def test_only_proxy_and_sandbox_are_reached_from_outside(compose):
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(ports) == {"proxy", "sandbox"}
    assert all(port.startswith("127.0.0.1:") for port in ports["sandbox"])
    assert compose["services"]["sandbox"]["profiles"] == ["sandbox"]
    assert [name for name, service in compose["services"].items() if "profiles" in service] == ["sandbox"]


def test_what_we_build_cannot_write_or_gain_rights(compose):
    built = [service for service in compose["services"].values() if "build" in service]
    assert len(built) == 3
    for service in built:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_proxy_is_the_release_that_is_tested(compose):
    version = subprocess.run([SCRIPTS / "caddy", "version"], capture_output=True, text=True, check=True).stdout
    assert compose["services"]["proxy"]["image"] == f"caddy:{version.split()[0].removeprefix('v')}-alpine"


@pytest.mark.parametrize("stop", ["compose", "kubernetes"])
def test_a_stop_waits_for_calls_in_flight(compose, manifests, read, stop):
    if stop == "compose":
        environment = sourced(". ./.env.example") | compose["services"]["app"]["environment"]
        granted = timedelta(seconds=int(compose["services"]["app"]["stop_grace_period"].removesuffix("s")))
        before = timedelta(0)
        settings = read(environment, {"/run/secrets": sample_secrets()})
    else:
        pod = manifests["Deployment"]["spec"]["template"]["spec"]
        granted = timedelta(seconds=pod["terminationGracePeriodSeconds"])
        before = timedelta(seconds=int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]))
        settings = read(manifests["ConfigMap"]["data"], {"/run/secrets": SECRETS})
    assert granted >= before + settings.server.shutdown_grace + LAST_WRITES
    # Or else a call to Toss would be cut off.
    assert settings.server.shutdown_grace > max(settings.toss.call_deadline, settings.cert.call_deadline)


# --- The sandbox in the compose file -------------------------------------------------------------------------


def test_the_sandboxs_variables_are_those_that_compose_reads(compose, read, sandbox, tmp_path):
    given = sourced(f". ./{SANDBOX_ENVIRONMENT}")
    wiring = _bff_environment(sandbox, tmp_path, _kept_keys(tmp_path / "vault.json"), 8000)
    files = {name.removesuffix(FILE_SUFFIX) for name in given if name.endswith(FILE_SUFFIX)}
    of_compose = {name.removesuffix(FILE_SUFFIX) for name in compose["services"]["app"]["environment"]}
    elsewhere = {"BFF_SERVER__HOST", "BFF_SERVER__PORT", "BFF_EVENTS__URL", "BFF_EVENTS__SECRETS"}
    assert files == set(wiring) - set(given) - of_compose - elsewhere
    folder = "/opt/bff/var/sandbox/variables"
    assert {name: value for name, value in given.items() if name.endswith(FILE_SUFFIX)} == {
        f"{name}{FILE_SUFFIX}": f"{folder}/{name}" for name in files
    }
    environment = given | compose["services"]["app"]["environment"]
    settings = read(environment, {"/run/secrets": sample_secrets(), folder: {name: wiring[name] for name in files}})
    address = compose["services"]["sandbox"]["networks"]["default"]["ipv4_address"]
    assert settings.network.callback_allowlist == (ip_network(address),)
    assert settings.environment == "development"


# --- Kubernetes ----------------------------------------------------------------------------------------------


def test_kubernetes_is_fit_for_production(manifests, read):
    settings = read(manifests["ConfigMap"]["data"], {"/run/secrets": SECRETS})
    assert settings.faults() == []
    deployment = manifests["Deployment"]["spec"]
    assert settings.budget.replicas == deployment["replicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"]


def test_pods_of_kubernetes_are_confined_and_see_the_files_that_are_named(manifests):
    named = {path for name, path in manifests["ConfigMap"]["data"].items() if name.endswith(FILE_SUFFIX)}
    assert {Path(path).name for path in named} == set(SECRETS)
    # Several workers need a folder to write to; the migration has none.
    for kind, writable in (("Job", set()), ("Deployment", {"/tmp"})):
        pod = manifests[kind]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
        assert {path for path, is_read_only in mounts.items() if is_read_only} == {
            "/run/secrets",
            "/run/certificates",
        }
        assert {path for path, is_read_only in mounts.items() if not is_read_only} == writable
        assert container["envFrom"] == [{"configMapRef": {"name": "bff"}}]


def test_a_service_of_our_name_would_stop_the_start(manifests, read):
    """What Kubernetes puts into the environment unless it is told not to."""
    assert manifests["Service"]["metadata"]["name"] == "bff"
    with pytest.raises(Exception, match="BFF_SERVICE_HOST: unknown variable"):
        read(manifests["ConfigMap"]["data"] | {"BFF_SERVICE_HOST": "10.0.0.1"}, {"/run/secrets": SECRETS})


def test_every_variable_that_is_named_exists():
    known = {name for variable, _ in _variables() for name in (variable, variable + FILE_SUFFIX)}
    for path in (COMPOSE, KUBERNETES, ROOT / "Dockerfile", ROOT / SANDBOX_ENVIRONMENT):
        named = set(re.findall(rf"^\s*(?:- |ENV |# ?)?({PREFIX}\w+)[:=]", path.read_text("utf-8"), re.MULTILINE))
        assert named
        assert named <= known
