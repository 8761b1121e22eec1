"""Where servers are and how they are reached: addresses, TLS and headers, as given or from the environment."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ipt_triton.client.errors import InvalidAddress

DEFAULT_URL = "localhost:8001"
"""Of the server's gRPC port."""

_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/?#@\[\]]+)"
_GRPC, _HTTP = re.compile(rf"{_HOST}:(\d{{1,5}})"), re.compile(rf"https?://{_HOST}(?::(\d{{1,5}}))?(?:/[^\s?#]*)?")
_HEADER_NAME, _HEADER_VALUE = re.compile(r"[0-9a-z_.-]+"), re.compile(r"[ -~]*")
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def parse_addresses(url: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of one or several servers, each once.

    Args:
        url: HOST:PORT of a gRPC port, or http://HOST:PORT or https://… of an HTTP port; several as a sequence or
            separated by commas.

    Raises:
        InvalidAddress: naming the one that is none.
    """
    given = url.split(",") if isinstance(url, str) else list(url)
    addresses = tuple(dict.fromkeys(text.strip() for text in given))
    for address in addresses:
        found = _GRPC.fullmatch(address) or _HTTP.fullmatch(address)
        if found is None or int(found[1] or 1) not in range(1, 65536):
            raise InvalidAddress(
                f"{address!r} is no address of a server; give HOST:PORT of its gRPC port, or http://HOST:PORT or "
                "https://HOST:PORT, several separated by commas"
            )
    if not addresses:
        raise InvalidAddress("no address of a server is given; give HOST:PORT of its gRPC port")
    return addresses


def is_http(address: str) -> bool:
    """Whether a server is asked over HTTP; over gRPC otherwise."""
    return "://" in address


def short_header(text: str) -> tuple[str, str]:
    """A header from NAME:VALUE.

    Raises:
        InvalidAddress: it is none.
    """
    name, colon, value = text.partition(":")
    if not colon:
        raise InvalidAddress(f"header {text!r} is not allowed; give NAME:VALUE")
    return name.strip(), value.strip()


@dataclass(frozen=True)
class Access:
    """How servers are reached.

    Attributes:
        tls: encrypt gRPC; HTTP is encrypted where the address says https.
        ca: PEM file of the authorities that are trusted; None: the usual ones.
        cert, key: PEM files of the client's own certificate and key, for servers that ask for one.
        headers: sent with each request, as HTTP headers or gRPC metadata; names in lower case.

    Raises:
        InvalidAddress: a file that cannot be used, a certificate without its key, a header that cannot be sent.
    """

    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidAddress("a client's certificate needs its key; give both cert and key, or neither")
        for name, value in self.headers:
            if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
                raise InvalidAddress(
                    f"header name {name!r} is not allowed; give letters, digits, -, _ and ., not grpc-… and not …-bin"
                )
            if not _HEADER_VALUE.fullmatch(value):  # not shown: it may be a secret
                raise InvalidAddress(f"the value of header {name} is not allowed; give printable ASCII on one line")
        _ = self.context  # wrong files are told at once

    @classmethod
    def of(
        cls,
        addresses: Sequence[str],
        *,
        tls: bool,
        ca: str | os.PathLike[str] | None,
        cert: str | os.PathLike[str] | None,
        key: str | os.PathLike[str] | None,
        headers: Mapping[str, str] | None,
        token: str | None,
    ) -> Access:
        """How these servers are reached; `token` is sent as `authorization: Bearer`.

        Raises:
            InvalidAddress: see the class; also files for TLS with a server that is reached without.
        """
        files = [None if file is None else os.fspath(file) for file in (ca, cert, key)]
        open_ones = [address for address in addresses if not (tls or address.startswith("https://"))]
        if tls and any(address.startswith("http://") for address in addresses):
            raise InvalidAddress(f"tls does not go with {', '.join(addresses)}; give https:// instead of http://")
        if any(files) and open_ones:
            raise InvalidAddress(f"ca, cert and key are for TLS, and {open_ones[0]} is without; give tls or https://")
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        return cls(tls, files[0], files[1], files[2], tuple(sent.items()))

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """For Python's own TLS; None where no file is given."""
        if self.ca is None and self.cert is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise InvalidAddress(f"ca {self.ca} cannot be used ({_why(error)}); give a PEM file") from error
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                raise InvalidAddress(
                    f"cert {self.cert} and key {self.key} cannot be used ({_why(error)}); give PEM files that belong "
                    "together, the key without a password"
                ) from error
        return context


def _why(error: OSError) -> str:
    return str(error.strerror or error).partition(" (_ssl")[0]


def from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Arguments of a client: IPT_URL, IPT_TLS, IPT_CA, IPT_CERT, IPT_KEY, IPT_TOKEN and IPT_TIMEOUT, if they are set.

    Raises:
        InvalidAddress: IPT_TLS is neither yes nor no, or IPT_TIMEOUT no number of seconds.
    """
    given: dict[str, Any] = {
        name: environment[f"IPT_{name.upper()}"]
        for name in ("url", "tls", "ca", "cert", "key", "token", "timeout")
        if environment.get(f"IPT_{name.upper()}")
    }
    if "tls" in given:
        word = given["tls"].lower()
        if word not in (*_YES, *_NO):
            raise InvalidAddress(f"IPT_TLS={given['tls']} is not allowed; give 1 or 0")
        given["tls"] = word in _YES
    if "timeout" in given:
        try:
            given["timeout"] = float(given["timeout"])
        except ValueError:
            given["timeout"] = 0.0
        if not given["timeout"] > 0:
            raise InvalidAddress(f"IPT_TIMEOUT={environment['IPT_TIMEOUT']} is not allowed; give seconds above 0")
    return given
