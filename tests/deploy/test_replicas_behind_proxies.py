"""Envoy and nginx of `deploy/proxy` with TLS: photographs pass whatever becomes of servers and of the certificate."""

from __future__ import annotations

import shutil
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.envoy import KEY, KEYS, configuration, let_in, move_keys, running_envoy, validate
from helpers.nginx import for_servers, free_port, needs_nginx, nginx
from helpers.pretended import Pretended, make_certificate, make_certificates, needs_openssl, over_grpc, over_http
from helpers.replica import TAKES_S, replicas
from helpers.serve import until

from ipt_triton import AccessRefused, RestorationClient
from ipt_triton.export.serving.health import Health

pytestmark = needs_openssl

AT_A_TIME = 8
"""Photographs under way at the same time."""
FEW = 4
MANY = 300
SLOWER = 20
SOME, EVERYTHING = 5, 100_000
LARGE = np.random.default_rng(0).integers(0, 65536, (1000, 1100, 3), np.uint16)
Restore = Callable[[np.ndarray], np.ndarray]


def photo(number: int) -> np.ndarray:
    side = 800 if number % 10 == 0 else 60  # one in ten is larger than the windows of HTTP/2
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


class Stream:
    """Photographs that come without end, several at a time; each must come back as it was sent."""

    def __init__(self, restore: Restore, photo: Callable[[int], np.ndarray] = photo) -> None:
        self._restore, self._photo, self._lock = restore, photo, threading.Lock()
        self._begun = self.done = 0
        self.failures: list[BaseException] = []
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(AT_A_TIME)]

    def _run(self) -> None:
        while not self._enough.is_set():
            with self._lock:
                self._begun += 1
                image = self._photo(self._begun)
            try:
                np.testing.assert_array_equal(self._restore(image), image)
            except BaseException as error:
                self.failures.append(error)
                return
            with self._lock:
                self.done += 1

    def goes_on(self, photos: int = 2 * AT_A_TIME) -> None:
        """Wait for some more."""
        wanted = self.done + photos
        until(lambda: self.done >= wanted or self.failures, 60, "photographs")
        assert not self.failures

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self.failures


