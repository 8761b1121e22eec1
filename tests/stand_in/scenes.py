"""What tests have the engine runner do on the stand-in GPU, each in a process of its own: what happened, as JSON.

python -m stand_in.scenes changing_batches build/engines/body.plan
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from ipt_triton.export.engines.cuda import CudaGraphs
from ipt_triton.export.engines.runner import EngineRunner

BATCHES = (1, 3, 2, 3, 9, 9, 1, 3)
"""Graphs are made of all of them but 9."""
COUNTERS = (
    *("contexts", "device_bytes", "host_bytes", "streams", "events"),
    *("graphs", "executables", "launches", "engine_runs"),
)

driver = ctypes.CDLL("libcuda.so.1")


def count() -> dict[str, int]:
    """The stand-in driver's counters."""
    gc.collect()
    return {name: ctypes.c_long.in_dll(driver, f"stand_in_{name}").value for name in COUNTERS}


def set_memory(size: int) -> None:
    ctypes.c_long.in_dll(driver, "stand_in_memory").value = size


def message(call: Callable[[], Any]) -> str:
    """The error's type and sentence, or nothing."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_thread(where: str, work: Callable[[], None]) -> None:
    """Do it in this thread, the `first`, or in an `other` one."""
    if where == "first":
        return work()
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()


def opened(plan: Path, cuda_graphs: bool = True) -> EngineRunner:
    return EngineRunner.open(plan.with_name(plan.stem.rpartition("_")[0]), cuda_graphs=cuda_graphs)


def batch_of(runner: EngineRunner, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        port.name: generator.uniform(0, 1, (batch, *port.shape)).astype(np.dtype(port.dtype)) for port in runner.inputs
    }


def error_of(runner: EngineRunner, plan: Path, batch: int, seed: int = 0) -> float:
    """The largest difference between a run and ONNX Runtime on the plan's own graph."""
    inputs = batch_of(runner, batch, seed)
    expected = session_of(plan).run([port.name for port in runner.outputs], inputs)
    results = runner.run(inputs)
    pairs = zip(runner.outputs, expected, strict=True)
    return max(float(np.abs(results[port.name].astype(float) - there).max()) for port, there in pairs)


@functools.cache
def session_of(plan: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(plan.read_bytes().split(b"\n", 2)[2], providers=["CPUExecutionProvider"])


def changing_batches(path: str) -> dict[str, Any]:
    """Batches that go up and down, each of other values."""
    plan = Path(path)
    with opened(plan) as runner:
        steps = []
        for seed, batch in enumerate(BATCHES):
            before = count()
            error = error_of(runner, plan, batch, seed)
            after = count()
            steps.append({"batch": batch, "error": error, "replays": after["launches"] - before["launches"]})
        return {"steps": steps, "counts": after, "graph_error": runner.graph_error, "depth": driver.stand_in_depth()}


def many_runs(path: str, runs: str) -> dict[str, Any]:
    """The counters after every batch was seen, and after that many more runs."""
    with opened(Path(path)) as runner:
        inputs = {batch: batch_of(runner, batch) for batch in (1, 2, 3)}
        for batch in (1, 2, 3):
            runner.run(inputs[batch])
        before = count()
        for number in range(int(runs)):
            runner.run(inputs[1 + number % 3])
        return {"before": before, "after": count(), "held": len(trt._queued)}


def open_and_close(path: str, times: str) -> dict[str, Any]:
    """The counters after the first runner was closed, and after that many others were."""
    counts = []
    for _ in range(int(times) + 1):
        with opened(Path(path)) as runner:
            runner.run(batch_of(runner, 2))
            runner.run(batch_of(runner, 2))
        del runner
        counts.append(count())
    return {"first": counts[0], "last": counts[-1], "held": len(trt._queued)}


def closed_and_kept(path: str) -> dict[str, Any]:
    """The counters after a runner was closed, twice, that is still there."""
    runner = opened(Path(path))
    runner.run(batch_of(runner, 2))
    for _ in range(2):
        runner.close()
    return {"counts": count(), "graphs": len(runner._captured)}


def threads(path: str, threads: str) -> dict[str, Any]:
    """Several threads at once, each with its own runner that it opens, uses and closes."""
    plan, found = Path(path), []
    start = threading.Barrier(int(threads))
    session_of(plan)

    def work(seed: int) -> None:
        start.wait()
        with opened(plan) as runner:
            errors = [error_of(runner, plan, batch, seed) for batch in BATCHES]
        found.append({"error": max(errors), "depth": driver.stand_in_depth(), "graph_error": runner.graph_error})

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"threads": found, "counts": count()}


