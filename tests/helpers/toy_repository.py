"""A model repository whose router enlarges by repetition, without parts: what a launcher needs, in a second."""

from __future__ import annotations

import json
from pathlib import Path

from ipt_triton.service import ServiceInfo
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.tiling import KEEP, STRIDE

SERVICE = ServiceInfo(
    (OFFICIAL_TASKS[0], OFFICIAL_TASKS[3]),
    48,
    STRIDE,
    KEEP,
    1_000_000,
    4_000_000,
    444_444,
    "0" * 64,
    "openvino",
    "fp32",
)
ROUTER_CONFIG = """
name: "restore" backend: "python" max_batch_size: 0
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] },
        { name: "TASK_ID" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "RESTORED" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] },
         { name: "RESTORED16" data_type: TYPE_UINT16 dims: [ -1, -1, 3 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
""" + "".join(
    f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
    for key, value in SERVICE.to_parameters().items()
)
ROUTER_MODEL = """
import sys
import triton_python_backend_utils as pb
print("stub of", sys.prefix, flush=True)
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        image, task = (pb.get_input_tensor_by_name(request, name).as_numpy() for name in ("IMAGE", "TASK_ID"))
        assert list(request.requested_output_names()) == ["RESTORED"], "this is an 8-bit image"
        scale = {0: 2, 3: 1}[int(task[0])]
        return pb.InferenceResponse([pb.Tensor("RESTORED", image.repeat(scale, 0).repeat(scale, 1))])
"""


def write_model(repository: Path, name: str, config: str, model: str | None) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    if model is not None:
        (folder / "1" / "model.py").write_text(model)
    return folder


def no_ports() -> list[str]:
    return ["--grpc-port=0", "--metrics-port=0", "--health-port=0"]
