"""The served pipeline against the PyTorch oracle, through a real server."""

from __future__ import annotations

import random
import shutil
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import tritonclient.grpc as triton
from google.protobuf import text_format
from helpers.serve import assert_batches_are_shared, check_that_nothing_is_computed_any_more, computed
from helpers.support import Served, read_image
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from ipt_triton import RestorationClient, ServerUnavailable
from ipt_triton.export.serving.errors import WarmUpError
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.tiling import Tiler, count_patches
from ipt_triton.train.model.infer import restore_image
from ipt_triton.train.model.ipt import OFFICIAL_TASKS

pytestmark = pytest.mark.server

TASKS = [t.name for t in OFFICIAL_TASKS]


def tensor(name: str, values: np.ndarray, kind: str) -> triton.InferInput:
    entry = triton.InferInput(name, list(values.shape), kind)
    entry.set_data_from_numpy(values)
    return entry


def ask(served: Served, outputs: tuple[str, ...] = (), **inputs: tuple[np.ndarray, str]) -> triton.InferResult:
    """One raw request to the router, as any Triton client would send it."""
    with triton.InferenceServerClient(served.server.grpc_url) as connection:
        return connection.infer(
            "restore",
            [tensor(name, values, kind) for name, (values, kind) in inputs.items()],
            outputs=[triton.InferRequestedOutput(o) for o in outputs] or None,
        )


def image(height: int = 60, width: int = 70) -> np.ndarray:
    return read_image("parrot")[100 : 100 + height, 200 : 200 + width]


@pytest.mark.parametrize("task", TASKS)
def test_served_image_is_within_one_grey_level_of_pytorch(served: Served, client: RestorationClient, task: str):
    photo = image(131, 150)
    expected = restore_image(served.checkpoint.model, photo, task)
    difference = np.abs(client.restore(photo, task).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(("stride", "keep"), [(12, 24), (48, 48), (30, 36)])
def test_served_tiling_rule_is_that_of_pytorch(served: Served, client: RestorationClient, stride: int, keep: int):
    photo = image(101, 97)
    expected = restore_image(served.checkpoint.model, photo, "derain", stride, keep)
    difference = np.abs(client.restore(photo, "derain", stride=stride, keep=keep).astype(int) - expected)
    assert difference.max() <= 1
    default = client.restore(photo, "derain")
    assert (default != client.restore(photo, "derain", stride=stride, keep=keep)).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (47, 48), (48, 48), (49, 120)])
def test_any_size_is_served(served: Served, client: RestorationClient, shape: tuple[int, int]):
    photo = read_image("dog")[: shape[0], : shape[1]]
    expected = restore_image(served.checkpoint.model, photo, "sr_x3")
    restored = client.restore(photo, "sr_x3")
    assert restored.shape == (shape[0] * 3, shape[1] * 3, 3)
    assert np.abs(restored.astype(int) - expected).max() <= 1


def test_sixteen_bit_image_is_restored_to_sixteen_bit(served: Served, client: RestorationClient):
    photo = image().astype(np.uint16) * 257 + 31
    expected = restore_image(served.checkpoint.model, photo, "sr_x2")
    restored = client.restore(photo, "sr_x2")
    assert restored.dtype == np.uint16
    assert np.abs(restored.astype(int) - expected).max() <= 3


def test_result_does_not_depend_on_concurrency_or_order(served: Served, client: RestorationClient):
    photos = [image(60 + 7 * i, 130 - 9 * i) for i in range(4)]
    jobs = [(photo, task) for photo in photos for task in TASKS]
    alone = [client.restore(photo, task) for photo, task in jobs]
    order = list(range(len(jobs)))
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        together = dict(zip(order, pool.map(lambda i: client.restore(*jobs[i]), order), strict=True))
    for index, expected in enumerate(alone):
        np.testing.assert_array_equal(together[index], expected)


def test_callers_share_body_batches_and_each_result_is_right(served: Served):
    patches = np.random.default_rng(0).integers(0, 256, (4, 1, 3, 48, 48)).astype(np.float32)
    assert_batches_are_shared(served.server.grpc_url, [("derain", patch) for patch in patches])


