"""The balancer beside the gateway: Envoy takes its configuration, and photographs find servers that can take them."""

from __future__ import annotations

import copy
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.chart import INSTALLATIONS, Object, named, pod_of, render, tool
from helpers.serve import Command, until

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.serving.router import TASKS, null_server
from ipt_triton.export.serving.preflight import free_ports

PHOTOGRAPHS = 40


def configuration() -> Object:
    return yaml.safe_load(named(render(*INSTALLATIONS["cpu"]), "ConfigMap", "-balancer")["data"]["envoy.yaml"])


def test_the_balancers_configuration_is_one_that_envoy_takes_and_leads_to_the_servers(tmp_path: Path) -> None:
    objects = render(*INSTALLATIONS["cpu"])
    config = configuration()
    (cluster,) = config["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = named(objects, "Service", "-server")
    assert address["address"] == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert (address["port_value"], endpoint["endpoint"]["health_check_config"]["port_value"]) == (
        ports["grpc"],
        ports["health"],
    )
    (gateway,) = pod_of(named(objects, "Deployment", "-gateway"))["containers"]
    listener = config["static_resources"]["listeners"][0]["address"]["socket_address"]
    assert f"--url={listener['address']}:{listener['port_value']}" in gateway["args"]
    assert "admin" not in config
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(config))
    words = [tool("envoy"), "--mode", "validate", "--config-path", str(tmp_path / "envoy.yaml")]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "eprecated" not in result.stderr, result.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the real router, whose network only repeats pixels."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    with null_server([TASKS[2]], chunk=8) as server:
        return Path(shutil.copytree(server.repository, folder))


@pytest.fixture
def servers(repository: Path, tmp_path: Path) -> Iterator[list[Command]]:
    commands = []
    for name in ("one", "two"):
        shutil.copytree(repository, tmp_path / name / "models")
        commands.append(Command(tmp_path / name / "models"))
    yield commands
    for command in commands:
        command.process.kill()
        command.process.wait()


@pytest.fixture
def balancer(servers: list[Command], tmp_path: Path) -> Iterator[str]:
    """Envoy with the chart's configuration, its ports and the servers' addresses apart; returns its address."""
    config = configuration()
    grpc, ready = free_ports("127.0.0.1", 2, ())
    for listener, port in zip(config["static_resources"]["listeners"], (grpc, ready), strict=True):
        listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": port}
    endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    pattern = endpoints.pop()
    for server in servers:
        server.ready()
        entry = copy.deepcopy(pattern)
        address = {"address": "127.0.0.1", "port_value": int(server.address("grpc").rpartition(":")[2])}
        entry["endpoint"]["address"]["socket_address"] = address
        health = server.address("health").removesuffix("/readyz").rpartition(":")[2]
        entry["endpoint"]["health_check_config"]["port_value"] = int(health)
        endpoints.append(entry)
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(config))
    words = [tool("envoy"), "--disable-hot-restart", "--config-path", str(tmp_path / "envoy.yaml"), "-l", "warning"]
    with (tmp_path / "envoy.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    yield f"127.0.0.1:{grpc}"
    process.terminate()
    process.wait()


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_every_photograph_comes_back_right_while_one_of_two_servers_ends(
    servers: list[Command], balancer: str, number: signal.Signals
) -> None:
    pictures = [np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8) for i in range(PHOTOGRAPHS)]
    with RestorationClient(balancer, timeout=60) as balanced, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(balanced.restore, picture, TASKS[2].name) for picture in pictures]
        until(lambda: sum(answer.done() for answer in answers) > 4, 30, "the first photographs")
        servers[0].process.send_signal(number)
        for picture, answer in zip(pictures, answers, strict=True):
            np.testing.assert_array_equal(answer.result(), picture.repeat(2, 0).repeat(2, 1))
