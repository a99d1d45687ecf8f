"""deploy/kubernetes as `kubectl apply -k` would send it: valid, and its parts fit one another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from rewardzoo.rewards import resolve
from rewardzoo.services import ServeConfig

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
Manifest = Mapping[str, Any]

# The fields that monitor.yaml uses, as the Prometheus Operator's definition of ServiceMonitor has them
# (prometheus-operator 0.84, example/prometheus-operator-crd); no package ships it.
TEXT = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}


def strict(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


SERVICE_MONITOR = strict(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "ServiceMonitor"},
    metadata={"type": "object", "required": ["name"]},
    spec=strict(
        ["selector", "endpoints"],
        selector=strict([], matchLabels={"type": "object", "additionalProperties": TEXT}),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": strict(
                [],
                port=TEXT,
                path=TEXT,
                interval=DURATION,
                scrapeTimeout=DURATION,
                authorization=strict([], type=TEXT, credentials=strict(["key"], name=TEXT, key=TEXT)),
            ),
        },
    ),
)


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", MANIFESTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert found, f"no {kind}"
    return found


def container(deployment: Manifest) -> Manifest:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def check(manifest: Manifest, version: str) -> None:
    if manifest["kind"] == "ServiceMonitor":
        jsonschema.validate(manifest, SERVICE_MONITOR)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


# The first has the preStop sleep; the other is the newest whose schemas are at hand.
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_every_manifest_is_valid(manifests, version: str) -> None:
    for manifest in manifests:
        check(manifest, version)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "terminationGracePeriodSecond"), 90),
        ("HorizontalPodAutoscaler", ("spec", "maxReplicas"), "many"),
        ("ServiceMonitor", ("spec", "endpoint"), []),
    ],
)
def test_the_validator_refuses_what_is_misspelt(manifests, kind: str, path, value) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(of(manifests, kind)[0]))
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest, kubernetes_validate.latest_version())


def test_selectors_find_the_pods_of_their_own_group_alone(manifests) -> None:
    deployments = of(manifests, "Deployment")
    for kind in ("Service", "PodDisruptionBudget"):
        groups = of(manifests, kind)
        assert {g["metadata"]["name"] for g in groups} == {d["metadata"]["name"] for d in deployments}
        for group in groups:
            selector = group["spec"]["selector"]
            wanted = selector.get("matchLabels", selector).items()
            found = [
                d["metadata"]["name"]
                for d in deployments
                if wanted <= d["spec"]["template"]["metadata"]["labels"].items()
            ]
            assert found == [group["metadata"]["name"]]
    (monitor,) = of(manifests, "ServiceMonitor")
    for service in of(manifests, "Service"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (port,) = service["spec"]["ports"]
        assert port["name"] == monitor["spec"]["endpoints"][0]["port"]


def test_each_deployment_is_scaled_by_one_autoscaler_that_owns_its_replicas(manifests) -> None:
    deployments = of(manifests, "Deployment")
    assert all("replicas" not in d["spec"] for d in deployments)
    scalers = of(manifests, "HorizontalPodAutoscaler")
    targets = [s["spec"]["scaleTargetRef"]["name"] for s in scalers]
    assert sorted(targets) == sorted(d["metadata"]["name"] for d in deployments)
    adapter = yaml.safe_load((MANIFESTS / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    for scaler in scalers:
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
        assert rule["seriesQuery"].startswith(rule["name"]["as"] + "{")


def test_the_metric_that_scales_is_one_that_servers_have(manifests) -> None:
    metrics = pytest.importorskip("rewardzoo.services.metrics", reason="servers have no metrics of their own")
    (metric,) = of(manifests, "HorizontalPodAutoscaler")[0]["spec"]["metrics"]
    assert f'"{metric["pods"]["metric"]["name"]}"' in Path(metrics.__file__).read_text()


def test_the_rewards_exist_and_the_settings_are_read(manifests) -> None:
    fields = {f"REWARDZOO_{name.upper()}" for name in ServeConfig.model_fields}
    for deployment in of(manifests, "Deployment"):
        found = container(deployment)
        assert found["args"]
        for name in found["args"]:
            resolve(name)
        assert {env["name"] for env in found["env"]} <= fields


def test_a_server_is_waited_for_probed_in_time_and_given_the_time_to_drain(manifests) -> None:
    for deployment in of(manifests, "Deployment"):
        found = container(deployment)
        # A loading server accepts and hangs: without a short limit a probe would never come back.
        assert found["startupProbe"]["timeoutSeconds"] == found["readinessProbe"]["timeoutSeconds"] == 1
        assert found["startupProbe"]["periodSeconds"] * found["startupProbe"]["failureThreshold"] >= 900
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert found[probe]["httpGet"]["path"] in ("/v2/health/ready", "/v2/health/live")
        timeout = next(float(e["value"]) for e in found["env"] if e["name"] == "REWARDZOO_TIMEOUT")
        grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= found["lifecycle"]["preStop"]["sleep"]["seconds"] + timeout


def test_pods_run_without_privileges_with_one_gpu_and_one_token(manifests) -> None:
    (monitor,) = of(manifests, "ServiceMonitor")
    credentials = monitor["spec"]["endpoints"][0]["authorization"]["credentials"]
    (claim,) = of(manifests, "PersistentVolumeClaim")
    for deployment in of(manifests, "Deployment"):
        pod, found = deployment["spec"]["template"]["spec"], container(deployment)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert found["securityContext"]["readOnlyRootFilesystem"] is True
        assert found["resources"]["limits"]["nvidia.com/gpu"] == "1"
        mounts = {m["name"]: m["mountPath"] for m in found["volumeMounts"]}
        secret = next(v["secret"] for v in pod["volumes"] if v["name"] == "token")
        assert secret["secretName"] == credentials["name"]
        assert secret["items"] == [{"key": credentials["key"], "path": "token"}]
        assert secret["defaultMode"] & 0o007 == 0
        variables = {e["name"]: e.get("value") for e in found["env"]}
        assert variables["REWARDZOO_TOKEN_FILE"] == f"{mounts['token']}/token"
        assert "REWARDZOO_TOKEN" not in variables
        assert {v["name"] for v in pod["volumes"]} == set(mounts)
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        # Where the image keeps its weights, and what else it writes to.
        dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
        assert f"HF_HOME={mounts['weights']}" in dockerfile
        assert f"BENTOML_HOME={mounts['tmp']}/" in dockerfile
    assert not [m for m in manifests if m["kind"] == "Secret"], "no token belongs into a repository"
