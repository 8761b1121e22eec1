"""FP16 parts of a small model with one task, and engines folders for them whose plans no GPU has built."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers.support import SMALL, small_model

from ipt_triton.export.engines.files import write_plan
from ipt_triton.export.engines.metadata import EngineMetadata, plan_path
from ipt_triton.export.parts.split import export_parts
from ipt_triton.manifest import Manifest, Parity, Port
from ipt_triton.train.model.checkpoint import Checkpoint, content_hash

TENSORRT = "10.13.3.9"


@dataclass(frozen=True)
class TypedParts:
    checkpoint: Checkpoint
    folder: Path
    manifest: Manifest


def typed_parts(factory: pytest.TempPathFactory) -> TypedParts:
    config = replace(SMALL, encoder_layers=1, decoder_layers=1, tasks=(SMALL.tasks[3],))
    model = small_model(config=config)
    checkpoint = Checkpoint(model, content_hash(dict(model.state_dict())))
    folder = factory.mktemp("typed") / "parts"
    return TypedParts(checkpoint, folder, export_parts([checkpoint], folder, "fp16", "tensorrt", max_batch=16))


def metadata(plan: bytes = b"plan", **changes: object) -> EngineMetadata:
    """What `ipt-export engines` would write of a plan, but for the changes."""
    values = EngineMetadata(
        part="body",
        library="tensorrt",
        version=TENSORRT,
        gpu="NVIDIA H200",
        compute_capability="9.0",
        precision="fp16",
        evidence="inspector",
        profile=(1, 8, 16),
        level=3,
        inputs=(Port("FEATURES", (8, 48, 48), "float16"),),
        outputs=(Port("BODY_FEATURES", (8, 48, 48), "float16"),),
        onnx_sha256="ab",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        weight_count=100,
        layers={"fp16": 10, "fp32": 2},
        parity=(Parity("fp16", 0.5, 60.0, 1),),
        ran=True,
        build_seconds=1.5,
        flops=1000,
    )
    return replace(values, **changes)  # type: ignore[arg-type]


def write_engines(folder: Path, parts: TypedParts, **changes: object) -> Path:
    """Plans of random bytes with the description that `ipt-export engines` would write, but for the changes."""
    for part in parts.manifest.parts:
        plan = f"plan of {part.name} for {folder.name}".encode()
        own = {
            "part": part.name,
            "inputs": part.inputs,
            "outputs": part.outputs,
            "onnx_sha256": hashlib.sha256((parts.folder / f"{part.name}.onnx").read_bytes()).hexdigest(),
            "layers": {"fp16": 10},
            "flops": part.flops,
            "profile": (1, 8, parts.manifest.max_batch),
        }
        found = metadata(plan, **{**own, **changes})
        write_plan(plan_path(folder / part.name, found.compute_capability), plan, found)
    return folder
