"""Requests that contradict themselves, to Triton over gRPC and to the launcher's port over HTTP, each from its seed."""

from __future__ import annotations

import math
from random import Random

from helpers.hostile import hostile_bytes
from tritonclient.grpc import service_pb2 as pb

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (-1,), (2,), (3,), (2**31,), (2**63 - 1,), (-(2**63),), (1,) * 64]
SHAPES += [(1, 1), (1, 2), (7, 3), (1, 1, 3), (5, 7, 3), (5, 7, 4), (1, 0, 3), (0, 0, 0), (60, 70, 3), (2**62, 2, 3)]
SHAPES += [(40_000, 40_000, 3), (1, 500_000, 3), (1, 5, 7, 3), (8, 256, 72), (1, 8, 48, 48)]
SHAPES += [(n, 3, 48, 48) for n in (0, 1, 2, 9)]
LONG = "x" * 10_000
TYPES = ["UINT8", "UINT16", "INT32", "INT64", "FP32", "FP16", "BF16", "BYTES", "BOOL", "FP64", "", "uint8", LONG]
MODELS = ["restore", "restore_stream", "ipt_derain", "ipt_sr_x2", "body"]
MODELS += ["nothing", "", "../restore", LONG]
TENSORS = ["IMAGE", "IMAGE16", "TASK_ID", "TASK", "STRIDE", "KEEP"]
TENSORS += ["FEATURES", "TASK_EMBEDDING", "BODY_FEATURES", "SEAL"]
OUTPUTS = ["RESTORED", "RESTORED16", "RESTORED32", "PROGRESS", "SEAL", "IMAGE", "nothing", "", LONG]
PARAMETERS = ["classification", "sequence_id", "sequence_start", "priority", "timeout", "binary_data_size", "triton_x"]
PARAMETERS += ["headers", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "", LONG]
VALUES = {"int64_param": (0, -1, 2**62), "bool_param": (True, False), "string_param": ("", "region", LONG)}
METHODS = ["GET", "HEAD", "POST", "PUT", "", "G\0T", "GET GET", LONG]
PATHS = ["/readyz", "/livez", "/metrics", "/", "", "/../../etc/passwd", "/%00", "*", f"/{LONG}"]
LINES = ["Host: x", "Content-Length: -1", f"Content-Length: {10**12}", "Transfer-Encoding: chunked", ":", "x" * 99]
_SIZES = {"UINT8": 1, "BOOL": 1, "UINT16": 2, "FP16": 2, "BF16": 2, "INT32": 4, "FP32": 4, "INT64": 8, "FP64": 8}
_CONTENTS = ["bool_contents", "int_contents", "int64_contents", "uint_contents", "fp32_contents", "bytes_contents"]


def hostile_infer(random: Random) -> bytes:
    """A ModelInferRequest: a good one with changes, one of anything, or bytes that are none."""
    request = pb.ModelInferRequest(model_name="restore")
    for name, kind, shape, data in (
        ("IMAGE", "UINT8", (5, 7, 3), random.randbytes(105)),
        ("TASK_ID", "INT32", (1,), (3).to_bytes(4, "little")),
    ):
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(data)
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        _change(request, random)
    data = request.SerializeToString()
    return hostile_bytes(data, random) if random.random() < 0.15 else data


def _change(request: pb.ModelInferRequest, random: Random) -> None:
    one = random.choice(request.inputs) if request.inputs else request.inputs.add()
    change = random.randrange(14)
    if change == 0:
        request.model_name = random.choice(MODELS)
    elif change == 1:
        request.model_version = random.choice(("1", "-1", "2", "", "x" * 1000, "9" * 40))
    elif change == 2:
        one.name = random.choice((*TENSORS, "", "x" * 10_000))
    elif change == 3:
        one.datatype = random.choice(TYPES)
    elif change == 4:
        one.shape[:] = random.choice(SHAPES)
    elif change == 5 and request.raw_input_contents:
        place = random.randrange(len(request.raw_input_contents))
        size = random.choice((0, 1, 3, 4, 105, 104, 106, 60 * 70 * 3, 100_000))
        request.raw_input_contents[place] = random.choice((random.randbytes, bytes))(size)
    elif change == 6:
        del request.raw_input_contents[random.randrange(len(request.raw_input_contents) + 1) :]
    elif change == 7:
        request.raw_input_contents.append(random.randbytes(random.choice((0, 1, 4, 1000))))
    elif change == 8:
        field = getattr(one.contents, random.choice(_CONTENTS))
        field.extend([b"derain"] if field is one.contents.bytes_contents else random.choice(([], [1], [0] * 1000)))
    elif change == 9:
        name, kind = random.choice(PARAMETERS), random.choice(list(VALUES))
        parameters = random.choice((request.parameters, one.parameters))
        setattr(parameters[name], kind, random.choice(VALUES[kind]))
    elif change == 10:
        request.outputs.add(name=random.choice(OUTPUTS))
    elif change == 11:
        request.inputs.add().CopyFrom(one)
    elif change == 12:
        request.id = random.choice(("", "\x1b[31m", "x" * 100_000))
    else:  # another model's tensors, of the right size or nearly
        del request.inputs[:], request.raw_input_contents[:]
        request.model_name = random.choice(MODELS)
        for name in random.sample(TENSORS, random.randrange(1, 5)):
            kind, shape = random.choice(TYPES), random.choice(SHAPES)
            request.inputs.add(name=name, datatype=kind, shape=shape)
            size = min(max(0, math.prod(shape)) * _SIZES.get(kind, 4), 200_000)
            fill = random.choice((b"\0", b"\xff", b"\x7f", b"\xff\xff\xc0\x7f"))  # the last is NaN in FP32
            request.raw_input_contents.append((fill * (size // len(fill) + 1))[: size + random.choice((0, 0, 0, 1))])


def hostile_http(random: Random) -> bytes:
    """A request to the launcher's port with changes, or bytes that are none."""
    words = [random.choice(METHODS), random.choice(PATHS), random.choice(("HTTP/1.1", "HTTP/9", "", "x"))]
    lines = [" ".join(words), *random.choices(LINES, k=random.choice((0, 1, 5, 500)))]
    data = "\r\n".join([*lines, "", ""]).encode() + random.randbytes(random.choice((0, 0, 10, 20_000)))
    return hostile_bytes(data, random) if random.random() < 0.5 else data
