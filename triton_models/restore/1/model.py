"""The router: Triton model `restore`. Whole image and task in, tiles in chunks to the ensembles, restored image out.

It cuts the image into patches (`tiling.py` beside this file, copied there by `ipt-export`), sends them in bounded
chunks, several at a time, to the ensemble `ipt_<task>` and joins the answers. An answer that does not belong to the
patches that were sent, as its seal tells (`seal.py`, copied too), is refused. Several tasks are a chain: one after the
other, and only the last result is rounded. The tasks and limits are parameters of its configuration. Python backend
with asynchronous BLS; Python 3.9 syntax; imports only numpy and what is copied.

Its metric `ipt_photographs_under_way` counts, for each instance, the requests that it has begun and not yet answered;
`Counters` has what all instances count together. A request that is traced takes its chunks along.
`ipt-serve` names its private folder in IPT_SERVER_FOLDER. Told to stop, it makes the file `stopping` there: from then
on the router refuses what is new, and the server is ended when the count has fallen to 0. In the same folder the
routers keep their board (`board.py`), which says who goes first and what is refused.
"""

import asyncio
import json
import math
import os
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from board import BOARD, Board, Busy
from seal import SEAL, BrokenSeal, check_seal, fingerprint
from tiling import FLOAT, Tiler, check_rule, count_patches, factors

OUTPUTS = {"IMAGE": "RESTORED", "IMAGE16": "RESTORED16"}
FLOAT_OUTPUT = "RESTORED32"

LOOK_S, PATIENCE_S = (0.005, 0.05), 5.0
"""A photograph whose turn it is not looks again so soon, then after twice as long, at most the second time; it sends a
chunk in any case when it has waited so long."""

LARGE_CHUNKS = 128
"""A photograph with more left than these is a job that small ones are not to notice. Others share the bodies with them,
so that no body is without work at the end of each."""

GIVE_WAY_S = 0.1
"""So long a large photograph waits where smaller ones leave a body without work."""

LINGER_S = 0.01
"""So long after a smaller photograph a large one waits for the next one as if it were there: who sends one after the
other takes a moment in between."""

LATELY_S = 2.0
"""So long after a smaller photograph a large one goes on with quarters of chunks and none waiting at the bodies: the
next small one then waits for a quarter of a chunk at most."""

TRACED_CHUNKS = 64
"""Of one photograph; each is some eight spans, and Triton keeps them until the photograph is answered."""

