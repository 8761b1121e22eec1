"""A model repository whose `restore` answers like the real router, without a network: see fake_restore_model.py."""

import json
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import ipt_triton.tiling
from ipt_triton.tiling import KEEP, STRIDE

MAX_INPUT_PIXELS = 40_000
MAX_OUTPUT_PIXELS = 60_000
MAX_PATCHES = 2_000
TASKS = [
    {"id": 0, "name": "sr_x2", "kind": "sr", "scale": 2, "sigma": 0, "quality": 0},
    {"id": 3, "name": "derain", "kind": "derain", "scale": 1, "sigma": 0, "quality": 0},
    {"id": 5, "name": "stamp", "kind": "denoise", "scale": 1, "sigma": 50, "quality": 0},
    {"id": 6, "name": "busy", "kind": "denoise", "scale": 1, "sigma": 0, "quality": 0},
    {"id": 7, "name": "slow", "kind": "denoise", "scale": 1, "sigma": 0, "quality": 0},
    {"id": 8, "name": "crash", "kind": "denoise", "scale": 1, "sigma": 0, "quality": 0},
    {"id": 9, "name": "dejpeg_40", "kind": "dejpeg", "scale": 1, "sigma": 0, "quality": 40},
]


def fake_config() -> pb.ModelConfig:
    """The router's configuration."""
    config = pb.ModelConfig(name="restore", backend="python", max_batch_size=0)
    config.instance_group.add(count=2, kind=pb.ModelInstanceGroup.KIND_CPU)
    for name, kind, dims, optional in (
        ("IMAGE", pb.TYPE_UINT8, [-1, -1, 3], True),
        ("IMAGE16", pb.TYPE_UINT16, [-1, -1, 3], True),
        ("TASK_ID", pb.TYPE_INT32, [-1], True),
        ("TASK", pb.TYPE_STRING, [-1], True),
        ("STRIDE", pb.TYPE_INT32, [1], True),
        ("KEEP", pb.TYPE_INT32, [1], True),
    ):
        config.input.add(name=name, data_type=kind, dims=dims, optional=optional)
    config.output.add(name="RESTORED", data_type=pb.TYPE_UINT8, dims=[-1, -1, 3])
    config.output.add(name="RESTORED16", data_type=pb.TYPE_UINT16, dims=[-1, -1, 3])
    config.output.add(name="RESTORED32", data_type=pb.TYPE_FP32, dims=[-1, -1, 3])
    parameters = {
        "tasks": json.dumps(TASKS),
        "patch_size": 48,
        "stride": STRIDE,
        "keep": KEEP,
        "max_input_pixels": MAX_INPUT_PIXELS,
        "max_output_pixels": MAX_OUTPUT_PIXELS,
        "max_patches": MAX_PATCHES,
        "checkpoint_sha256": "0" * 64,
        "runtime": "openvino",
        "precision": "fp32",
    }
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value)
    return config


def write_fake_repository(folder: Path) -> Path:
    """Write the repository to a folder that is not there yet, and return it."""
    version = folder / "restore" / "1"
    version.mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copy(here / "fake_restore_model.py", version / "model.py")
    shutil.copy(here / "fake_network.py", version)
    shutil.copy(ipt_triton.tiling.__file__, version)
    (folder / "restore" / "config.pbtxt").write_text(text_format.MessageToString(fake_config()))
    return folder
