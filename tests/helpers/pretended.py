"""A server of Triton's protocols in this process, over gRPC or HTTP, that gives images back or fails as it is told."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from helpers.fake_repository import fake_config
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes certificates, is missing"
)


# Messages of any size, and pings as often as a proxy likes.
_AS_TRITON = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")] + [
    ("grpc.http2.max_ping_strikes", 0)
]


class Refusal(NamedTuple):
    """A failure: gRPC's status and message, or HTTP's status and page."""

    status: Any
    words: str


class Pretended:
    """What such a server is told to do, and what it saw.

    Attributes:
        failures: of the next requests, the first one first; the last one stays if `forever`.
        asked: how many requests to restore came.
        headers: of the last request, names in lower case.
        request_id: of the last request to restore.
        steps: answers of a stream before the last one.
        waits: whether a stream answers only when its caller has left.
        left: a caller of a stream has.
        ended: counts the streams that have.
        before: called with each request to restore over gRPC, and its context, before it is answered.
    """

    def __init__(self) -> None:
        self.failures: list[Refusal] = []
        self.forever = False
        self.asked = 0
        self.headers: dict[str, str] = {}
        self.request_id = ""
        self.steps = 0
        self.waits = False
        self.address = ""
        self.left = threading.Event()
        self.ended = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.before: Callable[[Any, Any], None] = lambda request, context: None

    def failure(self) -> Refusal | None:
        with self._lock:
            if not self.failures:
                return None
            return self.failures[0] if self.forever else self.failures.pop(0)


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, told: Pretended) -> None:
        self._told = told

    def _enter(self, context: Any) -> None:
        self._told.headers = dict(context.invocation_metadata())
        if failure := self._told.failure():
            context.abort(failure.status, failure.words)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._enter(context)
        return pb.ModelConfigResponse(config=fake_config())

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._told.asked += 1
        self._told.request_id = request.id
        self._told.before(request, context)
        self._enter(context)
        return _given_back(request)

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        self._told.asked += 1
        gone = threading.Event()
        for call in (gone.set, self._told.left.set, self._told.ended.release):
            context.add_callback(call)
        request = next(requests)
        self._told.request_id = request.id
        for step in range(self._told.steps):
            progress = pb.ModelInferResponse(raw_output_contents=[step.to_bytes(4, "little")])
            progress.outputs.add(name="PROGRESS", datatype="INT32", shape=[1])
            yield pb.ModelStreamInferResponse(infer_response=progress)
        self._told.before(request, context)
        self._enter(context)
        if self._told.waits:
            gone.wait()
        yield pb.ModelStreamInferResponse(infer_response=_given_back(request))


def _given_back(request: Any) -> Any:
    answer = pb.ModelInferResponse()
    (image,) = (tensor for tensor in request.inputs if tensor.name.startswith("IMAGE"))
    answer.outputs.add(name=request.outputs[-1].name, datatype=image.datatype, shape=image.shape)
    answer.raw_output_contents.append(request.raw_input_contents[list(request.inputs).index(image)])
    return answer


@contextmanager
def over_grpc(certificates: Path | None = None, clients: bool = False) -> Iterator[Pretended]:
    """Over gRPC.

    Args:
        certificates: folder of `make_certificates`, for TLS.
        clients: whether clients need a certificate.
    """
    told = Pretended()
    server = grpc.server(ThreadPoolExecutor(8), options=_AS_TRITON)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(told), server)
    if certificates is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        key, cert, ca = ((certificates / name).read_bytes() for name in ("server.key", "server.crt", "ca.crt"))
        credentials = grpc.ssl_server_credentials([(key, cert)], ca if clients else None, clients)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    told.address = f"localhost:{port}"
    server.start()
    try:
        yield told
    finally:
        server.stop(0).wait()


@contextmanager
def over_http(certificates: Path | None = None, clients: bool = False) -> Iterator[Pretended]:
    """Over HTTP; see `over_grpc`."""
    told = Pretended()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def _respond(self, work: Callable[[bytes], None]) -> None:
            told.headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if failure := told.failure():
                page = failure.words.startswith("<")
                words = failure.words if page else json.dumps({"error": failure.words})
                self._answer(failure.status, words.encode(), "text/html" if page else "application/json")
            else:
                work(body)

        def do_GET(self) -> None:
            assert self.path == "/v2/models/restore/config"
            text = json.dumps(MessageToDict(fake_config(), preserving_proto_field_name=True))
            self._respond(lambda _: self._answer(200, text.encode()))

        def do_POST(self) -> None:
            assert self.path == "/v2/models/restore/infer"
            told.asked += 1
            self._respond(self._infer)

        def _infer(self, body: bytes) -> None:
            start = int(self.headers["Inference-Header-Content-Length"])
            asked = json.loads(body[:start])
            told.request_id = asked.get("id", "")
            request = pb.ModelInferRequest()
            for tensor in asked["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
                request.raw_input_contents.append(body[start : start + size])
                start += size
            request.outputs.add(name=asked["outputs"][0]["name"])
            answer = _given_back(request)
            (content,), output = answer.raw_output_contents, answer.outputs[0]
            sizes = {"binary_data_size": len(content)}
            tensor = {
                "name": output.name,
                "datatype": output.datatype,
                "shape": list(output.shape),
                "parameters": sizes,
            }
            header = json.dumps({"outputs": [tensor]}).encode()
            self._answer(200, header + content, "application/octet-stream",
                         Inference_Header_Content_Length=str(len(header)))  # fmt: skip

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificates is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        if clients:
            context.load_verify_locations(certificates / "ca.crt")
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    told.address = f"{scheme}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


def make_certificates(folder: Path) -> Path:
    """An authority, and certificates by it for localhost as server and for a client; another authority beside it."""
    for name in ("ca", "other"):
        _openssl(folder, f"req -x509 {_NEW_KEY} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        make_certificate(folder, name)
    return folder


def make_certificate(folder: Path, name: str) -> None:
    """A key, and a certificate by the authority of `make_certificates`, in place of those of that name."""
    _openssl(folder, f"req {_NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr")
    by = "-CA ca.crt -CAkey ca.key -CAcreateserial -extfile names"
    _openssl(folder, f"x509 -req -days 2 -in {name}.csr {by} -out {name}.crt")


def _openssl(folder: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