def test_task_may_be_named_by_id_name_or_both(served: Served):
    photo = (image(), "UINT8")
    by_id = ask(served, IMAGE=photo, TASK_ID=(np.array([3], np.int32), "INT32")).as_numpy("RESTORED")
    by_name = ask(served, IMAGE=photo, TASK=(np.array([b"derain"], object), "BYTES")).as_numpy("RESTORED")
    by_both = ask(
        served, IMAGE=photo, TASK_ID=(np.array([3], np.int32), "INT32"), TASK=(np.array([b"derain"], object), "BYTES")
    ).as_numpy("RESTORED")
    np.testing.assert_array_equal(by_id, by_name)
    np.testing.assert_array_equal(by_id, by_both)


def oracle(served: Served, photo: np.ndarray, chain: list[str]) -> np.ndarray:
    """A chain by PyTorch, without rounding in between."""
    for task in chain[:-1]:
        photo = restore_image(served.checkpoint.model, photo.astype(np.float32), task)
    tiler = Tiler(photo, served.checkpoint.model.task(chain[-1]).scale, dtype="uint8")
    with torch.no_grad():
        tiler.add(served.checkpoint.model(torch.from_numpy(tiler.patches(0, tiler.count)), chain[-1]).numpy())
    return tiler.result()


@pytest.mark.parametrize("chain", [["derain", "sr_x2"], ["denoise_50", "derain", "sr_x3"]])
def test_a_chain_is_within_one_grey_level_of_pytorch_and_may_be_named_in_three_ways(
    served: Served, chain: list[str]
) -> None:
    photo = image(70, 90)
    ids = np.array([TASKS.index(task) for task in chain], np.int32)
    for asked in (
        {"TASK": (np.array([",".join(chain).encode()], object), "BYTES")},
        {"TASK": (np.array([task.encode() for task in chain], object), "BYTES")},
        {"TASK_ID": (ids, "INT32")},
    ):
        restored = ask(served, IMAGE=(photo, "UINT8"), **asked).as_numpy("RESTORED")
        difference = np.abs(restored.astype(int) - oracle(served, photo, chain))
        assert difference.max() <= 1 and (difference > 0).mean() < 2e-3


def test_a_floating_result_is_what_pytorch_computes_neither_rounded_nor_clipped(served: Served) -> None:
    photo = np.random.default_rng(0).integers(0, 2, (60, 50, 3), np.uint8) * 255
    expected = restore_image(served.checkpoint.model, photo.astype(np.float32), "sr_x2")
    assert expected.max() > 255.5
    restored = ask(served, ("RESTORED32",), IMAGE=(photo, "UINT8"), TASK_ID=(np.array([0], np.int32), "INT32"))
    np.testing.assert_allclose(restored.as_numpy("RESTORED32"), expected, atol=1e-2)


IMAGE = (np.zeros((50, 50, 3), np.uint8), "UINT8")
IMAGE16 = (np.zeros((50, 50, 3), np.uint16), "UINT16")
DERAIN = (np.array([3], np.int32), "INT32")


def number(value: int) -> tuple[np.ndarray, str]:
    return np.array([value], np.int32), "INT32"


def names(value: str) -> tuple[np.ndarray, str]:
    return np.array([value.encode()], object), "BYTES"


