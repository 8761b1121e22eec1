"""The router: Triton model `restore`. Whole image and task in, tiles in chunks to the ensembles, restored image out.

It cuts the image into patches (`tiling.py` beside this file, copied there by `ipt-export`), sends them in bounded
chunks, several at a time, to the ensemble `ipt_<task>` and joins the answers. An answer that does not belong to the
patches that were sent, as its seal tells (`seal.py`, copied too), is refused. The tasks and limits are parameters of
its configuration. Python backend with asynchronous BLS; Python 3.9 syntax; imports only numpy and what is copied.

Its metric `ipt_photographs_under_way` counts, for each instance, the requests that it has begun and not yet answered.
`ipt-serve` names its private folder in IPT_SERVER_FOLDER. Told to stop, it makes the file `stopping` there: from then
on the router refuses what is new, and the server is ended when the count has fallen to 0. In the same folder the
routers keep their board (`board.py`), which says who goes first and what is refused.
"""

import asyncio
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from board import BOARD, Board, Busy
from seal import SEAL, BrokenSeal, check_seal, fingerprint
from tiling import Tiler, check_rule, count_patches

OUTPUTS = {"IMAGE": "RESTORED", "IMAGE16": "RESTORED16"}

LOOK_S, PATIENCE_S = (0.005, 0.05), 5.0
"""A photograph whose turn it is not looks again so soon, then after twice as long, at most the second time; it sends a
chunk in any case when it has waited so long."""

NO_MEMORY = "the server has no shared memory left; enlarge its /dev/shm (docker: --shm-size), or send less at a time"


