"""Triton Python-backend model that runs one part (head, body or tail) with OpenVINO on the CPU.

`ipt-export` copies this file as `model.py` into the folder of each part, beside the part's `model.onnx`; inputs and
outputs are those of the ONNX graph. Parameters of the part's configuration: `precision` and `threads` (0: half of the
cores, because two bodies run side by side). `fp32` and `bf16` are hints to OpenVINO, while the graph itself is FP32; an
`int8` graph has its INT8 layers marked, and the others compute in BF16 if the CPU can.
Python 3.9 syntax.
"""

import json
import os
from pathlib import Path

import openvino as ov
import triton_python_backend_utils as pb_utils
from part_model import PartModel


class TritonPythonModel(PartModel):
    """One OpenVINO-compiled part."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        precision = parameters["precision"]
        core = ov.Core()
        bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not bf16:
            raise pb_utils.TritonModelException(
                "this CPU computes no BF16 and the repository was exported for it; run ipt-export with --precision fp32"
            )
        folder = Path(args["model_repository"]) / args["model_version"]
        options = {
            "INFERENCE_PRECISION_HINT": ov.Type.bf16 if bf16 and precision != "fp32" else ov.Type.f32,
            "INFERENCE_NUM_THREADS": int(parameters["threads"]) or max(1, len(os.sched_getaffinity(0)) // 2),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # instances are processes: all would pin themselves to core 0
        }
        compiled = core.compile_model(folder / "model.onnx", "CPU", options)
        self._request = compiled.create_infer_request()
        self.prepare(config, *([port.any_name for port in ports] for ports in (compiled.inputs, compiled.outputs)))

    def compute(self, batch):
        return self._request.infer(batch, share_inputs=True, share_outputs=True)
