"""The first requests of a fresh server: one small image per task, through the router.

Triton's own `model_warmup` cannot do this: on an ensemble it is refused, and on a router it kills the server.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from ipt_triton.export.serving.errors import WarmUpError
from ipt_triton.service import ROUTER, ServiceError, served_tasks
from ipt_triton.tasks import Task

_SIDE = 64


def read_tasks(client: triton.InferenceServerClient) -> tuple[Task, ...]:
    """Read the task table from the router's configuration; raise WarmUpError when there is none."""
    try:
        router = client.get_model_config(ROUTER, client_timeout=30).config
        return served_tasks({name: p.string_value for name, p in router.parameters.items()})
    except (triton.InferenceServerException, ServiceError) as error:
        raise WarmUpError(
            f"the router's configuration tells no tasks ({error}): run ipt-export CHECKPOINT again"
        ) from error


def warm_up(grpc_url: str, pause: Callable[[], None]) -> tuple[Task, ...]:
    """Restore one 64x64 image per task, which starts every engine on its way; return the tasks.

    `pause` is called again and again while an answer is awaited: it sleeps a little and raises when there is no point
    in waiting on. Raises WarmUpError when a request fails or RESTORED is not UINT8 [64*scale, 64*scale, 3].
    """
    rows, columns = np.indices((_SIDE, _SIDE))
    image = np.stack([4 * columns, 4 * rows, 2 * (rows + columns)], axis=-1).astype(np.uint8)
    with triton.InferenceServerClient(grpc_url) as client:
        tasks = read_tasks(client)
        for task in tasks:
            _restore(client, task, image, pause)
    return tasks


def _restore(
    client: triton.InferenceServerClient, task: Task, image: np.ndarray[Any, Any], pause: Callable[[], None]
) -> None:
    picture = triton.InferInput("IMAGE", list(image.shape), "UINT8")
    picture.set_data_from_numpy(image)
    number = triton.InferInput("TASK_ID", [1], "INT32")
    number.set_data_from_numpy(np.array([task.id], np.int32))
    answers: queue.SimpleQueue[tuple[triton.InferResult | None, Exception | None]] = queue.SimpleQueue()
    # Asked for by name: without a list Triton asks the router for RESTORED16 as well, which an 8-bit image cannot give.
    wanted_output = [triton.InferRequestedOutput("RESTORED")]
    client.async_infer(
        ROUTER, [picture, number], lambda result, error: answers.put((result, error)), outputs=wanted_output
    )
    while answers.empty():
        pause()
    result, failure = answers.get()
    if failure is not None or result is None:
        for _ in range(10):  # a server that ends now says more than the connection that it took along
            pause()
        raise WarmUpError(f"the warm-up request for task {task.name} failed: {failure}")
    restored = result.as_numpy("RESTORED")
    wanted = (_SIDE * task.scale, _SIDE * task.scale, 3)
    if restored is None or restored.shape != wanted or restored.dtype != np.uint8:
        got = "nothing" if restored is None else f"{restored.dtype} {restored.shape}"
        raise WarmUpError(
            f"the warm-up request for task {task.name} brought {got} for RESTORED, not uint8 {wanted}: "
            "run ipt-export CHECKPOINT again"
        )
