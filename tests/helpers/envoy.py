"""A real Envoy on loopback, from the configuration of `deploy/proxy`."""

from __future__ import annotations

import copy
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from helpers.chart import ROOT, tool
from helpers.nginx import free_port
from helpers.serve import until

CONFIGURATION = ROOT / "deploy" / "proxy" / "envoy.yaml"
CERTIFICATE = CONFIGURATION.with_name("envoy-certificate.yaml")
KEYS = CONFIGURATION.with_name("envoy-keys.yaml")
FOLDER = "/etc/envoy/ipt"
KEY = "a-key-of-a-caller-as-long-as-secrets-makes-it"

Places = Sequence[tuple[int, int]]
"""Ports of servers, and of their health."""


def configuration(folder: Path) -> Any:
    """Ours, with its certificate and its keys below a folder."""
    for file in (CERTIFICATE, KEYS):
        (folder / file.name).write_text(file.read_text().replace(FOLDER, str(folder)))
    return yaml.safe_load(CONFIGURATION.read_text().replace(FOLDER, str(folder)))


def ask(config: Any, name: str, endpoints: Places) -> None:
    """Put ports of loopback, and of their health, in place of a cluster's endpoints."""
    (cluster,) = (cluster for cluster in config["static_resources"]["clusters"] if cluster["name"] == name)
    entries = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    pattern = entries[0]
    entries.clear()
    for port, health in endpoints:
        entry = copy.deepcopy(pattern)
        entry["endpoint"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
        entry["endpoint"]["health_check_config"] = {"port_value": health}
        entries.append(entry)


def let_in(folder: Path, *keys: str) -> None:
    """Give gRPC's callers these keys, and no other ones."""
    file = yaml.safe_load(KEYS.read_text())
    (resource,) = file["resources"]
    resource["typed_config"]["rules"]["policies"] = {
        f"caller {number}": {
            "permissions": [{"any": True}],
            "principals": [{"header": {"name": "authorization", "string_match": {"exact": f"Bearer {key}"}}}],
        }
        for number, key in enumerate(keys)
    }
    move_keys(folder, yaml.safe_dump(file))


def move_keys(folder: Path, text: str) -> None:
    """Move a file with this text over the one of keys."""
    (folder / "new-keys.yaml").write_text(text)
    (folder / "new-keys.yaml").rename(folder / KEYS.name)


def validate(folder: Path, config: Any) -> str:
    """What Envoy says of a configuration that it takes."""
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    words = [tool("envoy"), "--mode", "validate", "--config-path", str(folder / "envoy.yaml")]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


@contextmanager
def envoy(folder: Path, config: Any) -> Iterator[int]:
    """Runs while the block does, at a port of its own, which it yields."""
    port = free_port()
    config["static_resources"]["listeners"][0]["address"]["socket_address"] = {
        "address": "127.0.0.1",
        "port_value": port,
    }
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    log = folder / "envoy.log"
    words = [
        tool("envoy"),
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "-l",
        "info",
        "-c",
        str(folder / "envoy.yaml"),
    ]
    with log.open("wb") as written, subprocess.Popen(words, stdout=written, stderr=written) as process:
        try:
            deadline = time.monotonic() + 30
            while "all dependencies initialized" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield port
        finally:
            process.kill()


@contextmanager
def running_envoy(folder: Path, servers: Places, gateways: Places = ()) -> Iterator[int]:
    """Our Envoy with one key, and shorter times; its port, once all are known as healthy."""
    config = configuration(folder)
    ask(config, "servers", servers)
    ask(config, "gateways", gateways)
    cluster = config["static_resources"]["clusters"][0]
    cluster["health_checks"][0] |= {
        "timeout": "4s",
        "interval": "0.2s",
        "no_traffic_interval": "0.2s",
    }  # late is not lost
    (protocol,) = cluster["typed_extension_protocol_options"].values()
    pings = {"interval": "0.5s", "timeout": "4s"}
    protocol["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"] = pings
    let_in(folder, KEY)
    admin = free_port()
    config["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}}
    with envoy(folder, config) as port:
        wanted = len(servers) + len(gateways)  # Envoy itself begins when the first one is
        until(lambda: _healthy(admin) == wanted, 30, "healthy servers")
        yield port


def _healthy(admin: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=10) as answer:
        return answer.read().count(b"::health_flags::healthy")
