"""What Triton's Python backend asks of parts, whatever computes them: one batch of many requests, seals, answers.

A model may run parts of several tasks: the names of its tensors end in the task's name, and a request is for the task
whose inputs it has. `ipt-export` copies this file and `seal.py` beside the `model.py` of models in the Python backend.
Python 3.9 syntax.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from seal import SEAL, BrokenSeal, check_seal, fingerprint, seal


class PartModel:
    """Requests for one task that the dynamic batcher brings together run as one batch.

    A runner derives from this, calls `prepare` when it has loaded its parts, and defines `compute`. The first model of
    an ensemble gets patches without seals and makes their tags; the others check what they get.
    """

    FAILURES = ()
    """Exceptions of `compute` that are answered to the callers."""

    def prepare(self, config, ways):
        """Take the model's configuration and, by the ending of its tensors, names of inputs and outputs without it."""
        self._ways = {ending: (sorted(inputs), sorted(outputs)) for ending, (inputs, outputs) in ways.items()}
        self._sealed = SEAL in {port["name"] for port in config["input"]}

    def compute(self, ending, batch):
        """Rows of outputs by name for rows of inputs; they need not stay valid after the next call."""
        raise NotImplementedError

    def execute(self, requests):
        answers = [None] * len(requests)
        taken = {}
        for place, request in enumerate(requests):
            ending = next((e for e, (inputs, _) in self._ways.items() if _read(request, inputs[0] + e)), None)
            if ending is None:
                answers[place] = _refusal("no task's inputs are given", pb_utils.TritonError.INVALID_ARG)
                continue
            try:
                tensors = [_read(request, name + ending).as_numpy() for name in self._ways[ending][0]]
                tags = check_seal(_read(request, SEAL).as_numpy(), tensors) if self._sealed else fingerprint(tensors[0])
            except BrokenSeal as error:
                answers[place] = _refusal(str(error), pb_utils.TritonError.UNAVAILABLE)
                continue
            taken.setdefault(ending, []).append((place, tags, tensors))
        for ending, rows in taken.items():
            self._run(ending, rows, answers)
        return answers

    def _run(self, ending, taken, answers):
        """Compute for one task; `taken`: place among the answers, tags and inputs of each request."""
        inputs, outputs = self._ways[ending]
        columns = zip(*(tensors for _, _, tensors in taken))
        batch = {n: column[0] if len(column) == 1 else np.concatenate(column) for n, column in zip(inputs, columns)}
        try:
            results = self.compute(ending, batch)
        except self.FAILURES as error:
            for place, _, _ in taken:
                answers[place] = _refusal(str(error), pb_utils.TritonError.INTERNAL)
            return
        first = 0
        for place, tags, _ in taken:
            rows = [np.ascontiguousarray(results[name][first : first + len(tags)]) for name in outputs]
            tensors = [pb_utils.Tensor(name + ending, x) for name, x in zip(outputs, rows)]
            tensors.append(pb_utils.Tensor(SEAL, seal(tags, rows)))
            answers[place] = pb_utils.InferenceResponse(tensors)
            first += len(tags)


def _read(request, name):
    return pb_utils.get_input_tensor_by_name(request, name)


def _refusal(message, code):
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, code))
