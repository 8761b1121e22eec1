"""Through a real nginx with the configuration of deploy/proxy: what passes, and what is said when not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_repository import write_fake_repository
from helpers.nginx import for_servers, free_port, needs_nginx, nginx
from helpers.pretended import make_certificates, needs_openssl, over_grpc
from helpers.serve import until

from ipt_triton import AccessRefused, InvalidRequest, RequestTimeout, RestorationClient, ServerUnavailable
from ipt_triton.export.serving.server import TritonServer

pytestmark = [pytest.mark.server, needs_nginx]

IMAGE = np.random.default_rng(0).integers(0, 256, (190, 200, 3), np.uint8)
READ_TIMEOUT = ("grpc_read_timeout 1h;", "grpc_read_timeout 1s;")


def slow(tenths: int) -> np.ndarray:
    image = np.zeros((20, 20, 3), np.uint8)
    image.flat[0] = tenths
    return image


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TritonServer]]:
    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        names = (folder / "first", folder / "second")
        yield [stack.enter_context(TritonServer(write_fake_repository(name), http_port=0)) for name in names]


class Proxy:
    """Our nginx before two servers, with changes to its configuration."""

    def __init__(self, folder: Path, servers: list[TritonServer]) -> None:
        self._folder, self._servers = folder, servers
        self.port = free_port()
        self.url = f"localhost:{self.port}"
        self._stack = ExitStack()

    def __call__(self, *changes: tuple[str, str]) -> RestorationClient:
        """A client of the proxy, which runs until the test ends."""
        text = for_servers(self._folder, self.port, [server.grpc_url for server in self._servers])
        for ours, other in changes:
            assert ours in text, ours
            text = text.replace(ours, other)
        self._stack.enter_context(nginx(self._folder, text))
        return self._stack.enter_context(RestorationClient(self.url, retries=2))

    def close(self) -> None:
        self._stack.close()

    def log(self) -> list[str]:
        return (self._folder / "ipt-access.log").read_text().splitlines()


@pytest.fixture
def proxy(both: list[TritonServer], tmp_path: Path) -> Iterator[Proxy]:
    for server in both:
        if not server.running:
            server.start()
    proxy = Proxy(tmp_path / "nginx", both)
    yield proxy
    proxy.close()


def test_large_photographs_pass_in_both_directions(proxy: Proxy) -> None:
    client = proxy()
    image = np.random.default_rng(1).integers(0, 65536, (800, 900, 3), np.uint16)  # in blocks of 240 KB, which is more
    np.testing.assert_array_equal(client.restore(image, "derain"), image)
    np.testing.assert_array_equal(client.restore(image, "sr_x2"), image.repeat(2, 0).repeat(2, 1))


def test_one_server_behind_it_is_enough_and_none_is_told_without_a_page(proxy: Proxy, both: list[TritonServer]) -> None:
    client = proxy()
    client.info()
    both[0].stop(grace=0)
    for _ in range(6):
        np.testing.assert_array_equal(client.restore(IMAGE, "stamp"), client.restore(IMAGE, "stamp"))
    assert not [line for line in proxy.log() if '" 200 ' not in line]
    both[1].stop(grace=0)
    with pytest.raises(ServerUnavailable, match=r"is away or too busy .no server answers the proxy."):
        client.restore(IMAGE, "stamp")


@pytest.mark.parametrize("statuses", ["gRPC's", "HTTP's"])
def test_a_photograph_over_the_proxys_time_is_computed_once_and_the_setting_is_named(
    proxy: Proxy, both: list[TritonServer], statuses: str
) -> None:
    client = proxy(READ_TIMEOUT, *([("error_page 504", "# error_page 504")] if statuses == "HTTP's" else []))
    client.info()
    with pytest.raises(RequestTimeout, match=r"raise its time limit for reading .nginx: grpc_read_timeout"):
        client.restore(slow(15), "slow")
    until(lambda: len(proxy.log()) > 1, 10, "two requests")
    assert len(proxy.log()) == 2


def test_an_answer_that_the_proxy_cuts_off_each_time_is_computed_three_times_and_the_setting_is_named(
    proxy: Proxy, both: list[TritonServer]
) -> None:
    with over_grpc() as told:
        told.steps, told.waits = 1, True
        addresses = [server.grpc_url for server in both]
        client = proxy(READ_TIMEOUT, *((f"server {address} ", f"server {told.address} ") for address in addresses))
        with pytest.raises(RequestTimeout, match=r"was cut off .*raise the time limits .*nginx: grpc_read_timeout"):
            client.restore(IMAGE, "derain", progress=lambda done, total: None)
        assert told.asked == 3


def test_a_photograph_over_the_proxys_size_is_refused_with_the_setting(proxy: Proxy) -> None:
    client = proxy(("client_max_body_size 2g;", "client_max_body_size 50k;"))
    with pytest.raises(InvalidRequest, match=r"HTTP status 413: the image is too large .*client_max_body_size"):
        client.restore(IMAGE, "derain")


def test_pages_of_a_proxy_that_knows_no_grpc_statuses_are_told_in_a_sentence(
    proxy: Proxy, both: list[TritonServer]
) -> None:
    client = proxy(("error_page 502", "# error_page 502"))
    client.info()
    for server in both:
        server.stop(grace=0)
    with pytest.raises(ServerUnavailable, match=r"a proxy at localhost:.* HTTP status 502: the servers behind it"):
        client.restore(IMAGE, "derain")


def test_a_token_that_the_proxy_does_not_know_is_refused_and_not_shown(proxy: Proxy) -> None:
    check = 'if ($http_authorization != "Bearer secret") { return 401; }\n            grpc_pass '
    proxy(("grpc_pass ", check))
    with RestorationClient(proxy.url, token="secret") as client:
        assert client.tasks()
    with (
        RestorationClient(proxy.url, token="guessed") as client,
        pytest.raises(AccessRefused, match="HTTP status 401: it refuses access; check the token") as caught,
    ):
        client.tasks()
    assert "guessed" not in str(caught.value)


@needs_openssl
def test_its_lines_for_tls_and_clients_certificates_hold(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "ipt").mkdir()
    files = make_certificates(tmp_path / "ipt")
    plain, encrypted = f"listen 127.0.0.1:{proxy.port} ", f"# listen 127.0.0.1:{proxy.port} "
    proxy(
        (plain, encrypted),
        ("# listen 8443 ", plain),
        ("# ssl_", "ssl_"),
        ("/etc/nginx/ipt/", f"{files}/"),
    )
    trusted = {"tls": True, "ca": files / "ca.crt", "retries": 0}
    own = {"cert": files / "client.crt", "key": files / "client.key"}
    with RestorationClient(proxy.url, **trusted, **own) as client:  # type: ignore[arg-type]
        np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)
    for arguments, sentence in (
        (trusted, "HTTP status 400: it does not take the request; it may want TLS, or a certificate"),
        ({"tls": True, "retries": 0}, "no trusted connection"),
    ):
        with RestorationClient(proxy.url, **arguments) as client, pytest.raises(AccessRefused, match=sentence):  # type: ignore[arg-type]
            client.tasks()


def test_http_through_a_proxy_fails_in_the_same_ways(both: list[TritonServer], tmp_path: Path) -> None:
    port = free_port()
    text = f"""pid {tmp_path}/nginx/nginx.pid;
events {{ }}
http {{
    access_log {tmp_path}/nginx/ipt-access.log;
    client_max_body_size 150k;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://{both[0].http_url};
            proxy_read_timeout 1s;
        }}
    }}
}}
"""
    with nginx(tmp_path / "nginx", text), RestorationClient(f"http://127.0.0.1:{port}", retries=1) as client:
        np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)
        with pytest.raises(InvalidRequest, match="HTTP status 413"):
            client.restore(IMAGE.astype(np.uint16), "derain")
        with pytest.raises(RequestTimeout, match="proxy_read_timeout"):
            client.restore(slow(15), "slow")
        log = tmp_path / "nginx" / "ipt-access.log"
        until(lambda: len(log.read_text().splitlines()) > 3, 10, "four requests")
        assert len(log.read_text().splitlines()) == 4
        both[0].stop(grace=0)
        with pytest.raises(ServerUnavailable, match="HTTP status 502") as caught:
            client.restore(IMAGE, "derain")
        assert "<" not in str(caught.value)
