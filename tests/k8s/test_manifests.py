"""The manifests against the schemas of their kinds, and against what the code expects of them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.monitoring import kubernetes
from cluster.session import PROXY_ENV
from jobs.config import RunConfig, load_run_config
from jobs.serve_app import ServeArgs

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent for path in K8S.glob("overlays/*/kustomization.yaml"))
CRDS = ROOT.parent / "shared" / "crds"
INSTALLED = "/opt/distillery/"
MOUNTED = "/etc/distillery/"


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def kustomization(folder: Path) -> dict[str, Any]:
    return documents(folder / "kustomization.yaml")[0]


def base_resources() -> list[dict[str, Any]]:
    names = kustomization(K8S / "base")["resources"]
    return [document for name in names for document in documents(K8S / "base" / name)]


@cache
def build(overlay: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send; shared between tests, so nobody changes it."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: overlays cannot be built, only the base is checked")
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def closed(schema: Any) -> Any:
    """The schema with unknown fields forbidden: the API server drops them without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and not is_open
    ):
        result["additionalProperties"] = False
    return result


def check(document: dict[str, Any]) -> None:
    group = document["apiVersion"]
    if "." not in group.partition("/")[0]:
        kubernetes_validate.validate(document, "1.30", strict=True)
        return
    error = next(schema_of(document["kind"]).iter_errors(document), None)
    if error is not None:
        raise error


@cache
def schema_of(kind: str) -> jsonschema.Draft202012Validator:
    file = CRDS / f"{kind.lower()}_v1.json"
    if not file.is_file():
        pytest.skip(f"no schema of {kind}: ../shared/crds is not present")
    return jsonschema.Draft202012Validator(closed(json.loads(file.read_text())))