@pytest.mark.parametrize(
    ("outputs", "inputs", "words"),
    [
        ((), {"IMAGE": IMAGE}, "give TASK_ID or TASK, one of: 0 sr_x2, 1 sr_x3"),
        ((), {"IMAGE": IMAGE, "TASK_ID": number(17)}, "TASK_ID 17 is not a task of this server; there are: 0 sr_x2"),
        ((), {"IMAGE": IMAGE, "TASK": (np.array([b"sharpen"], object), "BYTES")}, "TASK 'sharpen' is not a task"),
        (
            (),
            {"IMAGE": IMAGE, "TASK_ID": DERAIN, "TASK": (np.array([b"sr_x2"], object), "BYTES")},
            "TASK_ID 3 with TASK 'sr_x2' is not a task",
        ),
        ((), {"TASK_ID": DERAIN}, "no image given; give one of IMAGE and IMAGE16"),
        ((), {"IMAGE": IMAGE, "IMAGE16": IMAGE16, "TASK_ID": DERAIN}, "IMAGE and IMAGE16 given; give one"),
        (
            ("RESTORED16",),
            {"IMAGE": IMAGE, "TASK_ID": DERAIN},
            "IMAGE is restored to RESTORED or RESTORED32, but RESTORED16",
        ),
        (("RESTORED",), {"IMAGE16": IMAGE16, "TASK_ID": DERAIN}, "ask for RESTORED16"),
        (
            (),
            {"IMAGE": IMAGE, "TASK_ID": DERAIN, "STRIDE": number(0)},
            "STRIDE 0 is not allowed: it must be from 1 to KEEP",
        ),
        ((), {"IMAGE": IMAGE, "TASK_ID": DERAIN, "STRIDE": number(47)}, "STRIDE 47 is not allowed"),
        (
            (),
            {"IMAGE": IMAGE, "TASK_ID": DERAIN, "KEEP": number(50)},
            "KEEP 50 is not allowed: it must be even and from 2 to 48",
        ),
        ((), {"IMAGE": IMAGE, "TASK_ID": DERAIN, "KEEP": number(35)}, "KEEP 35 is not allowed"),
        ((), {"IMAGE": (np.zeros((0, 9, 3), np.uint8), "UINT8"), "TASK_ID": DERAIN}, "[height, width, 3] from 1x1 on"),
        (
            (),
            {"IMAGE": (np.zeros((1001, 1000, 3), np.uint8), "UINT8"), "TASK_ID": DERAIN},
            "1001000 pixels; at most 1000000 are allowed",
        ),
        (
            (),
            {"IMAGE": (np.zeros((500, 501, 3), np.uint8), "UINT8"), "TASK_ID": number(1)},
            "restored by sr_x3 has 2254500 pixels; at most 2000000 are allowed",
        ),
        (
            (),
            {
                "IMAGE": (np.zeros((1000, 1000, 3), np.uint8), "UINT8"),
                "TASK_ID": DERAIN,
                "STRIDE": number(1),
            },
            "an image of 1000x1000 makes 908209 patches at STRIDE 1; at most 6944 are allowed; use a higher STRIDE (by "
            "default it is 40), send it in parts, or export with a higher --max-patches",
        ),
        ((), {"IMAGE": IMAGE, "TASK": names("derain,sharpen,sr_x2")}, "stage 2 of 3: TASK 'sharpen' is not a task"),
        (
            (),
            {"IMAGE": IMAGE, "TASK": names(",".join(9 * ["derain"]))},
            "a chain with TASK of 9 is not allowed; give 1",
        ),
        (
            (),
            {"IMAGE": IMAGE, "TASK": names("derain,sr_x2"), "TASK_ID": DERAIN},
            "TASK_ID of 1 and TASK of 2 is not all",
        ),
        (
            (),
            {"IMAGE": (np.zeros((500, 500, 3), np.uint8), "UINT8"), "TASK": names("derain,sr_x2,sr_x2")},
            "stage 3 of 3: an image of 1000x1000 restored by sr_x2 has 4000000 pixels; at most 2000000 are allowed",
        ),
        (
            (),
            {"IMAGE": (np.zeros((500, 600, 3), np.uint8), "UINT8"), "TASK": names("sr_x2,derain")},
            "stage 2 of 2: an image of 1200x1000 has 1200000 pixels; at most 1000000 are allowed",
        ),
        (
            (),
            {
                "IMAGE": (np.zeros((400, 400, 3), np.uint8), "UINT8"),
                "TASK": names("derain,derain"),
                "STRIDE": number(6),
            },
            "makes 7200 patches at STRIDE 6 over 2 stages; at most 6944 are allowed",
        ),
        (
            ("RESTORED32",),
            {"IMAGE": (np.zeros((600, 600, 3), np.uint8), "UINT8"), "TASK": names("sr_x2")},
            "restored by sr_x2 has 1440000 pixels; at most 1000000 are allowed",
        ),
        (
            (),
            {"IMAGE": (np.zeros((1, 300_000, 3), np.uint8), "UINT8"), "TASK_ID": DERAIN},
            "an image of 300000x1 makes 7500 patches at STRIDE 40; at most 6944 are allowed",
        ),
    ],
)
def test_wrong_request_is_refused_with_a_sentence_that_names_it(
    served: Served, outputs: tuple[str, ...], inputs: dict[str, tuple[np.ndarray, str]], words: str
):
    with pytest.raises(InferenceServerException) as caught:
        ask(served, outputs, **inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in caught.value.message()


def test_router_tells_tasks_and_limits(served: Served, client: RestorationClient):
    assert [(t.id, t.name, t.kind, t.scale, t.sigma) for t in client.tasks()] == [
        (t.id, t.name, t.kind, t.scale, t.sigma) for t in OFFICIAL_TASKS
    ]
    with triton.InferenceServerClient(served.server.grpc_url) as connection:
        parameters = {k: v.string_value for k, v in connection.get_model_config("restore").config.parameters.items()}
    assert parameters["checkpoint_sha256"] == served.checkpoint.sha256
    assert {k: parameters[k] for k in ("patch_size", "stride", "keep", "runtime", "precision")} == {
        "patch_size": "48",
        "stride": "40",
        "keep": "46",
        "runtime": "openvino",
        "precision": "fp32",
    }
    assert (parameters["max_input_pixels"], parameters["max_output_pixels"]) == ("1000000", "2000000")
    assert parameters["max_patches"] == "6944"  # what stride 12 makes of the largest image


def test_caller_who_leaves_stops_the_rest_of_the_image(served: Served):
    photo = np.zeros((960, 1000, 3), np.uint8)
    before = computed(served)
    with triton.InferenceServerClient(served.server.grpc_url) as connection, pytest.raises(InferenceServerException):
        inputs = [tensor("IMAGE", photo, "UINT8"), tensor("TASK_ID", DERAIN[0], "INT32")]
        connection.infer("restore", inputs, client_timeout=0.3)
    check_that_nothing_is_computed_any_more(served, before, photo)


def test_part_that_computes_nan_is_an_error_and_the_server_does_not_get_ready(served: Served, tmp_path: Path):
    repository = tmp_path / "models"
    shutil.copytree(served.repository, repository)
    path = repository / "body" / "1" / "tail_derain.onnx"
    graph = onnx.load(path)
    bias = next(i for i in graph.graph.initializer if list(i.dims) == [3])
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0, 0], np.float32), bias.name))
    path.unlink()  # a copy of its own, whatever links there are
    onnx.save(graph, path)
    failure = "task derain failed: .*the network returned NaN or Inf for the patch at row 0, column 0"
    with pytest.raises(WarmUpError, match=failure), TritonServer(repository):
        pass


