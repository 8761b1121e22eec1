"""Dockerfile and compose.yaml by simple rules, and the files that the images get; no image is built here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One FROM of a Dockerfile and what follows it, as (instruction, arguments)."""

    image: str
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return [text for kind, text in self.lines if kind == instruction][-1]

    def copied(self) -> list[Path]:
        """Files of the project that COPY takes, relative to its root."""
        patterns = [word for kind, text in self.lines if kind == "COPY" for word in text.split()[:-1]]
        for pattern in patterns:
            assert list(ROOT.glob(pattern)), f"COPY {pattern}: there is no such file"
        return sorted({path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)})

    def copies(self) -> list[tuple[Path, str]]:
        """Files of the project that COPY takes, and the folders in the image that they go to."""
        commands = [text.split() for kind, text in self.lines if kind == "COPY"]
        return [(path, words[-1]) for words in commands for word in words[:-1] for path in ROOT.glob(word)]


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("FROM "):
            image, name = re.fullmatch(r"FROM (\S+) AS (\S+)", line).groups()  # type: ignore[union-attr]
            stages.append(Stage(image, name))
        elif line:
            instruction, _, arguments = line.partition(" ")
            stages[-1].lines.append((instruction, arguments))
    return {stage.name: stage for stage in stages}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return read_stages()


def test_images_are_pinned_and_the_engines_are_built_by_the_release_that_serves_them(stages: dict[str, Stage]) -> None:
    releases = {}
    for name, stage in stages.items():
        tag = stage.image.rpartition(":")[2]
        assert re.match(r"\d+\.\d+", tag), f"{name}: {stage.image} is not pinned"
        if stage.image.startswith("nvcr.io/"):
            releases[name] = tuple(int(number) for number in tag.split("-")[0].split("."))
    assert releases["server"] == releases["engines"] >= (26, 7)
    assert list(stages)[-1] == "server"  # what a plain `docker build` makes


def test_no_image_runs_as_root_or_fetches_unpinned_servers(stages: dict[str, Stage]) -> None:
    for stage in stages.values():
        user = stage.last("USER")
        assert user.split(":")[0] not in ("root", "0")
        assert [kind for kind, _ in stage.lines].index("USER") < [kind for kind, _ in stage.lines].index("ENTRYPOINT")
        for _, command in (line for line in stage.lines if line[0] == "RUN"):
            assert "--no-cache-dir" in command
            for package in ("pycuda", "nvidia-pytriton", "openvino", "tritonclient[grpc]"):
                assert package not in command or f"{package}==" in command
        assert not [kind for kind, _ in stage.lines if kind == "ADD"]


def test_pycuda_is_one_that_compiles_against_cuda_13_here_and_in_the_image(stages: dict[str, Stage]) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (bound,) = re.findall(r'"pycuda>=([\d.]+)"', project)
    (pin,) = re.findall(r"pycuda==([\d.]+)", stages["engines"].last("RUN"))
    assert bound == pin
    assert tuple(map(int, pin.split("."))) >= (2026, 1)  # cuCtxCreate_v4


def test_the_server_stage_leaves_the_pool_of_gpu_memory_to_the_launcher(stages: dict[str, Stage]) -> None:
    assert "CMD" not in dict(stages["server"].lines)


COMMAND = re.compile(r"docker compose run --rm [^']*?engines")


@pytest.mark.parametrize("name", ["Makefile", "compose.yaml", "docs/tensorrt.md"])
def test_engines_that_a_container_builds_belong_to_who_asked_for_them(tmp_path: Path, name: str) -> None:
    (command,) = COMMAND.findall((ROOT / name).read_text())
    (tmp_path / "docker").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "docker").chmod(0o755)
    if name != "compose.yaml":  # what make hands on to the shell
        make = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), "engines", f"BUILD_ENGINES={command}"]
        recipe = subprocess.run(make, capture_output=True, text=True, check=True).stdout
        (command,) = [line for line in recipe.splitlines() if "docker" in line]
    # As bash runs it: it sets UID and does not export it, so that docker compose never sees it.
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True).stdout
    assert words.split()[:6] == ["compose", "run", "--rm", "--user", f"{os.getuid()}:{os.getgid()}", "engines"]


def test_compose_asks_for_no_variable_but_those_that_it_documents() -> None:
    lines = (ROOT / "compose.yaml").read_text().splitlines()
    settings = "\n".join(line for line in lines if not line.startswith("#"))
    assert set(re.findall(r"\$\{?(\w+)", settings)) == {"MODELS", "SERVER", "TRACES"}


@pytest.mark.parametrize("collector", ["", "http://collector:4318"])
def test_compose_tells_servers_and_gateway_of_one_collector_of_traces_or_of_none(collector: str) -> None:
    text = (ROOT / "compose.yaml").read_text().replace("${TRACES:-}", collector)
    services = pytest.importorskip("yaml").safe_load(text)["services"]
    for name in ("server", "cpu"):
        assert services[name]["command"] == [f"--trace-url={collector}"]
    assert (services["gateway"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] or "") == collector
    for package in ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk"):
        assert f"{package}==" in read_stages()["gateway"].last("RUN")


MODULES = {
    "server": "ipt_triton.export.serving.command",
    "cpu": "ipt_triton.export.serving.command",
    "engines": "ipt_triton.export.engines.build",
    "gateway": "ipt_triton.client.gateway.command",
}


@pytest.mark.parametrize("name", MODULES)
def test_the_files_of_an_image_are_all_that_its_command_imports(
    stages: dict[str, Stage], tmp_path: Path, name: str
) -> None:
    stage = stages[name]
    for path, folder in stage.copies():
        target = tmp_path / Path(folder).relative_to("/opt/ipt")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    module = MODULES[name]
    code = f"""
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.argv = ["command", "--help"]
runpy.run_module({module!r}, run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout[:6]) == (0, "usage:"), result.stderr
    assert module in stage.last("ENTRYPOINT")
    assert ("HEALTHCHECK" in dict(stage.lines)) == (name != "engines")


def test_the_build_context_holds_what_is_copied_and_little_else(stages: dict[str, Stage]) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*" and all(line.startswith("!") for line in lines[1:])
    sent = {path.relative_to(ROOT) for line in lines[1:] for path in ROOT.glob(line[1:])}
    copied = {path for stage in stages.values() for path in stage.copied()}
    assert copied <= sent
    assert sent - copied == set()


def test_compose_publishes_on_loopback_alone_and_gives_gpus_to_those_that_need_them(stages: dict[str, Stage]) -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {service["build"]["target"] for service in services.values()} == set(stages)
    for name, service in services.items():
        for port in service.get("ports", ()):
            host, published, target = port.split(":")
            assert host == "127.0.0.1" and published == target
            assert target in stages[name].last("EXPOSE").split()
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        has_gpu = "deploy" in service
        assert has_gpu == (name not in ("cpu", "gateway"))
    assert services["cpu"]["profiles"] == ["cpu"] and "profiles" not in services["server"]
    for name in ("server", "cpu"):
        (volume,) = services[name]["volumes"]
        assert volume.endswith(":/models:ro") and '"/models"' in stages[name].last("ENTRYPOINT")