STEPS = ("turn", "cut", "wait", "join")
"""Of a photograph: others go first, patches are cut, the ensemble is waited for, answers are joined."""
FAILURES = ("invalid", "busy", "stopping", "no_memory", "not_finite", "part", "cancelled", "fault")
SEVERAL = "several"
"""As the task of a photograph that went through a chain."""

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
            self._small_chunk = -(-self._chunk // 4)
            self._in_flight = int(parameters["requests_in_flight"])
            self._stride, self._keep = int(parameters["stride"]), int(parameters["keep"])
            self._max_input = int(parameters["max_input_pixels"])
            self._max_output = int(parameters["max_output_pixels"])
            self._max_patches = int(parameters["max_patches"])
            self._longest_chain = int(parameters["longest_chain"])
            self._sealed = parameters["sealed"] == "1"
        except KeyError as error:
            raise pb_utils.TritonModelException(
                f"the router's config.pbtxt lacks {error}, so it is of another version: run ipt-export CHECKPOINT"
            ) from None
        folder = os.environ.get("IPT_SERVER_FOLDER")  # private to `ipt-serve`; none without it
        self._stop_file = Path(folder, "stopping") if folder else None
        number = int(args["model_instance_name"].rpartition("_")[2])
        alike = sum(group["count"] for group in config["instance_group"])
        first = int(parameters["first_slot"])
        slots = range(first, first + alike)
        self._board = Board(Path(folder, BOARD), slots[number], int(parameters["slots"]), slots) if folder else None
        self._family, self._under_way = _gauge(args["model_instance_name"])
        self._counters = Counters([task["name"] for task in self._tasks])

    async def execute(self, requests):
        return await asyncio.gather(*[self._answer(request, request.is_cancelled) for request in requests])

    async def _answer(self, request, is_cancelled, tell=None):
        """The response to a request.

        Args:
            is_cancelled: whether the caller has left.
            tell: called with the patches that are answered and all that are due, from the beginning on.
        """
        try:
            if self._stop_file is not None and self._stop_file.exists():
                raise Stopping("the server is stopping; ask another one, or again")
            self._count(1)
            try:
                output, restored = await self._restore(request, is_cancelled, tell)
            finally:
                self._count(-1)
        except Exception as error:
            kind, told = self._failure(error)
            self._counters.add("ipt_failures_total", kind)
            if told is None:
                raise
            return pb_utils.InferenceResponse(error=told)
        finally:
            self._counters.send()
        return pb_utils.InferenceResponse([pb_utils.Tensor(output, restored)])

    def _failure(self, error):
        """Which of FAILURES an error is, and the TritonError that the caller gets; None for what nobody expected."""
        triton = pb_utils.TritonError
        if isinstance(error, InvalidRequest):
            return "invalid", triton(str(error), triton.INVALID_ARG)
        if isinstance(error, Stopping):
            return "stopping", triton(str(error), triton.UNAVAILABLE)
        if isinstance(error, Busy):
            return "busy", triton(str(error), triton.UNAVAILABLE)
        if isinstance(error, FloatingPointError):
            return "not_finite", triton(str(error), triton.INTERNAL)
        if isinstance(error, Cancelled):
            return "cancelled", triton("the caller has left; the rest of the image was not computed", triton.CANCELLED)
        if not isinstance(error, PartFailure):
            return "fault", None
        if "not healthy" in str(error):  # its process is gone; ipt-serve starts the server again
            return "part", triton(str(error), triton.UNAVAILABLE)
        if "shared memory pool" in str(error):
            if self._board is not None:
                self._board.tell_no_memory()
            return "no_memory", triton(NO_MEMORY, triton.UNAVAILABLE)
        return "part", error.args[0]

    def _count(self, change):
        if self._under_way is not None:
            self._under_way.increment(change)

    async def _restore(self, request, is_cancelled, tell):
        """The name of the output and the restored image; see `_answer`."""
        name, image = self._image(request)
        output = _output_name(request, name)
        chain = self._chain(request)
        stride = _number(request, "STRIDE", self._stride)
        keep = _number(request, "KEEP", self._keep)
        try:
            check_rule(stride, keep, self._patch)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        self._check_size(image, chain, output)
        patches = self._check_work(image, chain, stride)
        pixels = image.shape[0] * image.shape[1]
        within = _within(request)
        kind = FLOAT if output == FLOAT_OUTPUT else image.dtype.name

        def note(left):
            if self._board is not None:
                self._board.write(left)
            if tell is not None:
                tell(patches - left, patches)

        passed = _passed(request)
        try:
            if self._board is not None:
                self._board.begin(chain[0]["id"], patches, self._chunk, within)
            if tell is not None:
                tell(0, patches)
            left = patches
            for stage, task in enumerate(chain, 1):
                if self._board is not None:
                    self._board.turn_to(task["id"])
                last = stage == len(chain)
                with self._timed(task, "cut"):
                    tiler = Tiler(image, task["scale"], self._patch, stride, keep, kind if last else FLOAT)
                try:
                    await self._run(tiler, task, left, is_cancelled, note, passed)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{_stage(chain, stage)}{error}") from error
                left -= tiler.count
                with self._timed(task, "join"):
                    image = tiler.result()
            whole = SEVERAL if len(chain) > 1 else chain[0]["name"]
            self._counters.add("ipt_photographs_total", whole)
            self._counters.add("ipt_pixels_total", whole, value=pixels)
            return output, image
        finally:
            if self._board is not None:
                self._board.end()

    @contextmanager
    def _timed(self, task, step):
        """Counts the seconds of the block as one of STEPS of a task."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._counters.add("ipt_step_seconds_total", task["name"], step, value=time.perf_counter() - started)

    async def _run(self, tiler, task, left, is_cancelled, note, passed):
        """All patches through a task's ensemble, at most `requests_in_flight` chunks under way, joined in order.

        As long as a smaller photograph is under way it is one chunk, and none while there are as many smaller ones as
        bodies; LARGE_CHUNKS tells what gives way still more. `left` patches of the whole chain are to be answered;
        `note` is told how many still are. `passed` goes along with each chunk, see `_passed`.
        """
        ensemble, side = "ipt_" + task["name"], self._patch * task["scale"]
        pending, smaller_came = [], -math.inf

        async def take():
            nonlocal left
            with self._timed(task, "wait"):
                answers = await pending.pop(0)
            self._counters.add("ipt_patches_total", task["name"], value=len(answers))
            with self._timed(task, "join"):
                tiler.add(answers)
            left -= len(answers)
            note(left)

        def smaller():
            """How many smaller photographs are under way; one more is awaited for LINGER_S, if this one is large."""
            nonlocal smaller_came
            before = 0 if self._board is None else self._board.before()
            if before and self._board.before(2):  # single patches, such as heartbeats, are soon done
                smaller_came = time.monotonic()
            return before or int(lately(LINGER_S))

        def is_large():
            return left > LARGE_CHUNKS * self._chunk

        def lately(seconds=LATELY_S):
            return is_large() and time.monotonic() - smaller_came < seconds

        def chunks():
            for first, last in tiler.batches(self._chunk, self._bodies):
                while first < last:
                    until = min(last, first + self._small_chunk) if lately() else last
                    yield first, until
                    first = until

        def most():
            if smaller():
                return 1
            return self._bodies if lately() else self._in_flight

        try:
            for number, (first, last) in enumerate(chunks()):
                while pending and len(pending) >= most():
                    await take()
                since, look = time.monotonic(), LOOK_S[0]
                with self._timed(task, "turn"):
                    while before := smaller():
                        few = before < self._bodies  # too few for all bodies
                        patience = PATIENCE_S if not few else GIVE_WAY_S if lately() else 0
                        if time.monotonic() - since >= patience:
                            break
                        await asyncio.sleep(look)
                        look = LOOK_S[0] if few else min(2 * look, LOOK_S[1])
                        note(left)
                        if is_cancelled():
                            raise Cancelled
                if is_cancelled():
                    raise Cancelled
                with self._timed(task, "cut"):
                    patches = tiler.patches(first, last)
                if number >= TRACED_CHUNKS:
                    passed.pop("trace", None)
                pending.append(asyncio.ensure_future(self._restore_patches(ensemble, patches, side, dict(passed))))
            while pending:
                await take()
        finally:
            await asyncio.gather(*pending, return_exceptions=True)

    async def _restore_patches(self, ensemble, patches, side, passed):
        """Answers [n, 3, side, side] for patches [n, 3, patch, patch]; a chunk that goes wrong is tried once more."""
        try:
            return await self._ask(ensemble, patches, side, passed)
        except (PartFailure, UnfitAnswer) as error:
            request = f"[request id: {passed['request_id'] or '<id_unknown>'}] "  # as Triton's own lines name it
            pb_utils.Logger.log_warn(f"{request}{ensemble}: {error}; the chunk is sent again")
        try:
            return await self._ask(ensemble, patches, side, passed)
        except UnfitAnswer as error:
            raise PartFailure(pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)) from error

    async def _ask(self, ensemble, patches, side, passed):
        request = pb_utils.InferenceRequest(
            model_name=ensemble,
            requested_output_names=["RESTORED", SEAL] if self._sealed else ["RESTORED"],
            inputs=[pb_utils.Tensor("IMAGE", patches)],
            # Left to itself, Triton hands on what TensorRT computed where it lies: on the GPU, out of numpy's reach.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            **passed,
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

    def _chain(self, request):
        """The tasks of a request, one after the other."""
        numbers, names = (pb_utils.get_input_tensor_by_name(request, name) for name in ("TASK_ID", "TASK"))
        known = ", ".join(f"{t['id']} {t['name']}" for t in self._tasks)
        given = {}
        if numbers is not None:
            given["TASK_ID"] = [int(number) for number in numbers.as_numpy()]
        if names is not None:
            texts = [text.decode("utf-8", "replace") for text in names.as_numpy()]
            given["TASK"] = [name.strip() for text in texts for name in text.split(",")]
        lengths = {name: len(values) for name, values in given.items()}
        if not any(lengths.values()):
            raise InvalidRequest(f"no task given; give TASK_ID or TASK, one of: {known}")
        if len(set(lengths.values())) > 1 or max(lengths.values()) > self._longest_chain:
            many = " and ".join(f"{name} of {length}" for name, length in lengths.items())
            raise InvalidRequest(
                f"a chain with {many} is not allowed; give 1 to {self._longest_chain}, as many in TASK as in TASK_ID"
            )
        stages = [dict(zip(given, values)) for values in zip(*given.values())]
        return [self._task(stage, _stage(stages, place), known) for place, stage in enumerate(stages, 1)]

    def _task(self, asked, stage, known):
        """The task with this TASK_ID and TASK, as far as they are given."""
        for task in self._tasks:
            own = {"TASK_ID": task["id"], "TASK": task["name"]}
            if all(own[name] == value for name, value in asked.items()):
                return task
        values = " with ".join(f"{name} {value!r:.100}" for name, value in asked.items())
        raise InvalidRequest(f"{stage}{values} is not a task of this server; there are: {known}")

    def _check_size(self, image, chain, output):
        """What a stage takes is bounded like an image, and what it makes like a result; a floating result is twice as
        large in memory as the largest other one, so half as many pixels are allowed."""
        height, width = image.shape[:2]
        sides = factors([task["scale"] for task in chain])
        for place, (task, before, after) in enumerate(zip(chain, sides, sides[1:]), 1):
            what = f"{_stage(chain, place)}an image of {width * before}x{height * before}"
            most = self._max_output // (2 if output == FLOAT_OUTPUT and place == len(chain) else 1)
            for words, factor, limit, flag in (
                ("", before, self._max_input, "--max-input-pixels"),
                (f" restored by {task['name']}", after, most, "--max-output-pixels"),
            ):
                pixels = height * width * factor**2
                if pixels > limit:
                    raise InvalidRequest(
                        f"{what}{words} has {pixels} pixels; at most {limit} are allowed; "
                        f"send it in parts, or export with a higher {flag}"
                    )

    def _check_work(self, image, chain, stride):
        height, width = image.shape[:2]
        patches = count_patches(height, width, self._patch, stride, [task["scale"] for task in chain])
        if patches > self._max_patches:
            stages = f" over {len(chain)} stages" if len(chain) > 1 else ""
            raise InvalidRequest(
                f"an image of {width}x{height} makes {patches} patches at STRIDE {stride}{stages}; at most "
                f"{self._max_patches} are allowed; use a higher STRIDE (by default it is {self._stride}), "
                "send it in parts, or export with a higher --max-patches"
            )
        return patches


class Counters:
    """What the routers of a server count together, for Prometheus; on a server without metrics, nothing.

    All that may be counted is there from the beginning, as 0. Each change of a metric is a message to Triton, so counts
    are kept until `send`.
    """

    def __init__(self, tasks):
        self._metrics, self._families, self._kept = {}, [], Counter()
        each = [{"task": name} for name in tasks]
        whole = [*each, {"task": SEVERAL}]
        steps = [{**task, "step": step} for task in each for step in STEPS]
        kinds = [{"kind": kind} for kind in FAILURES]
        try:
            self._add_family("ipt_photographs_total", "Photographs that were restored", whole)
            self._add_family("ipt_pixels_total", "Pixels of the photographs that were restored", whole)
            self._add_family("ipt_patches_total", "Patches that were answered", each)
            self._add_family("ipt_step_seconds_total", "Seconds that photographs spent in a step of the router", steps)
            self._add_family("ipt_failures_total", "Photographs that were not restored", kinds)
        except pb_utils.TritonModelException:
            pass

    def _add_family(self, name, description, labels):
        family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._families.append(family)  # must outlive its metrics
        for each in labels:
            self._metrics[(name, *each.values())] = family.Metric(labels=each)

    def add(self, name, *labels, value=1):
        self._kept[(name, *labels)] += value

    def send(self):
        for key, value in self._kept.items():
            if key in self._metrics:
                self._metrics[key].increment(value)
        self._kept.clear()


class Stopping(Exception):
    """The server was told to stop."""


class Cancelled(Exception):
    """The caller has cancelled, timed out or gone away."""


class PartFailure(Exception):
    """An ensemble answered with an error; carries Triton's TritonError."""

    def __str__(self):
        return self.args[0].message()


class UnfitAnswer(Exception):
    """An ensemble answered with something that does not belong to the patches it was given."""


def _passed(request):
    """What requests to the ensembles take over from the caller's: the id, for logs, and the trace."""
    return {"request_id": request.request_id(), "trace": request.trace()}


def _output_name(request, image):
    """The output for an image of this name: its own, if that is asked for, or the floating one."""
    asked = request.requested_output_names()  # all outputs, if the caller names none
    for output in (OUTPUTS[image], FLOAT_OUTPUT):
        if output in asked:
            return output
    raise InvalidRequest(
        f"{image} is restored to {OUTPUTS[image]} or {FLOAT_OUTPUT}, but {', '.join(asked)} was asked for; "
        f"ask for {OUTPUTS[image]}"
    )


def _stage(chain, place):
    """Beginning of a message about one of several stages."""
    return f"stage {place} of {len(chain)}: " if len(chain) > 1 else ""


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
