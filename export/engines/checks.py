"""Whether a built engine is right: its tensors, the precision of its layers, finite results, and parity with PyTorch.

On numpy alone and in Python 3.9 syntax. Only `check_engine` needs a GPU, that of the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ipt_triton.export.engines.builder import Built
from ipt_triton.export.engines.inputs import random_inputs, repeat_rows
from ipt_triton.export.engines.metadata import BuildFacts, CheckResults, EngineError
from ipt_triton.export.engines.runner import EngineRunner
from ipt_triton.manifest import Part, Port
from ipt_triton.parity import check_finite, compare

LOWEST_SHARE = 0.1
"""Engine layers that compute in the precision asked for, at least: far below what any part has, far above none."""

NO_ARITHMETIC = {
    *("reformat", "noop", "constant", "signal", "wait", "signal_and_wait", "shape_call", "shape_ops"),
    *("reshape", "cast"),
}
"""Types of layers that only move data."""


def layer_precisions(report: str) -> dict[str, int]:
    """Engine layers by what they compute in: `fp16`, `bf16`, `fp32`, `opaque`, `other`.

    Layers that only move data are left out. A layer that touches 16-bit floats counts as such: kernels accumulate and
    hand over in FP32 here and there. `opaque` are the fused regions of TensorRT 8.6 (ForeignNode), whose insides the
    inspector does not tell, with nothing 16-bit going in or out.

    Args:
        report: the inspector's JSON of an engine built with detailed profiling verbosity.

    Raises:
        EngineError: no layers, names alone, or no data types.
    """
    layers = json.loads(report).get("Layers", []) if report else []
    if not layers or not isinstance(layers[0], dict):
        raise EngineError("the engine tells nothing about its layers: it was built without detailed verbosity")
    counts: dict[str, int] = {}
    for layer in layers:
        kind = str(layer.get("LayerType", ""))
        if kind.casefold() in NO_ARITHMETIC:
            continue
        text = " ".join(_types(layer))
        if re.search(r"\b(bfloat16|bf16)\b", text, re.IGNORECASE):
            found = "bf16"
        elif re.search(r"\b(half|fp16)\b", text, re.IGNORECASE):
            found = "fp16"
        elif kind.casefold() == "myelin" or "ForeignNode" in str(layer.get("Name", "")):
            found = "opaque"
        elif re.search(r"\b(float|fp32)\b", text, re.IGNORECASE):
            found = "fp32"
        else:
            found = "other"
        counts[found] = counts.get(found, 0) + 1
    if counts.keys() <= {"other"}:
        keys = sorted({key for layer in layers for port in layer.get("Outputs", ()) for key in port})
        raise EngineError(
            f"the report about the engine's layers cannot be read: tensors have {', '.join(keys) or 'no entries'}, "
            "and none is a data type that is known here; this version of the library is too new for this builder"
        )
    return counts


def _types(layer: Mapping[str, Any]) -> list[str]:
    """The data types of a layer's tensors and weights; TensorRT 11 has `Datatype` and `Format` apart."""
    ports = (*layer.get("Inputs", ()), *layer.get("Outputs", ()))
    types = [str(port.get("Datatype", port.get("Format/Datatype", ""))) for port in ports]
    weights = layer.get("Weights")
    return [*types, str(weights.get("Type", ""))] if isinstance(weights, dict) else types


def precision_evidence(precision: str, layers: Mapping[str, int], plan_bytes: int, weight_count: int) -> str:
    """How we know that an engine computes in its precision.

    Returns:
        `inspector`: enough layers do, as it or the builder tells; `size`: the plan is too small for FP32 weights;
        `none`: the inspector cannot see into the engine, and the plan is too big to tell. FP32, which engines fall
        back to, needs no proof.

    Raises:
        EngineError: the inspector sees that almost no layer does.
    """
    known = layers.get(precision, 0) + layers.get("fp32", 0)
    if known and layers.get(precision, 0) / known >= LOWEST_SHARE:
        return "inspector"
    if layers.get("opaque") or precision == "fp32":
        return "size" if precision != "fp32" and plan_bytes < 3 * weight_count else "none"
    raise EngineError(
        f"the engine was to compute in {precision.upper()} and {layers.get(precision, 0)} of {known} layers do: "
        "export the parts in that precision"
    )


def check_tensors(part: Part, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Compare an engine's inputs and outputs with the manifest's; raises EngineError."""
    for found, wanted in ((inputs, part.inputs), (outputs, part.outputs)):
        engine, manifest = (sorted(map(str, ports)) for ports in (found, wanted))
        if engine != manifest:
            raise EngineError(
                f"{part.name}: the engine has {', '.join(engine)}, the manifest {', '.join(manifest)}: "
                "run ipt-export again"
            )


def check_engine(
    plan: bytes,
    facts: BuildFacts,
    part: Part,
    layer_precision: str,
    reference: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None,
    device: int,
) -> CheckResults:
    """Run a new engine at the boundary batches.

    Args:
        layer_precision: what its layers must be seen to compute in.
        reference: inputs and expected outputs, see `export.engines.inputs.reference_tensors`.

    Raises:
        EngineError: the engine is not the one that was asked for.
        ParityError: NaN or Inf, or results too far from the reference.
    """
    parity = []
    with EngineRunner(plan, facts, device) as runner:
        check_tensors(part, runner.inputs, runner.outputs)
        layers = layer_precisions(runner.layer_report())
        evidence = precision_evidence(layer_precision, layers, facts.plan_bytes, facts.weight_count)
        for batch in sorted(set(facts.profile)):
            name = f"{part.name} at batch {batch}"
            inputs, expected = (
                ({name: repeat_rows(rows, batch) for name, rows in tensors.items()} for tensors in reference)
                if reference is not None
                else (random_inputs(part, batch), None)
            )
            for _ in range(2):  # the second time through the CUDA graph
                results = runner.run(inputs)
                if expected is None:
                    check_finite(name, results, facts.precision)
                else:
                    found = compare(name, results, expected, facts.precision)
            if expected is not None:
                parity.append(found)
        return CheckResults(runner.inputs, runner.outputs, layers, evidence, tuple(parity), ran=True)


def check_unrun(built: Built, facts: BuildFacts, part: Part, layer_precision: str) -> CheckResults:
    """Check a new engine for a card that is not here, from what its builder has told.

    Args:
        layer_precision: what its layers must be seen to compute in.

    Raises:
        EngineError: the engine is not the one that was asked for.
    """
    check_tensors(part, built.inputs, built.outputs)
    layers = layer_precisions(built.layers)
    evidence = precision_evidence(layer_precision, layers, facts.plan_bytes, facts.weight_count)
    return CheckResults(built.inputs, built.outputs, layers, evidence, (), ran=False)
