"""The PyTorch side of `engines`: head, body and tail of an architecture, eager or compiled, on CPU or GPU.

Needs torch and numpy alone, so that a GPU machine without ONNX measures it beside TensorRT. Weights and tensors are of
the precision throughout, norms and sums included: what PyTorch does fastest, not what is served.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ipt_triton.benchmarks.compute.measurement import COMPILED, FEWEST_RUNS, WARM_UP, Measurement, repeat, runs_in
from ipt_triton.benchmarks.record import Spread
from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.model.ipt import IPT, PRESETS, preset
from ipt_triton.train.model.start import identity_start

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_preset(name: str) -> None:
    """Raises EngineError: there is no such architecture."""
    if name not in PRESETS:
        raise EngineError(f"--preset {name} is not one of {', '.join(PRESETS)}")


@torch.inference_mode()
def measure_pytorch(
    name: str,
    only: Sequence[str],
    ways: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int],
    seconds: float,
    size: int,
    device: torch.device,
) -> list[Measurement]:
    """Parts of the preset `name` with one task, through each of `ways` (`PYTORCH`, `COMPILED`).

    Args:
        seconds: per part, precision and batch.
        size: side of the matrices of the bare multiplication.

    Raises:
        EngineError: there is no such preset or part.
    """
    check_preset(name)
    done = []
    for precision in precisions:
        parts = _parts(name, TYPES[precision], device)
        if unknown := set(only) - set(parts):
            raise EngineError(f"there is no part {', '.join(sorted(unknown))}; there are: {', '.join(parts)}")
        matrix = torch.randn(size, size, dtype=TYPES[precision], device=device)
        matmul = partial(torch.matmul, matrix, matrix)
        times = _compute_seconds(matmul, seconds, device)
        found = []
        for part in only or parts:
            module, samples = parts[part]
            flops = _flops(module, samples)
            for way in ways:
                torch.compiler.reset()
                run: Callable[..., object] = module
                if way == COMPILED:
                    run = torch.compile(module, mode="max-autotune" if device.type == "cuda" else None, dynamic=False)
                for batch in batches:
                    inputs = [x.repeat(batch, *[1] * (x.ndim - 1)) for x in samples]
                    host = [x.cpu().pin_memory() if device.type == "cuda" else x for x in inputs]
                    latency = repeat(partial(_whole_call, run, host, device), seconds)
                    compute = (
                        _compute_seconds(partial(run, *inputs), seconds, device) if device.type == "cuda" else latency
                    )
                    found.append(
                        Measurement(part, precision, batch, Spread.of(latency), Spread.of(compute), flops, through=way)
                    )
        times += _compute_seconds(matmul, seconds, device)
        rate = 2 * size**3 / statistics.median(times)
        done += [replace(measurement, matmul_rate=rate) for measurement in found]
    return done


def _parts(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[nn.Module, list[Tensor]]]:
    """Modules by the names of the exported parts, each with its inputs for one patch."""
    task = OFFICIAL_TASKS[-1]
    config = preset(name, [task])
    model = identity_start(IPT(config)).eval().to(device, dtype)
    image = torch.rand(1, 3, config.patch_size, config.patch_size).mul(255).to(device, dtype)
    features, embedding = (x.contiguous() for x in model.heads[task.name](image))
    return {
        f"head_{task.name}": (model.heads[task.name], [image]),
        "body": (model.body, [features, embedding]),
        f"tail_{task.name}": (model.tails[task.name], [features]),
    }


def _flops(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """FLOPs of matrix multiplications and convolutions, a multiply-add counted as two."""
    # The counter does not know every fused attention kernel; the plain one is two matrix multiplications.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def _whole_call(run: Callable[..., object], host: Sequence[Tensor], device: torch.device) -> None:
    """From tensors of the host to tensors of the host."""
    answer = run(*(x.to(device, non_blocking=True) for x in host))
    for tensor in answer if isinstance(answer, tuple) else (answer,):
        tensor.cpu()  # type: ignore[attr-defined]


def _compute_seconds(call: Callable[[], object], seconds: float, device: torch.device) -> list[float]:
    """Seconds of the device alone for each call, about `seconds` in all; on a CPU those of the call."""
    if device.type != "cuda":
        return repeat(call, seconds)

    def timed() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    once = statistics.median([timed() for _ in range(WARM_UP + FEWEST_RUNS)])
    return [timed() for _ in range(runs_in(seconds, once))]