def handed_over(path: str) -> dict[str, Any]:
    """A runner that one thread opens, another uses and a third one closes."""
    plan = Path(path)
    runners: list[EngineRunner] = []
    found: dict[str, Any] = {}

    def use() -> None:
        found["error"] = max(error_of(runners[0], plan, batch) for batch in BATCHES)

    def close() -> None:
        runners.pop().close()

    for step in (lambda: runners.append(opened(plan)), use, close):
        in_thread("other", step)
    return {**found, "counts": count()}


def wrong_batches(path: str) -> dict[str, Any]:
    """Inputs that do not fit, then one that does."""
    plan = Path(path)
    with opened(plan) as runner:
        largest = runner.facts.max_batch
        messages = [message(lambda n=n: runner.run(batch_of(runner, n))) for n in (0, largest + 1)]
        wrong = {port.name: np.zeros((1, 2), np.float32) for port in runner.inputs}
        messages.append(message(lambda: runner.run(wrong)))
        return {"messages": messages, "error": error_of(runner, plan, 2), "counts": count()}


def out_of_memory(path: str, where: str) -> dict[str, Any]:
    """Runners that find less memory than they need, at each of the places that ask for some, then enough.

    Args:
        where: `first` or `other`, the thread of this process that opens them.
    """
    plan, found = Path(path), {"messages": []}
    with opened(plan) as runner:
        needed = count()["device_bytes"]
    del runner
    found["free"] = count()

    def fail() -> None:
        for share in (0.0, 0.3, 0.5, 0.7, 0.9, 0.999):
            set_memory(int(share * needed))
            found["messages"].append(message(lambda: opened(plan)))

    in_thread(where, fail)
    found["failed"] = count()
    set_memory(1 << 30)
    with opened(plan) as runner:
        return {**found, "error": error_of(runner, plan, 2)}


def refused_enqueue(path: str) -> dict[str, Any]:
    """TensorRT refuses to queue an engine, before and after there are graphs, then takes it again."""
    plan = Path(path)
    with opened(plan) as runner:
        trt.fault = "enqueue"
        messages = [message(lambda: runner.run(batch_of(runner, 2)))]
        trt.fault = ""
        errors = [error_of(runner, plan, batch, seed) for seed, batch in enumerate((2, 2, 3))]
        trt.fault = "enqueue"
        messages.append(message(lambda: runner.run(batch_of(runner, 1))))
        trt.fault = ""
        errors += [error_of(runner, plan, batch, seed) for seed, batch in enumerate((1, 3, 2, 1))]
        return {"messages": messages, "errors": errors, "counts": count(), "graph_error": runner.graph_error}


def failing_kernel(path: str) -> dict[str, Any]:
    """The GPU fails amid an engine's work: nothing can run any more in this process, and each call says so."""
    with opened(Path(path)) as runner:
        runner.run(batch_of(runner, 1))
        trt.fault = "compute"
        messages = [message(lambda: runner.run(batch_of(runner, 1))) for _ in range(2)]
        trt.fault = ""
        messages.append(message(lambda: runner.run(batch_of(runner, 1))))
        messages.append(message(lambda: runner.device_seconds(1, 1)))
        contexts = count()["contexts"]
    return {"messages": messages, "contexts": contexts}


