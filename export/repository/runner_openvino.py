"""Triton Python-backend model that runs parts (the heads, a body or the tails) with OpenVINO on the CPU.

`ipt-export` copies this file as `model.py` into the folder of each model, beside the ONNX graphs of its parts. Inputs
and outputs are those of the graphs, with the ending of the part; in place of TASK_EMBEDDING a head writes a number, and
the body reads the embedding from the heads' folder, so that a new task leaves its own as it is. Parameters of the
model's configuration: `parts`, JSON of their names by ending, `embedding_keys`, JSON of those numbers, `precision` and
`threads` (0: half of the cores, because two bodies run side by side). `fp32` and `bf16` are hints to OpenVINO, while
the graph itself is FP32; an `int8` graph has its INT8 layers marked, and the others compute in BF16 if the CPU can.
Python 3.9 syntax.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils
from part_model import PartModel

EMBEDDING, KEY = "TASK_EMBEDDING", "EMBEDDING_KEY"


class UnknownEmbedding(ValueError):
    """A task whose embedding this body does not have."""


class TritonPythonModel(PartModel):
    """OpenVINO-compiled parts."""

    FAILURES = (UnknownEmbedding,)

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
        self._folder = Path(args["model_repository"]) / args["model_version"]
        self._keys = json.loads(parameters["embedding_keys"])
        options = {
            "INFERENCE_PRECISION_HINT": ov.Type.bf16 if bf16 and precision != "fp32" else ov.Type.f32,
            "INFERENCE_NUM_THREADS": int(parameters["threads"]) or max(1, len(os.sched_getaffinity(0)) // 2),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # instances are processes: all would pin themselves to core 0
        }
        self._requests, ports = {}, {}
        for ending, name in json.loads(parameters["parts"]).items():
            compiled = core.compile_model(self._folder / (name + ".onnx"), "CPU", options)
            self._requests[ending] = compiled.create_infer_request()
            ports[ending] = [
                [KEY if port.any_name == EMBEDDING else port.any_name for port in side]
                for side in (compiled.inputs, compiled.outputs)
            ]
        self._rows = lru_cache(maxsize=64)(self._row)
        self._embeddings = lru_cache(maxsize=4)(self._stacked)
        self.prepare(config, ports)

    def compute(self, ending, batch):
        if KEY in batch:
            batch[EMBEDDING] = self._embeddings(tuple(batch.pop(KEY)[:, 0].tolist()))
        results = self._requests[ending].infer(batch, share_inputs=True, share_outputs=True)
        if ending not in self._keys:
            return results
        features = results["FEATURES"]
        return {"FEATURES": features, KEY: np.full((len(features), 1), self._keys[ending], np.int64)}

    def _stacked(self, keys):
        """The embeddings of a batch, float32 [n, N, D]."""
        return np.stack([self._rows(key) for key in keys])

    def _row(self, key):
        """One task's embedding; zeros for the key 0, which comes with a warm-up."""
        if key == 0:
            [port] = [port for port in self._requests[""].model_inputs if port.any_name == EMBEDDING]
            return np.zeros([size.get_length() for size in list(port.partial_shape)[1:]], np.float32)
        path = self._folder.parents[1] / "heads" / self._folder.name / f"embedding_{key}.npy"
        try:
            return np.load(path)
        except OSError as error:
            raise UnknownEmbedding(f"{path} cannot be read ({error}): run ipt-export CHECKPOINT again") from None