@pytest.mark.parametrize(
    ("image_input", "words"),
    [
        ((np.zeros((50, 50, 3), np.float32), "FP32"), "data-type is 'FP32', but model 'restore' expects 'UINT8'"),
        ((np.zeros((50, 50), np.uint8), "UINT8"), "unexpected shape for input 'IMAGE'"),
        ((np.zeros((50, 50, 4), np.uint8), "UINT8"), "Expected [-1,-1,3], got [50,50,4]"),
    ],
)
def test_wrong_type_rank_or_channels_are_refused_by_name(
    served: Served, image_input: tuple[np.ndarray, str], words: str
):
    with pytest.raises(InferenceServerException) as caught:
        ask(served, IMAGE=image_input, TASK_ID=DERAIN)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in caught.value.message()


def metrics(server: TritonServer) -> dict[str, float]:
    """The routers' metrics, by name with labels."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("ipt_")}


def under_way(server: TritonServer) -> float:
    """What the routers' metric says, over all instances."""
    counts = [count for name, count in metrics(server).items() if name.startswith("ipt_photographs_under_way{")]
    assert len(counts) > 1
    return sum(counts)


def test_all_instances_count_photographs_pixels_patches_seconds_and_failures_together(
    served: Served, client: RestorationClient
):
    before = metrics(served.server)
    photo = image(100, 90)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.restore(photo, "sr_x2"), range(8)))
    client.restore(photo, "derain,sr_x2", progress=lambda done, due: None)  # by the model that tells its progress
    took = time.monotonic() - started
    with pytest.raises(InferenceServerException):
        ask(served, IMAGE=(photo, "UINT8"), TASK_ID=(np.array([99], np.int32), "INT32"))
    after = metrics(served.server)
    assert after.keys() == before.keys()  # nothing appears when it is first counted
    counted = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    seconds = {name: counted.pop(name) for name in list(counted) if name.startswith("ipt_step_seconds_total")}
    one = count_patches(100, 90)
    assert counted == {
        'ipt_photographs_total{task="sr_x2"}': 8,
        'ipt_photographs_total{task="several"}': 1,
        'ipt_pixels_total{task="sr_x2"}': 8 * 9000,
        'ipt_pixels_total{task="several"}': 9000,
        'ipt_patches_total{task="sr_x2"}': 9 * one,
        'ipt_patches_total{task="derain"}': one,
        'ipt_failures_total{kind="invalid"}': 1,
    }
    assert len(seconds) == 8 and all(second > 0 for second in seconds.values())
    assert sum(seconds.values()) < 5 * took


