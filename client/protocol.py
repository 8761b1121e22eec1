"""What is said to the server, without saying it: its description, requests and answers, for both clients."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.client.errors import InvalidRequest, ServerError, UnknownTask
from ipt_triton.client.options import Options, View, large_enough, unit, views
from ipt_triton.client.splitting import Block, split_image
from ipt_triton.service import ServiceError, ServiceInfo
from ipt_triton.tasks import LONGEST_CHAIN, Chain, Task, TaskError, TaskKey, find_task, stage_keys
from ipt_triton.tiling import FLOAT, check_rule, count_patches, factors

GRPC_BYTES = 2**31 - 1
"""The largest message of gRPC."""

MESSAGE_BYTES = 96 * 2**20
"""That an image in a request and its answer should not exceed together: all whom they pass hold them, and an event loop
waits while gRPC makes and reads them. Where a block would become too small for the rule, or less than half a megapixel,
they do."""

_HEADROOM = 2**20  # of a message, for names and shapes
_FEWEST_PIXELS = 500_000  # of a block that is smaller than the server asks for: its borders are computed twice
_TENSORS = {"uint8": ("IMAGE", "RESTORED"), "uint16": ("IMAGE16", "RESTORED16")}
_FLOAT_OUTPUT, _FLOAT_BYTES = "RESTORED32", 4


class ServerInfo(ServiceInfo):
    """What a server says about itself: its tasks, the default tiling rule, limits per request, and its model."""

    def task(self, key: int | str) -> Task:
        """The task with this id (an int, or its digits) or name.

        Raises:
            UnknownTask: naming the key and every task there is.
        """
        try:
            return find_task(self.tasks, key)
        except TaskError:
            known = ", ".join(f"{task.name} ({task.id})" for task in self.tasks)
            raise UnknownTask(f"task {key!r} is not served; choose one of {known}") from None

    def chain(self, key: TaskKey) -> Chain:
        """The tasks of a chain, in the order of the work; of a single id or name, that one.

        Raises:
            UnknownTask: naming the stage, the key and every task there is.
            InvalidRequest: none, or more than a chain may have.
        """
        keys = stage_keys(key)
        if not 1 <= len(keys) <= LONGEST_CHAIN:
            raise InvalidRequest(f"a chain of {len(keys)} tasks is not allowed; give 1 to {LONGEST_CHAIN}")
        found = []
        for stage, name in enumerate(keys, 1):
            try:
                found.append(self.task(name))
            except UnknownTask as error:
                raise UnknownTask(f"stage {stage} of {len(keys)}: {error}" if len(keys) > 1 else str(error)) from None
        return Chain(tuple(found))

    def rule(self, stride: int | None, keep: int | None) -> tuple[int, int]:
        """The tiling rule that holds for a request: stride and keep, the server's own where None is given.

        Raises:
            InvalidRequest: a rule that no tiling can follow.
        """
        rule = (self.stride if stride is None else stride, self.keep if keep is None else keep)
        try:
            check_rule(*rule, self.patch_size)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        return rule


def recipe(
    info: ServerInfo, chain: Chain, options: Options, stride: int | None, keep: int | None, **stored: object
) -> str:
    """How a result is made, for the history in its XMP: all that decides its contents beside the picture.

    Args:
        chain, options, stride, keep: see `Restoration`.
        stored: by name how the file is written, None for what is usual.
    """
    changed = {name: value for name, value in asdict(options).items() if value != getattr(Options(), name)}
    stored = {name: value for name, value in stored.items() if value is not None}
    tiles = "/".join(map(str, info.rule(stride, keep)))
    rest = [f"{name} {value}" for name, value in {**changed, **stored, "tiles": tiles}.items()]
    weights = ",".join(each[:12] for each in info.checkpoint_sha256.split(","))  # of all that the server has
    return "; ".join([chain.name, *rest, f"weights {weights}"])


def parse_info(config: Any, url: str) -> ServerInfo:
    """Read the configuration of the router (a ModelConfig message).

    Raises:
        ServerError: it lacks a parameter, so the server is not an ipt-triton router of this version.
    """
    try:
        return ServerInfo.from_parameters({name: value.string_value for name, value in config.parameters.items()})
    except ServiceError as error:
        raise ServerError(f"{error} at {url}; serve a repository of ipt-export") from error


class Part(NamedTuple):
    """What one request is about: a block of one view of the picture."""

    view: View
    block: Block


class Restoration:
    """One image on its way: which parts are asked for, each part's request, and the answers put together.

    For part in `parts`: send `inputs(part)` and `outputs()`, hand the answer to `put`; then `result()`.

    Args:
        info: the server's description.
        image: uint8 or uint16 over the type's full range, RGB [height, width, 3] or gray [height, width].
        task: id, name, or a chain.
        stride, keep: the tiling rule, None for the server's default.
        options: how the result may differ from what the tasks make of the image.
        request_id: that each request carries.

    Raises:
        UnknownTask: no such task.
        InvalidRequest: wrong type, shape or rule, a size that is not reached, or an image that cannot be split to the
            server's limits.
    """

    def __init__(
        self,
        info: ServerInfo,
        image: NDArray[Any],
        task: TaskKey,
        stride: int | None,
        keep: int | None,
        options: Options = Options(),  # noqa: B008  # frozen
        request_id: str = "",
    ) -> None:
        self.request_id = request_id
        chain = info.chain(task)
        self._rule = info.rule(stride, keep)
        self._asked_rule = {"STRIDE": stride, "KEEP": keep}
        if image.dtype.name not in _TENSORS:
            raise InvalidRequest(f"an image of {image.dtype} cannot be restored; give {' or '.join(_TENSORS)}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
            raise InvalidRequest(
                f"an image of shape {list(image.shape)} cannot be restored; give RGB [height, width, 3] or gray "
                "[height, width] with at least one pixel"
            )
        self._is_gray = image.ndim == 2
        self._image, self._options, self._info = image, options, info
        height, width = image.shape[:2]
        self.chain = large_enough(info.tasks, chain, options.factor(width, height))
        self._size = options.size(width, height, self.chain)
        self._input, self._output = _TENSORS[image.dtype.name]
        if options.tta:
            self._output = _FLOAT_OUTPUT
        self.parts = [
            Part(view, block)
            for view in (views() if options.tta else [View()])
            for block in self._split(*view.of(image).shape[:2])
        ]
        self.patches = sum(self.patches_of(part) for part in self.parts)
        scale = self.chain.scale
        make = np.zeros if options.tta else np.empty
        self._restored = make(
            (height * scale, width * scale, *image.shape[2:]), np.float32 if options.tta else image.dtype
        )

    def _split(self, height: int, width: int) -> list[Block]:
        """Blocks that the server takes: of so many pixels in each stage, and of so many patches in all of them."""
        info, scales = self._info, self.chain.scales
        item, floats = self._image.dtype.itemsize, 2 if self._output == _FLOAT_OUTPUT else 1
        pixel = 3 * max(item, _FLOAT_BYTES if floats > 1 else item) * self.chain.scale**2  # bytes of its answer
        most = min((GRPC_BYTES - _HEADROOM) // pixel, info.max_output_pixels // floats // self.chain.scale**2)
        for factor in factors(scales)[:-1]:
            most = min(most, info.max_input_pixels // factor**2)
        handy = max(MESSAGE_BYTES // (3 * item + pixel), _FEWEST_PIXELS)
        if handy < most:
            with suppress(InvalidRequest):
                return self._blocks(height, width, handy)
        return self._blocks(height, width, most)

    def _blocks(self, height: int, width: int, most: int) -> list[Block]:
        """Blocks of so many pixels, and of so many patches as the server takes."""
        info, scales = self._info, self.chain.scales
        blocks = split_image(height, width, most, info.patch_size, *self._rule, scales)
        while max(map(self._count, blocks)) > info.max_patches:
            most = min(most, height * width) // 2
            blocks = split_image(height, width, most, info.patch_size, *self._rule, scales)
        return blocks

    def _count(self, block: Block) -> int:
        """Patches of a block over all stages."""
        height, width = (piece.stop - piece.start for piece in block)
        return count_patches(height, width, self._info.patch_size, self._rule[0], self.chain.scales)

    def patches_of(self, part: Part) -> int:
        """Patches that the server computes for a part."""
        return self._count(part.block)

    def inputs(self, part: Part) -> list[triton.InferInput]:
        """The request's input tensors for a part."""
        pixels = part.block.cut(part.view.of(self._image))
        if self._is_gray:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        ids = np.array([task.id for task in self.chain.tasks], np.int32)
        tensors = {self._input: pixels, "TASK_ID": ids}
        for name, value in self._asked_rule.items():
            if value is not None:
                tensors[name] = np.array([value], np.int32)
        inputs = []
        for name, array in tensors.items():
            tensor = triton.InferInput(name, array.shape, array.dtype.name.upper())
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return inputs

    def outputs(self) -> list[triton.InferRequestedOutput]:
        """The output that is wanted."""
        return [triton.InferRequestedOutput(self._output)]

    def put(self, part: Part, answer: triton.InferResult) -> None:
        """Take the answer to a part's request.

        Raises:
            ServerError: the answer has another shape or type than the tasks promise.
        """
        scale, (view, block) = self.chain.scale, part
        pixels = answer.as_numpy(self._output)
        height, width = (scale * (piece.stop - piece.start) for piece in block)
        expected, kind = (height, width, 3), self._restored.dtype
        if pixels is None or pixels.shape != expected or pixels.dtype != kind:
            got = "nothing" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
            raise ServerError(f"the server answered {got} where {kind} {list(expected)} was due; look at its log")
        if self._is_gray:  # three estimates of one value: their mean is the least noisy
            pixels = pixels.mean(axis=2) if kind == FLOAT else (pixels.sum(axis=2, dtype=np.uint32) + 1) // 3
        block.put(pixels, view.of(self._restored), scale, add=self._options.tta)

    def result(self) -> NDArray[Any]:
        """The restored image in the type and with the number of dimensions of the one given, once every part is put."""
        if self._options.tta:
            self._restored *= unit(self._image.dtype) / len(list(views()))
        return self._options.finished(self._image, self._restored, self._size)


def parameters(timeout: float | None) -> dict[str, int] | None:
    """What a request tells of the time that it may take, so that a busy server need not begin what it cannot finish."""
    return None if timeout is None else {"within_ms": max(1, round(1000 * timeout))}