def one(resources: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (resource for resource in resources if resource["kind"] == kind)
    return found


def clusters(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        "RayCluster": one(resources, "RayCluster")["spec"],
        "RayService": one(resources, "RayService")["spec"]["rayClusterConfig"],
    }


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def ports(group: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(group)["ports"]}


def run_config(resources: list[dict[str, Any]], paths: list[str], folder: Path) -> RunConfig:
    """Read the configuration as a pod would: files of the image, files of the ConfigMap."""
    data = one(resources, "ConfigMap")["data"]
    files = []
    for path in paths:
        if path.startswith(INSTALLED):
            files.append(ROOT / path.removeprefix(INSTALLED))
        else:
            name = path.removeprefix(MOUNTED)
            (folder / name).write_text(data[name])
            files.append(folder / name)
    return load_run_config(files)


@pytest.mark.parametrize("resource", base_resources(), ids=lambda r: f"{r['kind']}-base")
def test_base_fits_the_schemas(resource: dict[str, Any]) -> None:
    check(resource)


def test_a_mistyped_field_does_not_pass() -> None:
    cluster = one(base_resources(), "RayCluster")
    container(groups(cluster["spec"])[1])["resources"]["limit"] = {}
    with pytest.raises(jsonschema.ValidationError, match="limit"):
        check(cluster)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_build_and_fit_the_schemas(overlay: Path) -> None:
    resources = build(overlay)
    for resource in resources:
        assert kind_is_placed(resource), f"{resource['kind']} has no namespace"
        check(resource)


def kind_is_placed(resource: dict[str, Any]) -> bool:
    return resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "distillery"


@pytest.mark.parametrize("folder", [K8S / "base", *OVERLAYS], ids=lambda path: path.name)
def test_what_a_kustomization_names_exists(folder: Path) -> None:
    spec = kustomization(folder)
    files = [
        *spec["resources"],
        *spec.get("configurations", []),
        *(patch["path"] for patch in spec.get("patches", [])),
        *(name for made in spec.get("configMapGenerator", []) for name in made["files"]),
    ]
    assert [name for name in files if not (folder / name).exists()] == []
    known = {(r["kind"], r["metadata"]["name"]) for r in base_resources()}
    targets = {(p["target"]["kind"], p["target"]["name"]) for p in spec.get("patches", [])}
    assert targets <= known


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_pipeline_and_service_read_one_valid_configuration(overlay: Path, tmp_path: Path) -> None:
    resources = build(overlay)
    words = shlex.split(one(resources, "RayJob")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.pipeline"]
    assert words[3::2] == ["--config"] * len(words[4::2])
    serve = yaml.safe_load(one(resources, "RayService")["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    args = ServeArgs(**application["args"])
    assert args.config == words[4::2], "trained with one configuration, served with another"
    config = run_config(resources, args.config, tmp_path)

    assert application["name"] == config.serve.app_name
    assert serve["http_options"] == {"host": config.serve.host, "port": config.serve.port}
    assert config.cluster.address == "auto"
    for cluster in clusters(resources).values():
        wants_gpu = [bool(gpu_limit(group)) for group in cluster["workerGroupSpecs"]]
        assert any(wants_gpu) == (config.cluster.accelerator is not None)
        for group in groups(cluster):
            mounts = {mount["mountPath"] for mount in container(group)["volumeMounts"]}
            assert {"/etc/distillery", "/mnt/distillery", "/dev/shm"} <= mounts
            assert config.run.root.startswith("/mnt/distillery/")


def gpu_limit(group: dict[str, Any]) -> str | None:
    return container(group)["resources"]["limits"].get("nvidia.com/gpu")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_gateway_asks_for_keys_and_its_proxies_are_bounded(
    overlay: Path, tmp_path: Path
) -> None:
    resources = build(overlay)
    text = one(resources, "RayService")["spec"]["serveConfigV2"]
    paths = yaml.safe_load(text)["applications"][0]["args"]["config"]
    config = run_config(resources, paths, tmp_path)
    assert config.serve.keys.startswith("/mnt/distillery/")
    for group in groups(clusters(resources)["RayService"]):
        given = {entry["name"]: entry["value"] for entry in container(group)["env"]}
        assert PROXY_ENV.items() <= given.items()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_ports_agree(overlay: Path, tmp_path: Path) -> None:
    resources = build(overlay)
    text = one(resources, "RayService")["spec"]["serveConfigV2"]
    paths = yaml.safe_load(text)["applications"][0]["args"]["config"]
    config = run_config(resources, paths, tmp_path)
    (endpoint,) = one(resources, "PodMonitor")["spec"]["podMetricsEndpoints"]
    for cluster in clusters(resources).values():
        for group in groups(cluster):
            assert ports(group)[endpoint["port"]] == config.cluster.metrics_port
            exported = group["rayStartParams"]["metrics-export-port"]
            assert int(exported) == config.cluster.metrics_port
    for group in clusters(resources)["RayService"]["workerGroupSpecs"]:
        assert ports(group)["serve"] == config.serve.port
        probe = container(group)["readinessProbe"]["httpGet"]
        assert probe == {"path": "/-/healthz", "port": "serve"}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_ray_pod_is_scraped_and_gets_the_generated_config(overlay: Path) -> None:
    resources = build(overlay)
    wanted = one(resources, "PodMonitor")["spec"]["selector"]["matchLabels"]
    # KubeRay adds its own labels (ray.io/...) to the pods it makes.
    own = {key: value for key, value in wanted.items() if not key.startswith("ray.io/")}
    generated = one(resources, "ConfigMap")["metadata"]["name"]
    assert generated != "distillery-run", "without a hash in the name no pod sees a change"
    for cluster in clusters(resources).values():
        for group in groups(cluster):
            assert own.items() <= group["template"]["metadata"]["labels"].items()
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            assert volumes["config"]["configMap"]["name"] == generated
            assert container(group)["image"].rpartition(":")[2].startswith("0.1.0-")


def test_the_operators_rules_are_those_of_prometheus() -> None:
    assert kubernetes.FILE.read_text() == kubernetes.prometheus_rule()


def test_the_job_runs_on_the_cluster_beside_it() -> None:
    resources = base_resources()
    selector = one(resources, "RayJob")["spec"]["clusterSelector"]
    assert selector["ray.io/cluster"] == one(resources, "RayCluster")["metadata"]["name"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayService"])
def test_the_autoscaler_sees_an_h100_in_a_pod_that_does_not_run_yet(kind: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _get_ray_resources_from_group_spec,
    )

    cluster = clusters(base_resources())[kind]
    (h100,) = (g for g in cluster["workerGroupSpecs"] if g["groupName"] == "h100")
    seen = _get_ray_resources_from_group_spec(h100, False)
    assert seen["GPU"] == 1
    assert seen["accelerator_type:H100"] == 1
    assert _get_ray_resources_from_group_spec(cluster["headGroupSpec"], True)["CPU"] == 0


def test_versions_in_manifests_are_the_pinned_ones() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for cluster in clusters(base_resources()).values():
        assert cluster["rayVersion"] == pins["ray"]
    images = [
        line.split()[1]
        for line in (K8S / "Dockerfile").read_text().splitlines()
        if line.startswith("FROM rayproject/ray")
    ]
    assert images
    assert all(image.startswith(f"rayproject/ray:{pins['ray']}-py311") for image in images)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for overlay in OVERLAYS:
        (image,) = kustomization(overlay)["images"]
        assert image["newTag"].startswith(f"{project['version']}-")
