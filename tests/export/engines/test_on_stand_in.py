"""Building and running engines on a stand-in for a GPU: the real PyCUDA, CUDA graphs, NVIDIA's parser and builder.

What engines compute is ONNX Runtime's, so what is shown is the order of calls, memory, contexts, graphs and errors.
Each test is a process of its own (`stand_in/scenes.py`), which tells what it saw.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in.machine import BUILDER, CAPABILITY, BuiltEngines, StandIn

from ipt_triton.export.engines.files import write_plan
from ipt_triton.export.engines.metadata import plan_path, read_metadata

pytestmark = pytest.mark.slow

NEXT_TENSORRT = "11.4.0.106"
LIVING = ("contexts", "device_bytes", "host_bytes", "streams", "events", "graphs", "executables")
"""Counters that are zero when nothing is left."""


@pytest.fixture
def plan(built: BuiltEngines) -> Path:
    """The engine of a tail, which is quick."""
    return built.plan("tail_sr_x2")


@pytest.fixture
def own_plan(plan: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    for path in (plan, plan.with_name(plan.name + ".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / plan.name


# --- building ---------------------------------------------------------------------------------------------------------


def test_every_part_is_built_and_agrees_with_pytorch_at_every_boundary_batch(built: BuiltEngines) -> None:
    assert [entry["part"] for entry in built.descriptions] == [part.name for part in built.parts.manifest.parts]
    for entry in built.descriptions:
        assert (entry["library"], entry["version"], entry["precision"]) == ("tensorrt", "10.13.3.9", "fp16")
        assert (entry["gpu"], entry["compute_capability"], entry["ran"]) == ("stand-in GPU", CAPABILITY, True)
        assert [parity["tiles"] for parity in entry["parity"]] == [1, 8, 16]
        assert min(parity["psnr"] for parity in entry["parity"]) > 60
        assert entry["evidence"] == "inspector" and entry["layers"]["fp16"] > 0
        assert read_metadata(built.plan(entry["part"])).plan_sha256 == entry["plan_sha256"]
    assert "Traceback" not in built.build.stderr and "WARNING" not in built.build.stderr


def test_a_second_build_keeps_what_is_there_and_makes_what_is_missing(
    built: BuiltEngines, stand_in: StandIn, tmp_path: Path
) -> None:
    folder, times = tmp_path / "engines", tmp_path / "timing.cache"
    shutil.copytree(built.folder, folder)
    missing = folder / built.plan("tail_derain").name
    missing.unlink()
    options = ("--output", folder, "--opt-batch", 8, "--timing-cache", times)
    done = stand_in.run(BUILDER, built.parts.folder, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("up to date") == len(built.parts.manifest.parts) - 1
    assert missing.is_file() and times.stat().st_size > 0


def test_a_plan_that_is_refused_is_built_again(built: BuiltEngines, stand_in: StandIn, tmp_path: Path) -> None:
    plan = Path(shutil.copytree(built.folder, tmp_path / "engines")) / built.plan("tail_derain").name
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.write_bytes(content)
    assert "build the engine again" in stand_in.play("opens", plan)
    arguments = (built.parts.folder, "--output", plan.parent, "--opt-batch", 8, "--only", "tail_derain")
    assert stand_in.run(BUILDER, *arguments).returncode == 0
    assert stand_in.play("opens", plan) == ""


def test_the_inspector_of_the_next_tensorrt_is_understood(
    built: BuiltEngines, stand_in: StandIn, tmp_path: Path
) -> None:
    arguments = (built.parts.folder, "--output", tmp_path, "--json", "--only", "body", "tail_derain")
    done = stand_in.run(BUILDER, *arguments, STAND_IN_TENSORRT=NEXT_TENSORRT)
    assert done.returncode == 0, done.stderr
    before = {entry["part"]: entry for entry in built.descriptions}
    for entry in json.loads(done.stdout):
        assert entry["version"] == NEXT_TENSORRT
        assert (entry["layers"], entry["evidence"]) == (before[entry["part"]]["layers"], "inspector")


def test_tensorrt_for_rtx_runs_the_plan_for_the_gpu_at_hand_and_builds_others_beside_it(
    built: BuiltEngines, stand_in: StandIn, tmp_path: Path
) -> None:
    arguments = ("--output", tmp_path, "--library", "tensorrt-rtx", "--only", "tail_sr_x2", "--json")
    done = stand_in.run(BUILDER, built.parts.folder, *arguments, "--compute-capability", CAPABILITY, "12.0")
    assert done.returncode == 0, done.stderr
    here, elsewhere = json.loads(done.stdout)
    assert (here["library"], here["compute_capability"], here["ran"]) == ("tensorrt-rtx", CAPABILITY, True)
    assert (elsewhere["compute_capability"], elsewhere["ran"], elsewhere["parity"]) == ("12.0", False, [])
    assert [parity["tiles"] for parity in here["parity"]] == [1, 16]
    # What was compiled for one runner is there for the next.
    plan = plan_path(tmp_path / "tail_sr_x2", CAPABILITY)
    plan.with_suffix(".kernels").unlink(missing_ok=True)
    seen = stand_in.play("kernels", plan)
    assert seen["found"] == [0, 2] and not any(seen["errors"])
    assert {name: seen["counts"][name] for name in LIVING} == dict.fromkeys(LIVING, 0)


def test_a_gpu_with_too_little_memory_is_one_sentence_and_leaves_no_plan(
    built: BuiltEngines, stand_in: StandIn, tmp_path: Path
) -> None:
    folder = tmp_path / "engines"
    arguments = (built.parts.folder, "--output", folder, "--only", "tail_sr_x2")
    done = stand_in.run(BUILDER, *arguments, STAND_IN_MEMORY="100000")
    assert done.returncode == 1
    assert "the GPU has not enough free memory to run tail_sr_x2" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not list(folder.glob("*.plan*"))


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["body", "tail_sr_x2"])
def test_batches_that_change_are_right_and_come_from_a_graph_the_second_time(
    built: BuiltEngines, stand_in: StandIn, part: str
) -> None:
    seen = stand_in.play("changing_batches", built.plan(part))
    assert [(step["batch"], step["replays"]) for step in seen["steps"]] == [
        (1, 0),
        (3, 0),
        (2, 0),
        (3, 1),
        (9, 0),
        (9, 0),
        (1, 1),
        (3, 1),
    ]
    assert all(step["error"] == 0 for step in seen["steps"])
    assert seen["graph_error"] == "" and seen["depth"] == seen["counts"]["contexts"] == 0
    # Captured graphs are let go of, and a capture runs nothing.
    assert (seen["counts"]["graphs"], seen["counts"]["executables"], seen["counts"]["engine_runs"]) == (0, 3, 8)


def test_hundreds_of_runs_take_no_more_memory_and_all_replay(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("many_runs", plan, 300)
    before, after = seen["before"], seen["after"]
    assert {name: after[name] - before[name] for name in LIVING} == dict.fromkeys(LIVING, 0)
    assert (after["launches"] - before["launches"], after["engine_runs"] - before["engine_runs"]) == (300, 300)
    assert seen["held"] == 3  # the work of three graphs


def test_runners_that_come_and_go_leave_nothing(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("open_and_close", plan, 20)
    assert seen["held"] == 0
    for counts in (seen["first"], seen["last"]):
        assert {name: counts[name] for name in LIVING} == dict.fromkeys(LIVING, 0)


def test_a_closed_runner_holds_nothing_even_while_it_is_kept(plan: Path, stand_in: StandIn) -> None:
    counts = stand_in.play("closed_and_kept", plan)["counts"]
    assert {name: counts[name] for name in LIVING} == dict.fromkeys(LIVING, 0)


def test_threads_with_a_runner_each_are_right_and_leave_nothing(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("threads", plan, 3)
    assert seen["threads"] == [{"error": 0, "depth": 0, "graph_error": ""}] * 3
    assert {name: seen["counts"][name] for name in LIVING} == dict.fromkeys(LIVING, 0)


def test_a_runner_may_be_opened_used_and_closed_by_different_threads(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("handed_over", plan)
    assert seen["error"] == 0
    assert {name: seen["counts"][name] for name in LIVING} == dict.fromkeys(LIVING, 0)


def test_a_runner_without_graphs_queues_each_run(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("without_graphs", plan)
    assert not any(seen["errors"]) and seen["graph_error"] == "not asked for"
    assert (seen["counts"]["launches"], seen["counts"]["executables"], seen["counts"]["contexts"]) == (0, 0, 0)


@pytest.mark.parametrize("thread", ["first", "other"])
def test_device_times_are_positive_and_change_no_result(plan: Path, stand_in: StandIn, thread: str) -> None:
    seen = stand_in.play("device_seconds", plan, thread, 2, 5)
    assert [len(seconds) for seconds in seen["seconds"]] == [5, 5]
    assert all(0 < value < 60 for seconds in seen["seconds"] for value in seconds)
    assert not any(seen["errors"]) and (seen["graph_error"], seen["depth"]) == ("", 0)
    assert {name: seen["counts"][name] for name in LIVING} == dict.fromkeys(LIVING, 0)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_wrong_inputs_are_refused_and_the_next_ones_served(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("wrong_batches", plan)
    none, many, shape = seen["messages"]
    assert none.startswith("InputError: a batch of 0 is outside the engine's profile, 1 to 16")
    assert many.startswith("InputError: a batch of 17 is outside the engine's profile, 1 to 16")
    assert shape.startswith("InputError: BODY_FEATURES has shape [1, 2]; the engine takes [n, 8, 48, 48]")
    assert seen["error"] == 0 and seen["counts"]["contexts"] == 0


@pytest.mark.parametrize("thread", ["first", "other"])
def test_too_little_memory_is_a_sentence_and_gives_back_what_there_was(
    plan: Path, stand_in: StandIn, thread: str
) -> None:
    seen = stand_in.play("out_of_memory", plan, thread)
    places = ("could not load the plan", "not enough free memory to run", "not enough free memory for the buffers")
    for place, message in zip((*places, *places[-1:] * 3), seen["messages"], strict=True):
        assert message.startswith("EngineError: ") and place in message
    assert seen["failed"] == seen["free"] and seen["error"] == 0


def test_an_engine_that_is_not_queued_is_a_sentence_and_the_runner_goes_on(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("refused_enqueue", plan)
    assert seen["messages"] == [f"EngineError: TensorRT could not run tail_sr_x2 at batch {batch}" for batch in (2, 1)]
    assert not any(seen["errors"]) and seen["graph_error"] == "" and seen["counts"]["contexts"] == 0


def test_a_gpu_that_fails_amid_work_is_named_by_every_call_from_then_on(plan: Path, stand_in: StandIn) -> None:
    seen = stand_in.play("failing_kernel", plan)
    assert all(re.match(r"EngineError: .*(719|unspecified launch failure)", message) for message in seen["messages"])
    assert seen["contexts"] == 0


@pytest.mark.parametrize("fault", ["capture", "silent capture"])
def test_a_runner_whose_engine_cannot_be_captured_says_why_and_keeps_its_other_graphs(
    plan: Path, stand_in: StandIn, fault: str
) -> None:
    seen = stand_in.play("work_that_cannot_be_captured", plan, fault)
    assert seen["failed"] == "" and not any(seen["errors"])
    assert re.match(r"batch 3: .*901", seen["graph_error"])
    assert seen["captured"] == [1, 2] and seen["after"]["launches"] - seen["before"]["launches"] == 2
    for name in LIVING:
        assert seen["after"][name] == seen["before"][name]


def test_a_plan_of_another_tensorrt_is_refused(own_plan: Path, stand_in: StandIn) -> None:
    message = stand_in.play("opens", own_plan, STAND_IN_TENSORRT=NEXT_TENSORRT)
    assert message.startswith(
        "PlanMismatch: the plan of tail_sr_x2 was built by tensorrt 10.13.3.9 and this is 11.4.0.106"
    )
    # A description that claims to fit does not help: TensorRT itself refuses the plan.
    write_plan(own_plan, own_plan.read_bytes(), replace(read_metadata(own_plan), version=NEXT_TENSORRT))
    message = stand_in.play("opens", own_plan, STAND_IN_TENSORRT=NEXT_TENSORRT)
    assert message.startswith("EngineError: TensorRT 11.4.0.106 could not load the plan of tail_sr_x2")


def test_a_plan_of_another_gpu_is_refused(own_plan: Path, stand_in: StandIn) -> None:
    message = stand_in.play("opens", own_plan, STAND_IN_CAPABILITY="8.6")
    assert message.startswith("PlanMismatch: ")
    assert "has plans for compute capability 8.9 and this GPU, stand-in GPU, has 8.6" in message
    other = plan_path(own_plan.with_name("tail_sr_x2"), "8.6")
    own_plan.rename(other)
    write_plan(other, other.read_bytes(), read_metadata(own_plan))
    message = stand_in.play("opens", other, STAND_IN_CAPABILITY="8.6")
    assert message.startswith(
        "PlanMismatch: the plan of tail_sr_x2 was built for compute capability 8.9 (stand-in GPU)"
    )
    write_plan(other, other.read_bytes(), replace(read_metadata(own_plan), compute_capability="8.6"))
    message = stand_in.play("opens", other, STAND_IN_CAPABILITY="8.6")
    assert message.startswith("EngineError: TensorRT 10.13.3.9 could not load the plan of tail_sr_x2")


def test_a_truncated_plan_is_refused(own_plan: Path, stand_in: StandIn) -> None:
    content = own_plan.read_bytes()[:-100]
    own_plan.write_bytes(content)
    message = stand_in.play("opens", own_plan)
    assert message.startswith("PlanMismatch: the plan of tail_sr_x2 is not the one its description speaks of")
    sha256 = hashlib.sha256(content).hexdigest()
    write_plan(own_plan, content, replace(read_metadata(own_plan), plan_bytes=len(content), plan_sha256=sha256))
    message = stand_in.play("opens", own_plan)
    assert message.startswith(
        f"EngineError: TensorRT 10.13.3.9 could not load the plan of tail_sr_x2 ({len(content)} bytes)"
    )