def test_a_server_that_is_told_to_stop_answers_the_photographs_under_way_first(
    served: Served, client: RestorationClient
):
    photo = image(400, 400)
    expected = client.restore(photo, "derain")
    with TritonServer(served.repository) as server, ThreadPoolExecutor() as pool:
        assert under_way(server) == 0  # the warm-up has been answered
        with RestorationClient(server.grpc_url) as connection:
            answers = [pool.submit(connection.restore, photo, "derain") for _ in range(6)]
            while under_way(server) < len(answers):
                assert not any(answer.done() for answer in answers)
            server.stop(grace=60)
            assert all(np.array_equal(answer.result(), expected) for answer in answers)


def test_photographs_that_cannot_be_restored_do_not_stay_under_way(served: Served):
    for inputs in ({"TASK_ID": (np.array([99], np.int32), "INT32")}, {"STRIDE": (np.array([0], np.int32), "INT32")}):
        with pytest.raises(InferenceServerException):
            ask(served, IMAGE=(image(), "UINT8"), **inputs)
    assert under_way(served.server) == 0


def test_a_server_without_metrics_serves_and_stops(served: Served, client: RestorationClient):
    photo = image()
    with (
        TritonServer(served.repository, extra_args=["--allow-metrics=false"]) as server,
        RestorationClient(server.grpc_url) as connection,
    ):
        assert np.array_equal(connection.restore(photo, "sr_x2"), client.restore(photo, "sr_x2"))


@pytest.mark.slow
def test_a_full_queue_refuses_at_once_and_the_rest_is_right(served: Served, tmp_path: Path):
    repository = Path(shutil.copytree(served.repository, tmp_path / "models"))
    path = repository / "restore" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    config.instance_group[0].count, config.dynamic_batching.default_queue_policy.max_queue_size = 1, 2
    config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 0  # however slow the machine is
    path.write_text(text_format.MessageToString(config))
    photo = image(200, 200)
    with TritonServer(repository) as server:

        def ask_once(_: int) -> np.ndarray | str:
            try:
                with RestorationClient(server.grpc_url, retries=0) as client:
                    return client.restore(photo, "derain")
            except ServerUnavailable as error:
                return str(error)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask_once, range(12)))
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert refused and all("maximum queue size" in text for text in refused)
    expected = restore_image(served.checkpoint.model, photo, "derain").astype(int)
    restored = [answer for answer in answers if not isinstance(answer, str)]
    assert 3 <= len(restored) < 12 and all(np.abs(answer - expected).max() <= 1 for answer in restored)