class InvalidRequest(ValueError):
    """The caller's mistake; answered as INVALID_ARG."""


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        try:
            self._tasks = json.loads(parameters["tasks"])
            self._patch = int(parameters["patch_size"])
            self._bodies, self._chunk = int(parameters["body_instances"]), int(parameters["chunk"])
            self._in_flight = int(parameters["requests_in_flight"])
            self._stride, self._keep = int(parameters["stride"]), int(parameters["keep"])
            self._max_input = int(parameters["max_input_pixels"])
            self._max_output = int(parameters["max_output_pixels"])
            self._max_patches = int(parameters["max_patches"])
            self._sealed = parameters["sealed"] == "1"
        except KeyError as error:
            raise pb_utils.TritonModelException(
                f"the router's config.pbtxt lacks {error}, so it is of another version: run ipt-export CHECKPOINT"
            ) from None
        folder = os.environ.get("IPT_SERVER_FOLDER")  # private to `ipt-serve`; none without it
        self._stop_file = Path(folder, "stopping") if folder else None
        slot = int(args["model_instance_name"].rpartition("_")[2])
        routers = sum(group["count"] for group in config["instance_group"])
        self._board = Board(Path(folder, BOARD), slot, routers) if folder else None
        self._family, self._under_way = _gauge(args["model_instance_name"])

    async def execute(self, requests):
        return await asyncio.gather(*[self._answer(request) for request in requests])

    async def _answer(self, request):
        if self._stop_file is not None and self._stop_file.exists():
            return _error("the server is stopping; ask another one, or again", pb_utils.TritonError.UNAVAILABLE)
        self._count(1)
        try:
            output, restored = await self._restore(request)
        except InvalidRequest as error:
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Busy as error:
            return _error(str(error), pb_utils.TritonError.UNAVAILABLE)
        except FloatingPointError as error:
            return _error(str(error), pb_utils.TritonError.INTERNAL)
        except PartFailure as error:
            if "not healthy" in str(error):  # its process is gone; ipt-serve starts the server again
                return _error(str(error), pb_utils.TritonError.UNAVAILABLE)
            if "shared memory pool" in str(error):
                if self._board is not None:
                    self._board.tell_no_memory()
                return _error(NO_MEMORY, pb_utils.TritonError.UNAVAILABLE)
            return pb_utils.InferenceResponse(error=error.args[0])
        except Cancelled:
            return _error("the caller has left; the rest of the image was not computed", pb_utils.TritonError.CANCELLED)
        finally:
            self._count(-1)
        return pb_utils.InferenceResponse([pb_utils.Tensor(output, restored)])

    def _count(self, change):
        if self._under_way is not None:
            self._under_way.increment(change)

    async def _restore(self, request):
        name, image = self._image(request)
        output = OUTPUTS[name]
        asked = request.requested_output_names()  # all outputs, if the caller names none
        if output not in asked:
            raise InvalidRequest(
                f"{name} is restored to {output}, but {', '.join(asked)} was asked for; ask for {output}"
            )
        task = self._task(request)
        stride = _number(request, "STRIDE", self._stride)
        keep = _number(request, "KEEP", self._keep)
        try:
            check_rule(stride, keep, self._patch)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        self._check_size(image, task)
        patches = self._check_work(image, stride)
        within = _within(request)
        try:
            if self._board is not None:
                self._board.begin(task["id"], patches, self._chunk, within)
            tiler = Tiler(image, task["scale"], self._patch, stride, keep)
            await self._run(tiler, "ipt_" + task["name"], self._patch * task["scale"], request)
            return output, tiler.result()
        finally:
            if self._board is not None:
                self._board.end()

    async def _run(self, tiler, ensemble, side, request):
        """All patches through the ensemble, at most `requests_in_flight` chunks under way, joined in order.

        As long as a smaller photograph is under way it is one chunk, and none while there are as many smaller ones as
        bodies. Each answer is [3, side, side].
        """
        pending, left = [], tiler.count

        async def take():
            nonlocal left
            answers = await pending.pop(0)
            tiler.add(answers)
            left -= len(answers)
            self._write(left)

        try:
            for first, last in tiler.batches(self._chunk, self._bodies):
                while pending and len(pending) >= (1 if self._before() else self._in_flight):
                    await take()
                waited_until, look = time.monotonic() + PATIENCE_S, LOOK_S[0]
                while self._before() >= self._bodies and time.monotonic() < waited_until:
                    await asyncio.sleep(look)
                    look = min(2 * look, LOOK_S[1])
                    self._write(left)
                if request.is_cancelled():
                    raise Cancelled
                patches = tiler.patches(first, last)
                pending.append(asyncio.ensure_future(self._restore_patches(ensemble, patches, side)))
            while pending:
                await take()
        finally:
            await asyncio.gather(*pending, return_exceptions=True)

    def _write(self, left):
        if self._board is not None:
            self._board.write(left)

    def _before(self):
        return 0 if self._board is None else self._board.before()

    async def _restore_patches(self, ensemble, patches, side):
        """Answers [n, 3, side, side] for patches [n, 3, patch, patch]; a chunk that goes wrong is tried once more."""
        try:
            return await self._ask(ensemble, patches, side)
        except (PartFailure, UnfitAnswer) as error:
            pb_utils.Logger.log_warn(f"{ensemble}: {error}; the chunk is sent again")
        try:
            return await self._ask(ensemble, patches, side)
        except UnfitAnswer as error:
            raise PartFailure(pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)) from error

    async def _ask(self, ensemble, patches, side):
        request = pb_utils.InferenceRequest(
            model_name=ensemble,
            requested_output_names=["RESTORED", SEAL] if self._sealed else ["RESTORED"],
            inputs=[pb_utils.Tensor("IMAGE", patches)],
            # Left to itself, Triton hands on what TensorRT computed where it lies: on the GPU, out of numpy's reach.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = await request.async_exec()
        if response.has_error():
            raise PartFailure(response.error())
        answers = _output(response, "RESTORED")
        if answers.shape != (len(patches), 3, side, side):
            raise UnfitAnswer(f"answers of shape {list(answers.shape)} to {len(patches)} patches")
        if self._sealed:
            try:
                tags = check_seal(_output(response, SEAL), [answers])
            except BrokenSeal as error:
                raise UnfitAnswer(str(error)) from error
            if not np.array_equal(tags, fingerprint(patches)):
                raise UnfitAnswer("answers to other patches than were asked for")
        return answers

    def _image(self, request):
        given = [name for name in OUTPUTS if pb_utils.get_input_tensor_by_name(request, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(f"{' and '.join(given) or 'no image'} given; give one of {' and '.join(OUTPUTS)}")
        image = pb_utils.get_input_tensor_by_name(request, given[0]).as_numpy()
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InvalidRequest(
                f"{given[0]} of shape {list(image.shape)} is not allowed: it must be [height, width, 3] from 1x1 on"
            )
        return given[0], image

    def _task(self, request):
        number = pb_utils.get_input_tensor_by_name(request, "TASK_ID")
        name = pb_utils.get_input_tensor_by_name(request, "TASK")
        known = ", ".join(f"{t['id']} {t['name']}" for t in self._tasks)
        if number is None and name is None:
            raise InvalidRequest(f"no task given; give TASK_ID or TASK, one of: {known}")
        found = self._tasks
        asked = []
        if number is not None:
            value = int(number.as_numpy()[0])
            found = [t for t in found if t["id"] == value]
            asked.append(f"TASK_ID {value}")
        if name is not None:
            value = name.as_numpy()[0].decode("utf-8", "replace")
            found = [t for t in found if t["name"] == value]
            asked.append(f"TASK {value!r}")
        if not found:
            raise InvalidRequest(f"{' with '.join(asked)} is not a task of this server; there are: {known}")
        return found[0]

    def _check_size(self, image, task):
        height, width = image.shape[:2]
        output = height * width * task["scale"] ** 2
        for what, pixels, limit, flag in (
            (f"an image of {width}x{height}", height * width, self._max_input, "--max-input-pixels"),
            (
                f"an image of {width}x{height} restored by {task['name']}",
                output,
                self._max_output,
                "--max-output-pixels",
            ),
        ):
            if pixels > limit:
                raise InvalidRequest(
                    f"{what} has {pixels} pixels; at most {limit} are allowed; "
                    f"send it in parts, or export with a higher {flag}"
                )

    def _check_work(self, image, stride):
        height, width = image.shape[:2]
        patches = count_patches(height, width, self._patch, stride)
        if patches > self._max_patches:
            raise InvalidRequest(
                f"an image of {width}x{height} makes {patches} patches at STRIDE {stride}; at most "
                f"{self._max_patches} are allowed; use a higher STRIDE (by default it is {self._stride}), "
                "send it in parts, or export with a higher --max-patches"
            )
        return patches


class Cancelled(Exception):
    """The caller has cancelled, timed out or gone away."""


class PartFailure(Exception):
    """An ensemble answered with an error; carries Triton's TritonError."""

    def __str__(self):
        return self.args[0].message()


class UnfitAnswer(Exception):
    """An ensemble answered with something that does not belong to the patches it was given."""


def _output(response, name):
    return pb_utils.get_output_tensor_by_name(response, name).as_numpy()


def _gauge(instance):
    """The family, which must outlive it, and the metric of this instance; None on a server without metrics."""
    try:
        family = pb_utils.MetricFamily(
            name="ipt_photographs_under_way",
            description="Photographs that an instance of the router has begun and not yet answered",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        return family, family.Metric(labels={"instance": instance})
    except pb_utils.TritonModelException:
        return None, None


def _within(request):
    """Seconds after which the caller leaves, from the request's parameter `within_ms`."""
    value = json.loads(request.parameters() or "{}").get("within_ms", math.inf)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise InvalidRequest(f"within_ms {value!r:.100} is not allowed: it must be a number of milliseconds above 0")
    return value / 1000


def _number(request, name, default):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else int(np.asarray(tensor.as_numpy()).reshape(-1)[0])


def _error(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
