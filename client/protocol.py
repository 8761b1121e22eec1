"""What is said to the server, without saying it: its description, requests and answers, for both clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.client.errors import InvalidRequest, ServerError, UnknownTask
from ipt_triton.client.splitting import Block, split_image
from ipt_triton.service import ServiceError, ServiceInfo
from ipt_triton.tasks import Task, TaskError, find_task
from ipt_triton.tiling import check_rule

GRPC_BYTES = 2**31 - 1
"""The largest message of gRPC."""
_HEADROOM = 2**20  # of a message, for names and shapes
_TENSORS = {"uint8": ("IMAGE", "RESTORED"), "uint16": ("IMAGE16", "RESTORED16")}


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


def parse_info(config: Any, url: str) -> ServerInfo:
    """Read the configuration of the router (a ModelConfig message).

    Raises:
        ServerError: it lacks a parameter, so the server is not an ipt-triton router of this version.
    """
    try:
        return ServerInfo.from_parameters({name: value.string_value for name, value in config.parameters.items()})
    except ServiceError as error:
        raise ServerError(f"{error} at {url}; serve a repository of ipt-export") from error


class Restoration:
    """One image on its way: which blocks are asked for, each block's request, and the answers put together.

    For block in `blocks`: send `inputs(block)` and `outputs()`, hand the answer to `put`; then `result()`.

    Args:
        info: the server's description.
        image: uint8 or uint16 over the type's full range, RGB [height, width, 3] or gray [height, width].
        task: id or name.
        stride, keep: the tiling rule, None for the server's default.

    Raises:
        UnknownTask: no such task.
        InvalidRequest: wrong type, shape or rule, or an image that cannot be split to the server's limits.
    """

    def __init__(
        self, info: ServerInfo, image: NDArray[Any], task: int | str, stride: int | None, keep: int | None
    ) -> None:
        self._task = info.task(task)
        rule = info.rule(stride, keep)
        self._asked_rule = {"STRIDE": stride, "KEEP": keep}
        if image.dtype.name not in _TENSORS:
            raise InvalidRequest(f"an image of {image.dtype} cannot be restored; give {' or '.join(_TENSORS)}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
            raise InvalidRequest(
                f"an image of shape {list(image.shape)} cannot be restored; give RGB [height, width, 3] or gray "
                "[height, width] with at least one pixel"
            )
        self._is_gray = image.ndim == 2
        self._image = image
        self._input, self._output = _TENSORS[image.dtype.name]
        scale, (height, width) = self._task.scale, image.shape[:2]
        most = min(
            info.max_input_pixels,
            info.max_output_pixels // scale**2,
            (GRPC_BYTES - _HEADROOM) // (3 * image.dtype.itemsize * scale**2),
        )
        self.blocks: list[Block] = split_image(height, width, most, info.patch_size, *rule)
        self._restored = np.empty((height * scale, width * scale, *image.shape[2:]), image.dtype)

    def inputs(self, block: Block) -> list[triton.InferInput]:
        """The request's input tensors for a block."""
        pixels = block.cut(self._image)
        if self._is_gray:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        tensors = {self._input: np.ascontiguousarray(pixels), "TASK_ID": np.array([self._task.id], np.int32)}
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
        """The output that fits the image's type."""
        return [triton.InferRequestedOutput(self._output)]

    def put(self, block: Block, answer: triton.InferResult) -> None:
        """Take the answer to a block's request.

        Raises:
            ServerError: the answer has another shape or type than the task promises.
        """
        scale = self._task.scale
        rows, columns = block
        pixels = answer.as_numpy(self._output)
        expected = ((rows.stop - rows.start) * scale, (columns.stop - columns.start) * scale, 3)
        if pixels is None or pixels.shape != expected or pixels.dtype != self._image.dtype:
            got = "nothing" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
            raise ServerError(
                f"the server answered {got} where {self._image.dtype} {list(expected)} was due; look at its log"
            )
        if self._is_gray:
            # Three estimates of one value: their mean is the least noisy.
            pixels = (pixels.sum(axis=2, dtype=np.uint32) + 1) // 3
        block.put(pixels, self._restored, scale)

    def result(self) -> NDArray[Any]:
        """The restored image, [height * scale, width * scale] or [..., 3], once every block is put."""
        return self._restored


def parameters(timeout: float | None) -> dict[str, int] | None:
    """What a request tells of the time that it may take, so that a busy server need not begin what it cannot finish."""
    return None if timeout is None else {"within_ms": max(1, round(1000 * timeout))}
