"""The flags that tritonserver is called with, without calling it; GPUs are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipt_triton.export.engines.metadata import EngineError, Gpu
from ipt_triton.export.serving import preflight, preflight_gpu
from ipt_triton.export.serving.flags import check_trace_url, server_flags

CHUNK = 16
PATCH = 64 * 48 * 48 * 2 + 256 * 576 * 2 + 64 * 48 * 48 * 2  # features, task embedding, body features, FP16
POOL = 8 * CHUNK * PATCH


def tensor(name: str, *dims: int) -> str:
    return f'output {{ name: "{name}" data_type: TYPE_FP16 dims: {list(dims)} }}'


MODELS = {
    "restore": f'backend: "python" parameters {{ key: "chunk" value {{ string_value: "{CHUNK}" }} }}',
    "head": "RUNTIME " + tensor("FEATURES", 64, 48, 48) + tensor("TASK_EMBEDDING", 256, 576),
    "body": "RUNTIME " + tensor("BODY_FEATURES", 64, 48, 48),
    "tail": "RUNTIME " + tensor("RESTORED", 3, 192, 192),
    "ipt_sr_x4": """platform: "ensemble" ensemble_scheduling {
step { model_name: "head" input_map { key: "IMAGE" value: "IMAGE" } output_map { key: "FEATURES" value: "F" }
       output_map { key: "TASK_EMBEDDING" value: "E" } }
step { model_name: "body" input_map { key: "FEATURES" value: "F" } input_map { key: "TASK_EMBEDDING" value: "E" }
       output_map { key: "BODY_FEATURES" value: "B" } }
step { model_name: "tail" input_map { key: "BODY_FEATURES" value: "B" } output_map { key: "RESTORED" value: "R" } }
}""",
}


def write_repository(folder: Path, runtime: str) -> Path:
    for name, config in MODELS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}" {config.replace("RUNTIME", runtime)}')
    (folder / "manifest.json").touch()
    return folder


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    seen = [Gpu("NVIDIA H200", "9.0"), Gpu("NVIDIA L4", "8.9")]
    monkeypatch.setattr(preflight_gpu, "find_gpus", lambda: seen)
    return seen


def pools(repository: Path, *extra: str) -> list[str]:
    """What the server is told about pools of GPU memory."""
    files = preflight.find_server()
    assert files is not None
    flags = server_flags(files, repository, "127.0.0.1", {}, "prefix", repository, extra)
    flag = "--cuda-memory-pool-byte-size="
    return [word.removeprefix(flag) for word in flags if word.startswith(flag)]


def test_each_gpu_gets_a_pool_that_holds_eight_chunks_between_the_parts(tmp_path: Path, gpus: list[Gpu]) -> None:
    repository = write_repository(tmp_path / "models", 'platform: "tensorrt_plan"')
    assert pools(repository) == [f"0:{POOL}", f"1:{POOL}"]


def test_a_pool_is_never_smaller_than_tritons_own(tmp_path: Path, gpus: list[Gpu]) -> None:
    repository = write_repository(tmp_path / "models", 'platform: "tensorrt_plan"')
    config = repository / "restore" / "config.pbtxt"
    config.write_text(config.read_text().replace(f'"{CHUNK}"', '"1"'))
    assert pools(repository) == ["0:67108864", "1:67108864"]


def test_a_pool_that_the_user_asks_for_stands_alone(tmp_path: Path, gpus: list[Gpu]) -> None:
    repository = write_repository(tmp_path / "models", 'platform: "tensorrt_plan"')
    assert pools(repository, "--cuda-memory-pool-byte-size=0:1") == ["0:1"]


def test_parts_in_the_python_backend_need_no_pool(tmp_path: Path, gpus: list[Gpu]) -> None:
    assert pools(write_repository(tmp_path / "models", 'backend: "python"')) == []


def test_without_a_gpu_there_is_no_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> list[Gpu]:
        raise EngineError("the driver shows none")

    monkeypatch.setattr(preflight_gpu, "find_gpus", no_gpu)
    assert pools(write_repository(tmp_path / "models", 'platform: "tensorrt_plan"')) == []


def test_old_connections_are_ended_and_callers_that_are_gone_noticed(tmp_path: Path) -> None:
    files = preflight.find_server()
    assert files is not None
    repository = write_repository(tmp_path / "models", 'backend: "python"')
    flags = server_flags(files, repository, "127.0.0.1", {}, "prefix", repository, ["--grpc-keepalive-time=1"])
    assert {"--grpc-max-connection-age=600000", "--grpc-http2-max-ping-strikes=0"} <= set(flags)
    assert flags.index("--grpc-keepalive-time=60000") < flags.index("--grpc-keepalive-time=1")  # the last one wins


def test_traces_go_to_the_collector_that_is_named_and_to_none_otherwise(tmp_path: Path) -> None:
    files = preflight.find_server()
    assert files is not None
    repository = write_repository(tmp_path / "models", 'backend: "python"')
    for url, settings in ((None, 0), ("http://collector:4318", 6)):
        flags = server_flags(files, repository, "127.0.0.1", {}, "prefix", repository, ["--last"], url)
        assert sum(flag.startswith("--trace-config=") for flag in flags) == settings and flags[-1] == "--last"
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in flags


@pytest.mark.parametrize("url", ["collector:4318", "https://collector:4318", "http://a,b=c", "http://a/v1/traces", ""])
def test_what_is_no_address_of_a_collector_is_refused(url: str) -> None:
    assert check_trace_url("http://127.0.0.1:4318") == check_trace_url(None) == []
    (problem,) = check_trace_url(url)
    assert repr(url) in problem and "give http://HOST:PORT" in problem
