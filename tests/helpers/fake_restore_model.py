"""A Triton model with the interface of the router `restore` and a network of a few numpy lines.

Runs inside Triton's Python backend, beside copies of tiling.py and fake_network.py. Some tasks misbehave unless
the image's first sample is 0 (as it is in the launcher's warm-up): `busy` refuses as a full queue would, at 255 always,
else two of three times; `slow` takes that many tenths of a second; `crash` fails at 1 and refuses others.
"""

import json
import time

import fake_network
import tiling
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.tasks = {task["id"]: task for task in json.loads(parameters["tasks"]["string_value"])}
        self.max_input_pixels = int(parameters["max_input_pixels"]["string_value"])
        self.max_output_pixels = int(parameters["max_output_pixels"]["string_value"])
        self.refusals = 0

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        try:
            return self.restore(request)
        except ValueError as error:
            return refuse(str(error), pb.TritonError.INVALID_ARG)

    def restore(self, request):
        name = "IMAGE" if pb.get_input_tensor_by_name(request, "IMAGE") else "IMAGE16"
        image = pb.get_input_tensor_by_name(request, name).as_numpy()
        stride, keep = (number(request, key) for key in ("STRIDE", "KEEP"))
        ids = pb.get_input_tensor_by_name(request, "TASK_ID").as_numpy().tolist()
        if not set(ids) <= self.tasks.keys():
            raise ValueError(f"TASK_ID {ids} is not served")
        chain = [self.tasks[number] for number in ids]
        task = chain[0]
        pixels = image.shape[0] * image.shape[1]
        for stage in chain:
            after = pixels * stage["scale"] ** 2
            if pixels > self.max_input_pixels or after > self.max_output_pixels:
                raise ValueError(f"{pixels} pixels are too many")
            pixels = after
        first_sample = int(image.flat[0])
        if task["name"] == "busy" and first_sample:
            self.refusals += 1
            if self.refusals % 3 or first_sample == 255:
                return refuse("the queue is full", pb.TritonError.UNAVAILABLE)
        if task["name"] == "slow":
            time.sleep(first_sample / 10)
        if task["name"] == "crash" and first_sample:
            raise RuntimeError("the network is broken") if first_sample == 1 else ValueError("this photo is refused")
        output, kind = name.replace("IMAGE", "RESTORED"), image.dtype.name
        if output not in request.requested_output_names():
            output, kind = "RESTORED32", "float32"
        for place, stage in enumerate(chain, 1):
            made = kind if place == len(chain) else "float32"
            tiler = tiling.Tiler(image, stage["scale"], 48, stride or tiling.STRIDE, keep or tiling.KEEP, made)
            network = fake_network.stamp if stage["name"] == "stamp" else fake_network.enlarge
            for first, last in tiler.batches(8):
                tiler.add(network(tiler.patches(first, last), stage["scale"]).astype("float32"))
            image = tiler.result()
        return pb.InferenceResponse([pb.Tensor(output, image)])


def number(request, name):
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else int(tensor.as_numpy()[0])


def refuse(message, code):
    return pb.InferenceResponse([], pb.TritonError(message, code))
