"""A Triton model in place of `ipt_<task>` that only repeats pixels: the network that costs nothing.

For `ipt-benchmark router` and `client`. With the parameter `marks` it adds a number that depends on a pixel's place in
its patch, so that the result tells how the image was cut. Runs in Triton's Python; imports only numpy and `seal.py`.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from seal import SEAL, fingerprint, seal


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        side = int(config["output"][0]["dims"][-1])
        self._scale = side // int(config["input"][0]["dims"][-1])
        marked = config["parameters"]["marks"]["string_value"] == "1"
        self._marks = np.arange(side * side, dtype=np.float32).reshape(side, side) % 31 if marked else None

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        patches = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        count, colours, height, width = patches.shape
        answers = np.empty((count, colours, height, self._scale, width, self._scale), np.float32)
        answers[:] = patches[:, :, :, None, :, None]
        restored = answers.reshape(count, colours, height * self._scale, width * self._scale)
        if self._marks is not None:
            restored += self._marks
        seals = seal(fingerprint(patches), [restored])
        return pb_utils.InferenceResponse([pb_utils.Tensor("RESTORED", restored), pb_utils.Tensor(SEAL, seals)])
