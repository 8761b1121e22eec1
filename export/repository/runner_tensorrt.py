"""Triton Python-backend model that runs one part (head, body or tail) as a plan on a GPU.

`ipt-export` copies this file as `model.py` into the folder of each part; beside it lie the part's plans, one for each
compute capability, with their descriptions, and `export/engines/runner.py` with what it imports as `ipt_engine`. Inputs
and outputs are those of the plan. Needs numpy, pycuda and the library of the plans (TensorRT or TensorRT for RTX) in
the Python that runs Triton's models. Optional parameter of the part's configuration: `cuda_graphs` (`0` leaves them
out). Python 3.9 syntax.
"""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils
from ipt_engine.export.engines import runner
from part_model import PartModel


class TritonPythonModel(PartModel):
    """One engine with its own buffers and stream."""

    FAILURES = (runner.EngineError,)

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

        ports = (self._runner.inputs, self._runner.outputs)
        self.prepare(config, {"": [[info.name for info in group] for group in ports]})

    def compute(self, ending, batch):
        results = self._runner.run(batch)
        if self._runner.graph_error != self._told:
            self._told = self._runner.graph_error
            pb_utils.Logger.log_warn(f"{self._runner.facts.part} runs without some CUDA graphs: {self._told}")
        return results

    def finalize(self):
        self._runner.close()