def work_that_cannot_be_captured(path: str, fault: str) -> dict[str, Any]:
    """Graphs of two batches, then an engine with work on the host, then that engine as it was before."""
    plan = Path(path)
    with opened(plan) as runner:
        errors = [error_of(runner, plan, batch, seed) for seed, batch in enumerate((1, 2, 1))]
        before = count()
        trt.fault = fault
        failed = message(lambda: errors.append(error_of(runner, plan, 3, 3)))
        errors += [error_of(runner, plan, batch, seed) for seed, batch in enumerate((3, 1, 3, 2))]
        return {
            "errors": errors,
            "failed": failed,
            "before": before,
            "after": count(),
            "graph_error": runner.graph_error,
            "captured": sorted(runner._captured),
        }


def without_graphs(path: str) -> dict[str, Any]:
    plan = Path(path)
    with opened(plan, cuda_graphs=False) as runner:
        errors = [error_of(runner, plan, batch, seed) for seed, batch in enumerate(BATCHES)]
        return {"errors": errors, "counts": count(), "graph_error": runner.graph_error}


def device_seconds(path: str, where: str, batch: str, runs: str) -> dict[str, Any]:
    """Times of an engine, as the first thing it does and after other batches, and results after that.

    Args:
        where: `first` or `other`, the thread of this process that does it.
    """
    plan, found = Path(path), {"seconds": [], "errors": []}

    def work() -> None:
        with opened(plan) as runner:
            for seed in range(2):
                found["seconds"].append(runner.device_seconds(int(batch), int(runs)))
                found["errors"] += [error_of(runner, plan, number, seed) for number in (int(batch), 1)]
            found["graph_error"], found["depth"] = runner.graph_error, driver.stand_in_depth()

    with opened(plan):
        in_thread(where, work)
    return {**found, "counts": count()}


def rules() -> dict[str, Any]:
    """What the stand-in driver answers to work that is not done properly."""
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    found: dict[str, Any] = {"no context": message(lambda: cuda.mem_alloc(4))}
    context.push()
    stream, other = cuda.Stream(), cuda.Stream()
    here, there = cuda.pagelocked_empty(8, np.float16), cuda.pagelocked_empty(8, np.float16)
    here[:], there[:] = 1, 2
    memory = cuda.mem_alloc(here.nbytes)
    cuda.memcpy_dtoh_async(there, memory, stream)
    found["not synchronised"] = there.tolist()
    stream.synchronize()
    found["new memory is NaN"] = bool(np.isnan(there).all())
    cuda.memcpy_htod_async(memory, here, stream)
    cuda.memcpy_dtoh_async(there, memory, other)  # not ordered with the other stream
    other.synchronize()
    found["two streams"] = bool(np.isnan(there).all())
    found["not played"] = message(cuda.Context.synchronize)

    graphs = CudaGraphs()
    for name, call in (
        ("synchronise in a capture", stream.synchronize),
        ("allocate in a capture", lambda: cuda.mem_alloc(4)),
    ):
        graphs.begin(stream.handle)
        found[name] = [message(call), message(lambda: graphs.end(stream.handle))]
    graphs.begin(stream.handle)
    cuda.memcpy_htod_async(memory, here, stream)
    cuda.memcpy_dtoh_async(there, memory, stream)
    graph = graphs.end(stream.handle)
    there[:] = 0
    stream.synchronize()
    found["captured"] = there.tolist()
    here[:] = 3
    graphs.launch(graph, stream.handle)
    stream.synchronize()
    found["replayed"] = there.tolist()
    memory.free()
    graphs.launch(graph, stream.handle)
    found["freed memory"] = message(stream.synchronize)
    found["after that"] = message(cuda.Stream)
    context.pop()
    return found


def opens(path: str) -> str:
    """The sentence with which a plan is refused."""

    def load() -> None:
        with opened(Path(path)):
            pass

    found = message(load)
    return found if count()["contexts"] == 0 else f"a context is left: {found}"


def kernels(path: str) -> dict[str, Any]:
    """What TensorRT for RTX finds compiled when a runner is opened a second time."""
    plan = Path(path)
    with opened(plan) as runner:
        first = len(runner._cache.shapes)
        errors = [error_of(runner, plan, batch) for batch in (1, 2)]
    with opened(plan) as runner:
        second = len(runner._cache.shapes)
        errors += [error_of(runner, plan, batch, seed=1) for batch in (1, 2)]
    return {"found": [first, second], "errors": errors, "counts": count()}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))
