"""What Triton's Python backend asks of a part, whatever computes it: one batch of many requests, seals, answers.

`ipt-export` copies this file and `seal.py` beside the `model.py` of each part that runs in the Python backend.
Python 3.9 syntax.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from seal import SEAL, BrokenSeal, check_seal, fingerprint, seal


class PartModel:
    """Requests that the dynamic batcher brings together run as one batch.

    A runner derives from this, calls `prepare` when it has loaded its part, and defines `compute`. The first part of a
    way gets patches without seals and makes their tags; the others check what they get.
    """

    FAILURES = ()
    """Exceptions of `compute` that are answered to the callers."""

    def prepare(self, config, inputs, outputs):
        """Take the model's configuration, and the names of the part's own inputs and outputs."""
        self._inputs, self._outputs = sorted(inputs), sorted(outputs)
        self._sealed = SEAL in {port["name"] for port in config["input"]}

    def compute(self, batch):
        """Rows of the outputs by name for rows of the inputs by name; they need not stay valid after the next call."""
        raise NotImplementedError

    def execute(self, requests):
        answers = [None] * len(requests)
        taken = []
        columns = {name: [] for name in self._inputs}
        for place, request in enumerate(requests):
            tensors = [_read(request, name) for name in self._inputs]
            try:
                tags = check_seal(_read(request, SEAL), tensors) if self._sealed else fingerprint(tensors[0])
            except BrokenSeal as error:
                answers[place] = _refusal(str(error), pb_utils.TritonError.UNAVAILABLE)
                continue
            taken.append((place, tags))
            for name, tensor in zip(self._inputs, tensors):
                columns[name].append(tensor)
        if taken:
            try:
                results = self.compute({n: x[0] if len(x) == 1 else np.concatenate(x) for n, x in columns.items()})
            except self.FAILURES as error:
                for place, _ in taken:
                    answers[place] = _refusal(str(error), pb_utils.TritonError.INTERNAL)
                return answers
        first = 0
        for place, tags in taken:
            rows = [np.ascontiguousarray(results[name][first : first + len(tags)]) for name in self._outputs]
            tensors = [pb_utils.Tensor(name, x) for name, x in zip(self._outputs, rows)]
            tensors.append(pb_utils.Tensor(SEAL, seal(tags, rows)))
            answers[place] = pb_utils.InferenceResponse(tensors)
            first += len(tags)
        return answers


def _read(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _refusal(message, code):
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, code))
