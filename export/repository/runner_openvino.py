"""Triton Python-backend model that runs a body and the heads and tails of its tasks with OpenVINO on the CPU.

`ipt-export` copies this file as `model.py` into the model's folder, beside the ONNX graphs of its parts. Inputs are
those of the heads and outputs those of the tails, with an ending for each task; what lies between stays in this
process, where nothing is copied. Parameters of the model's configuration: `ways`, JSON of the names of head, body and
tail by ending, `precision` and `threads` (0: half of the cores, because two instances run side by side). `fp32` and
`bf16` are hints to OpenVINO, while the graph itself is FP32; an `int8` graph has its INT8 layers marked, and the others
compute in BF16 if the CPU can. Python 3.9 syntax.
"""

import json
import os
from pathlib import Path

import openvino as ov
import triton_python_backend_utils as pb_utils
from part_model import PartModel


class TritonPythonModel(PartModel):
    """OpenVINO-compiled parts."""

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
        self._requests, ports, loaded = {}, {}, {}
        for ending, names in json.loads(parameters["ways"]).items():
            for name in names:
                if name not in loaded:
                    loaded[name] = core.compile_model(folder / (name + ".onnx"), "CPU", options).create_infer_request()
            way = self._requests[ending] = [loaded[name] for name in names]
            ports[ending] = [[port.any_name for port in side] for side in (way[0].model_inputs, way[-1].model_outputs)]
        self.prepare(config, ports)

    def compute(self, ending, batch):
        for request in self._requests[ending]:
            results = request.infer(batch, share_inputs=True, share_outputs=True)
            batch = {port.any_name: rows for port, rows in results.items()}
        return batch
