"""How servers are reached: addresses, TLS, tokens and headers over gRPC and HTTP, and what is said when one refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from helpers.pretended import Pretended, Refusal, make_certificates, needs_openssl, over_grpc, over_http
from tritonclient.grpc import InferResult
from tritonclient.utils import InferenceServerException

from ipt_triton import (
    AccessRefused,
    AsyncRestorationClient,
    InvalidAddress,
    InvalidRequest,
    RequestTimeout,
    RestorationClient,
    ServerError,
    ServerUnavailable,
)
from ipt_triton.client.address import Access
from ipt_triton.client.kserve import HttpConnection
from ipt_triton.client.protocol import Restoration
from ipt_triton.client.transport import AsyncGrpcConnection, GrpcConnection, message_of

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
Server = Callable[..., AbstractContextManager[Pretended]]


@pytest.fixture(params=[over_grpc, over_http], ids=["gRPC", "HTTP"])
def serve(request: pytest.FixtureRequest) -> Server:
    found: Server = request.param
    return found


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trusted(certificates: Path) -> dict[str, Any]:
    return {"ca": certificates / "ca.crt", "retries": 0}


def tls_of(serve: Server) -> dict[str, bool]:
    return {"tls": serve is over_grpc}


# Addresses


@pytest.mark.parametrize(
    "url", ["", "host", "host:", "host:99999", "ftp://host:1", "host:8001,", "http://", "a b:1", []]
)
def test_what_is_no_address_is_named(url: Any) -> None:
    with pytest.raises(InvalidAddress, match=r"no address of a server.*give HOST:PORT"):
        RestorationClient(url)


def test_several_addresses_are_separated_by_commas_or_a_sequence() -> None:
    for url in ("a:1, [::1]:2,https://b/triton/", ["a:1", "[::1]:2", "https://b/triton/", "a:1"]):
        with RestorationClient(url) as client:
            assert client.url == "a:1,[::1]:2,https://b/triton/"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cert": "c", "tls": True}, "needs its key; give both"),
        ({"ca": "nothing.pem", "tls": True}, "ca nothing.pem cannot be used .No such file or directory."),
        ({"ca": "nothing.pem"}, "are for TLS, and host:1 is without; give tls or https"),
        ({"url": "http://host", "tls": True}, "give https:// instead of http://"),
        ({"headers": {"a b": "c"}}, "header name 'a b' is not allowed"),
        ({"headers": {"grpc-timeout": "1S"}}, "header name 'grpc-timeout' is not allowed"),
        ({"token": "two\nlines"}, "the value of header authorization is not allowed"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_sent(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidAddress, match=sentence) as caught:
        RestorationClient(**{"url": "host:1", **arguments})
    assert "two" not in str(caught.value)


def test_the_environment_says_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with over_grpc() as told:
        for name, value in (("URL", told.address), ("TLS", "0"), ("CA", ""), ("TOKEN", "secret"), ("TIMEOUT", "20")):
            monkeypatch.setenv(f"IPT_{name}", value)
        with RestorationClient.from_environment() as client:
            assert client.tasks()
        assert told.headers["authorization"] == "Bearer secret"
    for name, value, sentence in (("TIMEOUT", "soon", "give seconds above 0"), ("TLS", "perhaps", "give 1 or 0")):
        monkeypatch.setenv(f"IPT_{name}", value)
        with pytest.raises(InvalidAddress, match=f"IPT_{name}={value} is not allowed; {sentence}"):
            AsyncRestorationClient.from_environment()
        monkeypatch.delenv(f"IPT_{name}")


# TLS


@needs_openssl
def test_a_server_with_a_trusted_certificate_is_asked(
    serve: Server, certificates: Path, trusted: dict[str, Any]
) -> None:
    with serve(certificates) as told, RestorationClient(told.address, **tls_of(serve), **trusted) as client:
        np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)


@needs_openssl
def test_a_certificate_of_somebody_else_is_not_trusted_and_not_asked_again(serve: Server, certificates: Path) -> None:
    for files in ({"ca": certificates / "other.crt"}, {}):
        with (
            serve(certificates) as told,
            RestorationClient(told.address, **tls_of(serve), **files) as client,  # type: ignore[arg-type]
            pytest.raises(
                AccessRefused, match=f"no trusted connection to the server at {told.address} .*CERTIFICATE_VER"
            ),
        ):
            client.tasks()


@needs_openssl
def test_a_certificate_for_another_name_is_not_trusted(
    serve: Server, certificates: Path, trusted: dict[str, Any]
) -> None:
    with (
        serve(certificates) as told,
        RestorationClient(told.address.replace("localhost", "127.0.0.1"), **tls_of(serve), **trusted) as client,
        pytest.raises(AccessRefused, match="no trusted connection"),
    ):
        client.tasks()


@needs_openssl
def test_a_server_may_ask_for_the_clients_certificate(
    serve: Server, certificates: Path, trusted: dict[str, Any]
) -> None:
    own = {"cert": certificates / "client.crt", "key": certificates / "client.key"}
    with serve(certificates, clients=True) as told:
        with RestorationClient(told.address, **tls_of(serve), **trusted, **own) as client:
            assert client.tasks()
        with RestorationClient(told.address, **tls_of(serve), **trusted) as client, pytest.raises(ServerUnavailable):
            client.tasks()


@needs_openssl
def test_a_key_of_another_certificate_is_named(certificates: Path) -> None:
    files = {"cert": certificates / "client.crt", "key": certificates / "server.key"}
    with pytest.raises(InvalidAddress, match=r"client\.crt and key .*server\.key cannot be used .*belong together"):
        RestorationClient("host:1", tls=True, **files)  # type: ignore[arg-type]


@needs_openssl
def test_the_asynchronous_client_reaches_servers_in_the_same_ways(
    serve: Server, certificates: Path, trusted: dict[str, Any]
) -> None:
    async def work(address: str) -> np.ndarray:
        async with AsyncRestorationClient(address, **tls_of(serve), **trusted, token="secret") as client:
            return await client.restore(IMAGE, "derain")

    with serve(certificates) as told:
        np.testing.assert_array_equal(asyncio.run(work(told.address)), IMAGE)
        assert told.headers["authorization"] == "Bearer secret"


# Headers and messages


def test_headers_and_a_token_go_with_each_request(serve: Server) -> None:
    with serve() as told, RestorationClient(told.address, headers={"X-Team": "prints"}, token="secret") as client:
        client.tasks()
        assert (told.headers["x-team"], told.headers["authorization"]) == ("prints", "Bearer secret")
        told.headers = {}
        client.restore(IMAGE, "derain")
        assert (told.headers["x-team"], told.headers["authorization"]) == ("prints", "Bearer secret")


@pytest.mark.parametrize("progress", [None, lambda done, total: None], ids=["alone", "with progress"])
def test_an_id_goes_with_each_request_to_restore(serve: Server, progress: Any) -> None:
    with serve() as told, RestorationClient(told.address) as client:
        client.restore(IMAGE, "derain", progress=progress, request_id="photo-7")
        assert told.request_id == "photo-7"
        client.restore(IMAGE, "derain", progress=progress)
        assert told.request_id == ""


def test_http_requests_carry_their_length_and_are_not_compressed() -> None:
    with over_http() as told, RestorationClient(told.address) as client:
        client.restore(np.zeros((150, 150, 3), np.uint16), "derain")
        assert int(told.headers["content-length"]) > 150 * 150 * 6
        assert not {"transfer-encoding", "content-encoding", "expect"} & set(told.headers)
        assert told.headers["accept-encoding"] == "identity"


# Refusals

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
PAGE = "<html><h1>nginx</h1></html>"


@pytest.mark.parametrize(
    ("serve", "refusal", "error", "sentence"),
    [
        (over_grpc, Refusal(UNAUTHENTICATED, "token expired"), AccessRefused, "refuses access .token expired.; check"),
        (over_grpc, Refusal(DENIED, "not you"), AccessRefused, "refuses access .not you.; check the token"),
        (over_http, Refusal(401, "who are you?"), AccessRefused, "refuses access .who are you..; check the token"),
        (over_http, Refusal(403, PAGE), AccessRefused, "HTTP status 403: it refuses access; check the token"),
        (over_http, Refusal(413, PAGE), InvalidRequest, "HTTP status 413: the image is too .*client_max_body_size"),
        (over_http, Refusal(408, PAGE), RequestTimeout, "came too slowly for it; .*client_body_timeout"),
        (over_http, Refusal(504, PAGE), RequestTimeout, "raise its time limit for reading .nginx: grpc_read_timeout"),
        (over_http, Refusal(418, PAGE), ServerError, "HTTP status 418, so no Triton is there; check the address"),
        (over_grpc, Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "upstream"), RequestTimeout, "raise its time limit"),
        (over_grpc, Refusal(grpc.StatusCode.UNAVAILABLE, "upstream request timeout"), RequestTimeout, "Envoy: the"),
    ],
)  # fmt: skip
def test_what_time_does_not_mend_is_told_in_a_sentence_and_asked_once(
    serve: Server, refusal: Refusal, error: type[Exception], sentence: str
) -> None:
    with serve() as told, RestorationClient(told.address) as client:
        client.tasks()
        told.failures, told.forever = [refusal], True
        with pytest.raises(error, match=sentence) as caught:
            client.restore(IMAGE, "derain")
        assert told.asked == 1 and "<" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("serve", "refusal"),
    [
        (over_grpc, Refusal(grpc.StatusCode.UNAVAILABLE, "Server is stopping")),
        (over_grpc, Refusal(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'restore' is not found")),
        (over_grpc, Refusal(grpc.StatusCode.INTERNAL, "Stub process 'restore_0_0' is not healthy.")),
        (over_http, Refusal(404, "Request for unknown model: 'restore' is not found")),
        (over_http, Refusal(502, PAGE)),
        (over_http, Refusal(503, PAGE)),
        (over_http, Refusal(503, "Server is stopping")),
        (over_http, Refusal(429, PAGE)),
    ],
)
def test_what_passes_is_asked_again(serve: Server, refusal: Refusal) -> None:
    with serve() as told, RestorationClient(told.address) as client:
        client.tasks()
        told.failures = [refusal]
        np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)
        assert told.asked == 2


@pytest.mark.parametrize(
    ("words", "kind"),
    [("Stream removed", RequestTimeout), ("Stream removed (Socket closed)", ServerUnavailable)],
    ids=["cut off by a proxy", "lost with its server"],
)
def test_an_answer_that_is_cut_off_is_told_from_a_server_that_died(words: str, kind: type[Exception]) -> None:
    refusal = Refusal(grpc.StatusCode.UNAVAILABLE, words)
    with over_grpc() as told, RestorationClient(told.address, retries=0) as client:
        client.tasks()
        told.failures, told.forever = [refusal], True
        with pytest.raises(kind) as raised:
            client.restore(IMAGE, "derain")
        assert type(raised.value) is kind


def test_a_page_of_a_proxy_is_not_repeated_after_the_last_retry() -> None:
    with over_http() as told, RestorationClient(told.address, retries=1) as client:
        told.failures, told.forever = [Refusal(502, PAGE)], True
        with pytest.raises(ServerUnavailable, match="HTTP status 502: the servers behind it are away") as caught:
            client.tasks()
        assert "nginx" not in str(caught.value)


# Streams


@pytest.fixture
def told() -> Iterator[Pretended]:
    with over_grpc() as told:
        yield told


@pytest.fixture
def message(told: Pretended) -> Any:
    with RestorationClient(told.address) as client:
        work = Restoration(client.info(), IMAGE, "derain", None, None)
    return message_of("restore", work.inputs(work.parts[0]), work.outputs(), 20)


def pixels(answer: InferResult | None) -> np.ndarray | None:
    assert answer is not None
    found: np.ndarray | None = answer.as_numpy("RESTORED")
    return found


def test_a_stream_hands_on_each_answer_as_it_comes(told: Pretended, message: Any) -> None:
    told.steps = 3
    with closing(GrpcConnection(told.address, Access(headers=(("x-team", "prints"),)))) as connection:
        answers = connection.stream(message, 20)
        assert [pixels(answers.get()) for _ in range(3)] == [None] * 3
        np.testing.assert_array_equal(pixels(answers.get()), IMAGE)
        assert (told.headers["triton_grpc_error"], told.headers["x-team"]) == ("true", "prints")
        with pytest.raises(InferenceServerException, match="the stream has ended"):
            answers.get()

    async def work() -> list[np.ndarray | None]:
        connection = AsyncGrpcConnection(told.address, Access())
        found = [pixels(answer) async for answer in connection.stream(message, 20)]
        await connection.close()
        return found

    *steps, last = asyncio.run(work())
    assert steps == [None] * 3
    np.testing.assert_array_equal(last, IMAGE)


def test_a_stream_fails_with_a_status(told: Pretended, message: Any) -> None:
    told.failures = [Refusal(grpc.StatusCode.UNAVAILABLE, "Server is stopping")]
    with (
        closing(GrpcConnection(told.address, Access())) as connection,
        pytest.raises(InferenceServerException, match=r"StatusCode\.UNAVAILABLE\] Server is stopping"),
    ):
        connection.stream(message, None).get()
    with (
        over_http() as other,
        closing(HttpConnection(other.address, Access())) as http,
        pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED\] no streams of model 'restore' over HTTP"),
    ):
        http.stream(message, None)


def test_a_stream_that_says_nothing_can_be_cancelled(told: Pretended, message: Any) -> None:
    told.waits = True
    with closing(GrpcConnection(told.address, Access())) as connection:
        answers = connection.stream(message, None)
        assert answers.get(0.05) is None
        answers.cancel()
        with pytest.raises(InferenceServerException, match="CANCELLED"):
            answers.get()
        assert told.left.wait(10)
