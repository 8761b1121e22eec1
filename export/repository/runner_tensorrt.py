"""Triton Python-backend model that runs one part (head, body or tail) as a plan on a GPU.

`ipt-export` copies this file as `model.py` into the folder of each part; beside it lie the part's plans, one for each
compute capability, with their descriptions, and `export/engines/runner.py` with what it imports as `ipt_engine`. Inputs
and outputs are those of the plan. Needs numpy, pycuda and the library of the plans (TensorRT or TensorRT for RTX) in
the Python that runs Triton's models. Optional parameter of the part's configuration: `cuda_graphs` (`0` leaves them
out). Python 3.9 syntax.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from ipt_engine.export.engines import runner


class TritonPythonModel:
    """One engine with its own buffers and stream; requests that the dynamic batcher brings together run as one."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        plans = Path(args["model_repository"]) / args["model_version"] / "model"
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        try:
            self._runner = runner.EngineRunner.open(plans, device, parameters.get("cuda_graphs", "1") != "0")
        except runner.EngineError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._told = ""
        largest = self._runner.facts.max_batch
        if config["max_batch_size"] > largest:
            raise pb_utils.TritonModelException(
                f"{args['model_name']} is configured for batches of {config['max_batch_size']} and its plan was built "
                f"for at most {largest}: build the engine with a larger --max-batch, or export the repository again"
            )

    def execute(self, requests):
        columns = {info.name: [] for info in self._runner.inputs}
        for request in requests:
            for name, column in columns.items():
                column.append(pb_utils.get_input_tensor_by_name(request, name).as_numpy())
        counts = [len(x) for x in next(iter(columns.values()))]
        batch = {name: x[0] if len(x) == 1 else np.concatenate(x) for name, x in columns.items()}
        try:
            results = self._runner.run(batch)
        except runner.EngineError as error:
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))) for _ in requests]
        if self._runner.graph_error != self._told:
            self._told = self._runner.graph_error
            pb_utils.Logger.log_warn(f"{self._runner.facts.part} runs without some CUDA graphs: {self._told}")
        responses, first = [], 0
        for count in counts:
            tensors = [pb_utils.Tensor(name, x[first : first + count]) for name, x in results.items()]
            responses.append(pb_utils.InferenceResponse(tensors))
            first += count
        return responses

    def finalize(self):
        self._runner.close()