class Certificates:
    """Two certificates of one authority for the same name, of which a link shows one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tls"
        (self.folder / "old").mkdir(parents=True)
        make_certificates(self.folder / "old")
        make_certificate(Path(shutil.copytree(self.folder / "old", self.folder / "new")), "server")
        self.ca = self.folder / "old" / "ca.crt"
        self.show("old")

    def show(self, name: str) -> None:
        """Move a link over the old one, as a Secret of Kubernetes is renewed."""
        (self.folder / "next").symlink_to(name)
        (self.folder / "next").rename(self.folder / "current")

    def served(self, port: int) -> str | None:
        """Which of them a new connection is shown."""
        pem = ssl.get_server_certificate(("localhost", port), ca_certs=str(self.ca))
        names = [name for name in ("old", "new") if pem in (self.folder / name / "server.crt").read_text()]
        return names[0] if names else None

    def client_of(self, port: int, scheme: str = "", **options: Any) -> RestorationClient:
        """A client of a proxy, which trusts both."""
        tls = {} if scheme else {"tls": True}
        return RestorationClient(f"{scheme}localhost:{port}", ca=self.ca, timeout=120, **tls, **options)


def test_envoy_takes_our_configuration(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    folder = tmp_path / "tls" / "current"
    folder.mkdir(parents=True)
    make_certificates(folder)
    assert "eprecated" not in validate(tmp_path, config)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.mark.slow
def test_photographs_pass_envoy_while_servers_are_lost_and_the_certificate_is_renewed(
    tmp_path: Path, certificates: Certificates
) -> None:
    with (
        replicas(0, 0, EVERYTHING, 0) as servers,
        running_envoy(tmp_path, [(server.grpc, server.health) for server in servers]) as port,
    ):
        killed, hanging = servers[:2]
        with (
            certificates.client_of(port, token=KEY, retries=0) as client,  # it is Envoy that asks another server
            Stream(lambda image: client.restore(image, "derain")) as stream,
        ):
            killed.process.kill()
            stream.goes_on()
        with (
            certificates.client_of(port, token=KEY) as client,
            Stream(lambda image: client.restore(image, "derain")) as stream,
        ):
            hanging.process.send_signal(signal.SIGSTOP)
            stream.goes_on()
            assert certificates.served(port) == "old"
            certificates.show("new")
            until(lambda: certificates.served(port) == "new", 30, "the new certificate")
            stream.goes_on()
        with certificates.client_of(port, token=KEY) as client:
            np.testing.assert_array_equal(client.restore(photo(1), "derain"), photo(1))


def assert_keys_are_wanted(certificates: Certificates, port: int, server: Pretended, gateway: Pretended) -> None:
    """A proxy lets callers of gRPC in with their key alone, which ends there; HTTP goes to the gateway with its own."""
    for token in (None, "guessed", KEY.upper(), f"{KEY}-"):
        with certificates.client_of(port, token=token) as client, pytest.raises(AccessRefused):
            client.tasks()
    with certificates.client_of(port, token=KEY) as client:
        np.testing.assert_array_equal(client.restore(LARGE, "derain"), LARGE)
    assert "authorization" not in server.headers
    with certificates.client_of(port, scheme="https://", token="the gateway's") as client:
        np.testing.assert_array_equal(client.restore(LARGE, "derain"), LARGE)
    assert gateway.headers["authorization"] == "Bearer the gateway's"


def test_envoy_lets_callers_with_a_key_in_and_hands_http_to_the_gateway(
    tmp_path: Path, certificates: Certificates
) -> None:
    with (
        over_grpc() as server,
        over_http() as gateway,
        closing(Health("127.0.0.1", 0, lambda: None, lambda: b"")) as health,
    ):
        places = [(int(told.address.rpartition(":")[2]), health.port) for told in (server, gateway)]
        with running_envoy(tmp_path, places[:1], places[1:]) as port:
            assert_keys_are_wanted(certificates, port, server, gateway)


def test_envoy_goes_on_with_the_old_certificate_where_a_key_does_not_belong_to_the_new_one(
    tmp_path: Path, certificates: Certificates
) -> None:
    torn = Path(shutil.copytree(certificates.folder / "old", certificates.folder / "torn"))
    shutil.copy(certificates.folder / "new" / "server.crt", torn)
    with running_envoy(tmp_path, []) as port:
        certificates.show("torn")
        until(lambda: "KEY_VALUES_MISMATCH" in (tmp_path / "envoy.log").read_text(), 30, "a refusal")
        assert certificates.served(port) == "old"
        certificates.show("new")
        until(lambda: certificates.served(port) == "new", 30, "the new certificate")


def test_keys_of_callers_come_and_go_without_a_restart_of_envoy(tmp_path: Path, certificates: Certificates) -> None:
    def is_let_in(client: RestorationClient) -> bool:
        try:
            return np.array_equal(client.restore(photo(1), "derain"), photo(1))
        except AccessRefused:
            return False

    with (
        over_grpc() as server,
        closing(Health("127.0.0.1", 0, lambda: None, lambda: b"")) as health,
        running_envoy(tmp_path, [(int(server.address.rpartition(":")[2]), health.port)]) as port,
        certificates.client_of(port, token=KEY) as first,
        certificates.client_of(port, token="another key") as second,
    ):
        assert is_let_in(first) and not is_let_in(second)
        let_in(tmp_path, KEY, "another key")
        until(lambda: is_let_in(second), 30, "a key that was added")
        assert is_let_in(first)
        under_way, withdrawn = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            under_way.set()
            withdrawn.wait(30)

        with ThreadPoolExecutor(1) as pool:
            server.before = wait
            answer = pool.submit(first.restore, photo(2), "derain")
            assert under_way.wait(30)
            server.before = lambda *_: None
            let_in(tmp_path, "another key")
            until(lambda: not is_let_in(first), 30, "a key that was withdrawn")  # its connection is an old one
            assert is_let_in(second) and not answer.done()
            withdrawn.set()
            np.testing.assert_array_equal(answer.result(30), photo(2))
        good = (tmp_path / KEYS.name).read_text()
        move_keys(tmp_path, "resources: [")
        until(lambda: "config update failure" in (tmp_path / "envoy.log").read_text(), 30, "a refusal")
        assert is_let_in(second) and not is_let_in(first)
        move_keys(tmp_path, good.replace("rules:", "rule:"))
        until(lambda: not is_let_in(second), 30, "rules that are misspelt")
        assert not is_let_in(first)


def encrypted(
    folder: Path, port: int, addresses: Sequence[str], certificates: Certificates, gateway: str = "127.0.0.1:9"
) -> str:
    """Our configuration of nginx with TLS, for two servers or more."""
    text = for_servers(folder / "nginx", port, addresses[:2], gateway)
    (line,) = (line for line in text.splitlines(True) if f"server {addresses[0]} " in line)
    more = "".join(line.replace(addresses[0], address) for address in addresses[2:])
    plain, commented = f"listen 127.0.0.1:{port} ", f"# listen 127.0.0.1:{port} "
    for ours, other in (
        (line, line + more),
        (plain, commented),
        ("# listen 8443 ", plain),
        ("# ssl_certificate", "ssl_certificate"),
        ("/etc/nginx/ipt/", f"{certificates.folder}/current/"),
    ):
        assert ours in text, ours
        text = text.replace(ours, other)
    return text


@needs_nginx
def test_nginx_lets_callers_with_a_key_in_and_hands_http_to_the_gateway(
    tmp_path: Path, certificates: Certificates
) -> None:
    def keys(*of_callers: str) -> None:
        (tmp_path / "keys").write_text("".join(f'"~^Bearer {key}$" caller;\n' for key in of_callers))

    port = free_port()
    with over_grpc() as server, over_http() as gateway:
        places = [server.address, server.address.replace("localhost", "127.0.0.1")]
        text = encrypted(tmp_path, port, places, certificates, gateway.address.removeprefix("http://"))
        for ours, other in (
            ("# map $http_authorization", "map $http_authorization"),
            (f"{certificates.folder}/current/keys", str(tmp_path / "keys")),
            ("# if ($caller", "if ($caller"),
            ("# grpc_set_header", "grpc_set_header"),
        ):
            assert ours in text, ours
            text = text.replace(ours, other)
        keys(KEY)
        with nginx(tmp_path / "nginx", text) as reload:
            assert_keys_are_wanted(certificates, port, server, gateway)
            assert gateway.headers["x-forwarded-proto"] == "https"
            keys("another key")
            reload()

            def is_let_in(token: str) -> bool:
                with certificates.client_of(port, token=token) as client:
                    try:
                        return bool(client.tasks())
                    except AccessRefused:
                        return False

            until(lambda: is_let_in("another key"), 30, "a key that was added")  # an old process may still answer
            until(lambda: not is_let_in(KEY), 30, "a key that was withdrawn")


@contextmanager
def one_of_them_slow() -> Iterator[list[Pretended]]:
    """Four servers. The first one answers a photograph when the others were given `SLOWER` more, within 5 seconds."""
    over = threading.Event()
    with ExitStack() as stack:
        slow, *others = servers = [stack.enter_context(over_grpc()) for _ in range(4)]
        stack.callback(over.set)

        def is_slow(*_: object) -> None:
            due, deadline = sum(other.asked for other in others) + SLOWER, time.monotonic() + 5
            while sum(other.asked for other in others) < due and time.monotonic() < deadline:
                if over.wait(0.005):
                    return

        slow.before = is_slow
        for other in others:
            other.before = lambda *_: time.sleep(TAKES_S)
        yield servers


@contextmanager
def behind_envoy(servers: Sequence[Pretended], folder: Path, _: Certificates) -> Iterator[int]:
    with closing(Health("127.0.0.1", 0, lambda: None, lambda: b"")) as health:
        places = [(int(server.address.rpartition(":")[2]), health.port) for server in servers]
        with running_envoy(folder, places) as port:
            yield port


@contextmanager
def behind_nginx(servers: Sequence[Pretended], folder: Path, certificates: Certificates) -> Iterator[int]:
    port = free_port()
    # By number: a name that stands for two addresses would be two servers.
    addresses = [server.address.replace("localhost", "127.0.0.1") for server in servers]
    with nginx(folder / "nginx", encrypted(folder, port, addresses, certificates)):
        yield port


@pytest.mark.slow
@pytest.mark.parametrize("proxied", [behind_envoy, pytest.param(behind_nginx, marks=needs_nginx)])
def test_a_slow_server_gets_few_photographs(
    proxied: Callable[[Sequence[Pretended], Path, Certificates], AbstractContextManager[int]],
    tmp_path: Path,
    certificates: Certificates,
) -> None:
    with (
        one_of_them_slow() as servers,
        proxied(servers, tmp_path, certificates) as port,
        certificates.client_of(port, token=KEY, retries=0) as client,
        Stream(lambda image: client.restore(image, "derain"), lambda number: photo(10 * number + 1)) as stream,
    ):
        stream.goes_on(MANY)
        asked = [server.asked for server in servers]
        assert 0 < asked[0] < sum(asked) / 5, asked  # a quarter where they are asked in turns


@pytest.mark.slow
@needs_nginx
def test_photographs_pass_nginx_while_servers_are_lost_and_the_certificate_is_renewed(
    tmp_path: Path, certificates: Certificates
) -> None:
    port = free_port()
    with replicas(0, 0, SOME, 0) as servers:
        addresses = [f"127.0.0.1:{server.grpc}" for server in servers]
        text = encrypted(tmp_path, port, addresses, certificates)
        killed, hanging = servers[:2]
        with (
            nginx(tmp_path / "nginx", text) as reload,
            certificates.client_of(port) as client,
            Stream(lambda image: client.restore(image, "derain")) as stream,
        ):
            killed.process.kill()
            stream.goes_on(FEW)
            hanging.process.send_signal(signal.SIGSTOP)
            stream.goes_on(FEW)
            hanging.process.kill()  # nginx waits for one that hangs: the launcher, which ends it, is quicker
            assert certificates.served(port) == "old"
            certificates.show("new")
            reload()
            until(lambda: certificates.served(port) == "new", 30, "the new certificate")
            stream.goes_on(FEW)
