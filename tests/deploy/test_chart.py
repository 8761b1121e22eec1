"""The Helm chart: what an installation makes fits Kubernetes, and says what the server and the gateway really do."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from helpers.chart import (
    GPU,
    INSTALLATIONS,
    ROOT,
    WATCHED,
    Object,
    containers_of,
    helm,
    named,
    of_kind,
    pod_of,
    quantity,
    render,
    server_of,
    tool,
    workloads,
)
from helpers.toy_repository import ROUTER_CONFIG, ROUTER_MODEL, no_ports, write_model

from ipt_triton.export.engines import build
from ipt_triton.export.serving.command import main as serve
from ipt_triton.service import MAX_INPUT_PIXELS, MAX_OUTPUT_PIXELS
from ipt_triton.tiling import count_patches

VERSIONS = ("1.30.0", kubernetes_validate.latest_version())
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}


@pytest.fixture(params=INSTALLATIONS, scope="module")
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return render(*INSTALLATIONS[request.param])


def labels_fit(selector: Object, labels: Object) -> bool:
    return selector.items() <= labels.items()


def test_helm_finds_nothing_to_complain_about() -> None:
    for flags in INSTALLATIONS.values():
        words = [tool("helm"), "lint", "--strict", str(ROOT / "deploy" / "helm" / "ipt-triton"), *flags]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_every_object_fits_the_oldest_kubernetes_that_the_chart_allows_and_the_newest(
    objects: tuple[Object, ...],
) -> None:
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "ipt-triton" / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={VERSIONS[0]}-0"
    for found in objects:
        for version in VERSIONS if found["kind"] not in CUSTOM else ():
            kubernetes_validate.validate(found, version, strict=True)


def test_selectors_find_their_pods_and_no_others(objects: tuple[Object, ...]) -> None:
    pods = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads(objects)}
    services = of_kind(objects, "Service")
    selectors = {
        (found["kind"], found["metadata"]["name"]): found["spec"]["selector"].get("matchLabels")
        for found in of_kind(objects, "Deployment", "PodDisruptionBudget")
    }
    selectors |= {("Service", found["metadata"]["name"]): found["spec"]["selector"] for found in services}
    selectors |= {
        (found["kind"], found["metadata"]["name"]): found["spec"]["podSelector"]["matchLabels"]
        for found in of_kind(objects, "NetworkPolicy")
    }
    for (kind, name), selector in selectors.items():
        found = [pod for pod, labels in pods.items() if labels_fit(selector, labels)]
        assert len(found) == 1 and found[0].startswith(name), (kind, name, found)
    for monitor in of_kind(objects, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (found for found in services if labels_fit(selector, found["metadata"]["labels"]))
        assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_every_port_that_is_named_is_one_of_a_container(objects: tuple[Object, ...]) -> None:
    for workload in of_kind(objects, "Deployment"):
        names = {port["name"] for container in containers_of(workload) for port in container.get("ports", ())}
        (service,) = (s for s in of_kind(objects, "Service") if s["metadata"]["name"] == workload["metadata"]["name"])
        wanted = {port["targetPort"] for port in service["spec"]["ports"]}
        for container in containers_of(workload):
            own = {port["name"] for port in container.get("ports", ())}
            if not own:
                assert container["name"] == "fetch"
                continue
            probes = [container[kind]["httpGet"]["port"] for kind in container if kind.endswith("Probe")]
            assert len(probes) == 3 and set(probes) <= own
        (policy,) = (
            p for p in of_kind(objects, "NetworkPolicy") if p["metadata"]["name"] == service["metadata"]["name"]
        )
        wanted |= {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert wanted <= names


def test_the_servers_flags_are_those_of_the_launcher(objects: tuple[Object, ...], tmp_path: Path) -> None:
    write_model(tmp_path / "models", "restore", ROUTER_CONFIG, ROUTER_MODEL)
    arguments = server_of(objects)["args"]
    assert serve([*arguments, "--check", f"--repository={tmp_path / 'models'}", *no_ports()]) == 0


def test_the_words_of_an_installation_reach_the_launcher_and_triton(tmp_path: Path) -> None:
    words = "--set=server.arguments={--grpc-port=9001},server.tritonArguments={--log-info=true}"
    assert server_of(render(*WATCHED, words))["args"][-3:] == ["--grpc-port=9001", "--", "--log-info=true"]


def test_the_gateways_flags_are_those_of_its_command(objects: tuple[Object, ...]) -> None:
    command = pytest.importorskip("ipt_triton.client.gateway.command", reason="this tree has no gateway")
    (gateway,) = pod_of(named(objects, "Deployment", "-gateway"))["containers"]
    options = command._parser().parse_args(gateway["args"])
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    assert (options.host, options.port) == ("0.0.0.0", ports["http"])
    mounts = {mount["mountPath"] for mount in gateway["volumeMounts"]}
    assert {str(options.folder.parent), str(options.keys.parent)} <= mounts


def test_a_server_gets_longer_to_end_than_the_largest_photograph_takes_and_than_it_asks_for() -> None:
    pod = pod_of(named(render(*WATCHED), "Deployment", "-server"))
    (container,) = pod["containers"]
    grace = grace_of(container)
    delay = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= delay + grace + 15

    side = math.isqrt(MAX_INPUT_PIXELS)
    record = json.loads((ROOT / "benchmarks" / "results" / "throughput-ipt-tiny.json").read_text())
    slowest = min(cell["patches_per_s"] for cell in record["figures"]["levels"]["restore"])
    assert grace > count_patches(side, side) / slowest


def grace_of(container: Object) -> float:
    (grace,) = (float(word.partition("=")[2]) for word in container["args"] if word.startswith("--grace="))
    return grace


def test_a_gateway_gets_longer_to_end_than_it_asks_for_and_waits_as_long_as_a_server(
    objects: tuple[Object, ...],
) -> None:
    pod = pod_of(named(objects, "Deployment", "-gateway"))
    (gateway,) = pod["containers"]
    delay = gateway["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= delay + grace_of(gateway) + 30
    assert grace_of(gateway) >= grace_of(server_of(objects))  # or a photograph that a server would answer finds nobody
    (balancer,) = pod["initContainers"]
    assert balancer["restartPolicy"] == "Always"  # a sidecar, which ends after the gateway


def test_nothing_has_rights_that_it_does_not_need(objects: tuple[Object, ...]) -> None:
    for workload in workloads(objects):
        pod = pod_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
        assert all(set(volume) - {"name"} <= SAFE_VOLUMES for volume in pod["volumes"])
        for container in containers_of(workload):
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
            assert not rights["privileged"] and rights["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


SAFE_VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}


def test_what_may_be_written_has_an_end(objects: tuple[Object, ...]) -> None:
    for workload in workloads(objects):
        volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
        for container in containers_of(workload):
            for mount in container["volumeMounts"]:
                volume = volumes[mount["name"]]
                assert mount.get("readOnly") or "persistentVolumeClaim" in volume or volume["emptyDir"]["sizeLimit"]


def test_shared_memory_holds_a_photograph_at_the_limits_and_fits_into_the_containers(
    objects: tuple[Object, ...],
) -> None:
    container = server_of(objects)
    (volume,) = (v for v in pod_of(named(objects, "Deployment", "-server"))["volumes"] if v["name"] == "shared-memory")
    assert {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == volume["name"]} == {
        "/dev/shm"
    }
    assert volume["emptyDir"]["medium"] == "Memory"
    size = quantity(volume["emptyDir"]["sizeLimit"])
    assert size >= 6 * (MAX_INPUT_PIXELS + MAX_OUTPUT_PIXELS)
    assert size <= quantity(container["resources"]["limits"]["memory"]) / 2
    assert container["volumeMounts"][0] == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_only_the_gateway_reaches_the_servers_grpc_and_nobody_tritons_other_ports(objects: tuple[Object, ...]) -> None:
    policy = named(objects, "NetworkPolicy", "-server")["spec"]
    gateway = named(objects, "Deployment", "-gateway")["spec"]["selector"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    for rule in policy["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= {"grpc", "health"}
        assert rule["from"]
        if "grpc" in {port["port"] for port in rule["ports"]}:
            assert rule["from"] == [{"podSelector": gateway}]
    assert {port["containerPort"] for port in server_of(objects)["ports"]} == {8001, 8003}
    for service in of_kind(objects, "Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert named(objects, "Service", "-server")["spec"]["clusterIP"] == "None"


def test_a_server_calls_nobody_unless_it_fetches_its_repository() -> None:
    assert named(render(*INSTALLATIONS["gpu"]), "NetworkPolicy", "-server")["spec"]["egress"] == []
    fetching = named(render(*INSTALLATIONS["bucket"]), "NetworkPolicy", "-server")["spec"]["egress"]
    assert {port["port"] for rule in fetching for port in rule["ports"]} == {53, 443}


def test_traces_go_from_both_to_the_collector_and_neither_sends_any_unless_told() -> None:
    objects = render(*INSTALLATIONS["traced"], "--set=traces.share=0.25")
    assert "--trace-url=http://collector.monitoring:4318" in server_of(objects)["args"]
    (gateway,) = pod_of(named(objects, "Deployment", "-gateway"))["containers"]
    assert {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
    }.items() <= {variable["name"]: variable["value"] for variable in gateway["env"]}.items()
    for name in ("-server", "-gateway"):
        *_, rule = named(objects, "NetworkPolicy", name)["spec"]["egress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": 4318}]
        assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    plain = render(*INSTALLATIONS["cpu"])
    assert "trace" not in str(server_of(plain)) and "OTEL" not in str(plain)
    unnumbered = render(*WATCHED, "--set=traces.url=http://collector")
    assert named(unnumbered, "NetworkPolicy", "-server")["spec"]["egress"][-1]["ports"][0]["port"] == 80


def test_a_bucket_is_fetched_before_the_server_and_written_after_a_build() -> None:
    objects = render(*INSTALLATIONS["bucket"])
    (fetch,) = pod_of(named(objects, "Deployment", "-server"))["initContainers"]
    assert fetch["args"][-2:] == ["s3:bucket/models", "/models"]
    (job,) = of_kind(objects, "Job")
    assert [container["name"] for container in containers_of(job)] == ["fetch", "build", "publish"]
    (publish,) = pod_of(job)["containers"]
    assert publish["args"][-2:] == ["/models", "s3:bucket/models"]
    assert not of_kind(objects, "PersistentVolumeClaim")


def test_engines_are_built_by_a_job_on_each_kind_of_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    two = '--set-json=engines.gpus=[{"name":"a","nodeSelector":{"g":"A"}},{"name":"b","nodeSelector":{"g":"B"}}]'
    jobs = of_kind(render(*INSTALLATIONS["gpu"], two), "Job")
    assert [pod_of(job)["nodeSelector"] for job in jobs] == [{"g": "A"}, {"g": "B"}]
    with pytest.raises(SystemExit):
        build.main(["--help"])
    help_text = capsys.readouterr().out
    for job in jobs:
        (container,) = containers_of(job)
        assert container["command"][:3] == ["python3", "-m", build.__name__]
        assert container["command"][3] in help_text
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    renewed = of_kind(render(*INSTALLATIONS["gpu"], two, "--set=engines.image.tag=26.08"), "Job")
    assert not {job["metadata"]["name"] for job in jobs} & {job["metadata"]["name"] for job in renewed}


def test_servers_on_gpus_build_nothing_and_get_one_gpu_each() -> None:
    container = server_of(render(*INSTALLATIONS["gpu"]))
    assert "--no-build" in container["args"] and container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "--no-build" not in server_of(render(*INSTALLATIONS["cpu"]))["args"]


def test_images_are_those_that_compose_builds() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert server_of(render(*INSTALLATIONS["cpu"]))["image"] == services["cpu"]["image"]
    assert server_of(render(*INSTALLATIONS["gpu"]))["image"] == services["server"]["image"]
    (job,) = of_kind(render(*INSTALLATIONS["gpu"]), "Job")
    assert next(containers_of(job))["image"] == services["engines"]["image"]
    (gateway,) = pod_of(named(render(*INSTALLATIONS["cpu"]), "Deployment", "-gateway"))["containers"]
    assert gateway["image"] == services["gateway"]["image"]


def test_scaling_leaves_the_number_of_replicas_to_the_scaler_and_both_scalers_ask_the_same() -> None:
    keda, adapter = render(*INSTALLATIONS["cpu"]), render(*WATCHED, "--set=autoscaling.engine=adapter")
    scaled = named(keda, "ScaledObject", "-server")["spec"]
    scaler = named(adapter, "HorizontalPodAutoscaler", "-server")["spec"]
    for objects in (keda, adapter):
        assert "replicas" not in named(objects, "Deployment", "-server")["spec"]
    assert scaled["scaleTargetRef"]["name"] == scaler["scaleTargetRef"]["name"] == "ipt-ipt-triton-server"
    (rule,) = yaml.safe_load(named(adapter, "ConfigMap", "-adapter-rule")["data"]["external.yaml"])
    (trigger,), (metric,) = scaled["triggers"], scaler["metrics"]
    assert rule["metricsQuery"].strip() == trigger["metadata"]["query"].strip()
    assert rule["name"]["as"] == metric["external"]["metric"]["name"]
    assert trigger["metadata"]["threshold"] == metric["external"]["target"]["averageValue"]
    assert trigger["metricType"] == metric["external"]["target"]["type"] == "AverageValue"
    off = render("--set=gateway.keysSecret=keys")
    assert named(off, "Deployment", "-server")["spec"]["replicas"] == 2
    assert not of_kind(off, "ScaledObject", "HorizontalPodAutoscaler")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "gateway.keysSecret: name a Secret"),
        (
            ("--set=gateway.keysSecret=k,gateway.jobs.persistent=true,gateway.replicas=2",),
            "gateway.replicas: a gateway",
        ),
        (("--set=gateway.keysSecret=k,repository.kind=objectStorage",), "repository.objectStorage.source: say where"),
        (("--set=gateway.keysSecret=k,server.replica=3",), "'replica' not allowed"),
        (("--set=gateway.keysSecret=k,server.image.tag=latest",), "/server/image/tag"),
        (("--set=gateway.keysSecret=k,server.stop.graceSeconds=0",), "/server/stop/graceSeconds"),
        (("--set=gateway.keysSecret=k,traces.url=https://collector:4318",), "/traces/url"),
        (("--set=gateway.keysSecret=k,traces.url=http://collector:4318/v1/traces",), "/traces/url"),
        (("--set=gateway.keysSecret=k,traces.share=1.5",), "/traces/share"),
        (("--set=gateway.keysSecret=k,autoscaling.engine=cron",), "/autoscaling/engine"),
        (("--set=gateway.keysSecret=k", "--set-json=networkPolicy.collector=[]"), "/networkPolicy/collector"),
    ],
)
def test_values_that_cannot_work_are_refused_with_their_name(flags: tuple[str, ...], message: str) -> None:
    result = helm(*flags)
    assert result.returncode != 0 and message in result.stderr


def test_without_a_gateway_nothing_speaks_of_one() -> None:
    objects = render("--set=gateway.enabled=false,monitoring.serviceMonitors=true")
    assert not [found for found in objects if found["metadata"]["name"].endswith(("gateway", "balancer"))]


def test_persistent_jobs_have_one_gateway_at_a_time() -> None:
    objects = render("--set=gateway.keysSecret=k,gateway.jobs.persistent=true")
    spec = named(objects, "Deployment", "-gateway")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (volume,) = (v for v in pod_of({"spec": spec})["volumes"] if v["name"] == "jobs")
    claim = named(objects, "PersistentVolumeClaim", "-jobs")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    budgets = [found["metadata"]["name"] for found in of_kind(objects, "PodDisruptionBudget")]
    assert budgets == ["ipt-ipt-triton-server"]  # one for a single gateway would keep its node from being emptied


def test_names_of_a_release_fit_and_differ() -> None:
    assert GPU  # both kinds of values are rendered above
    command = [tool("helm"), "template", "x" * 53, str(ROOT / "deploy" / "helm" / "ipt-triton"), *INSTALLATIONS["gpu"]]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [found["metadata"]["name"] for found in yaml.safe_load_all(text) if found]
    assert all(len(name) <= 63 for name in names)
