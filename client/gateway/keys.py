"""Who calls: keys, of which only hashes are kept, and what each caller may have under way.

A key is 256 random bits. Nobody guesses those, so one round of SHA-256 hides it as well as any slow hash would.
A file of keys has a line for each, as `ipt-gateway new-key` prints it:

    sha256:9f86d0…  name  requests=8  megapixels=100
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ipt_triton.client.errors import RestorationError
from ipt_triton.client.gateway.problems import BUSY_S, Problem
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.reading import shown

log = logging.getLogger(__name__)

VARIABLE = "IPT_GATEWAY_KEYS"
"""Of the environment; it has lines as the file has, or what would be lines with `;` between."""

_LINE = re.compile(r"sha256:([0-9a-f]{64})((?:\s+\S+)*)")
_LIMIT = re.compile(r"\b(requests|megapixels)=(\d{1,6})(?!\S)")
_PREFIX = "ipt_"


class KeyFileError(RestorationError):
    """A file of keys that cannot be read."""

    status = 2


@dataclass(frozen=True)
class Key:
    """A caller's key: its hash, whose it is, and limits where they are not the gateway's."""

    digest: str
    name: str
    requests: int | None = None
    megapixels: float | None = None


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        owner: whose jobs they are, and between whom turns are fair: the key, or the visitor's address and browser.
        account: on which the limits are: the key, or the visitor's address.
        name: for the log.
        requests, megapixels: that may be under way.
    """

    owner: str
    account: str
    name: str
    requests: int
    megapixels: float


def new_key(name: str) -> tuple[str, str]:
    """A key, and the line for the file of keys."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, f"sha256:{_digest(secret)} {name}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_keys(lines: Iterable[str]) -> dict[str, Key]:
    """Keys by hash.

    Raises:
        KeyFileError: naming the number of the line that is none.
    """
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        matched = _LINE.fullmatch(text)
        if not matched:
            raise KeyFileError(f"line {number} of the keys is no key; ipt-gateway new-key prints such lines")
        limits = dict(_LIMIT.findall(matched[2]))
        name = " ".join(_LIMIT.sub("", matched[2]).split())
        if "=" in name:
            raise KeyFileError(f"line {number} of the keys has {shown(name)}; requests=N and megapixels=N are known")
        key = Key(
            digest=matched[1],
            name=name or matched[1][:8],
            requests=int(limits["requests"]) if "requests" in limits else None,
            megapixels=float(limits["megapixels"]) if "megapixels" in limits else None,
        )
        found[key.digest] = key
    return found


class Keys:
    """The keys of a file and of the environment; a file that changes is read again.

    Raises:
        KeyFileError: it cannot be read.
    """

    def __init__(self, settings: Settings, environment: str | None = None) -> None:
        self._settings = settings
        text = os.environ.get(VARIABLE, "") if environment is None else environment
        self._fixed = parse_keys(text.replace(";", "\n").splitlines())
        self._read: dict[str, Key] = {}
        self._state: tuple[int, int, int] | None = None
        self.required = bool(self._fixed) or settings.keys_file is not None
        """Whether callers need a key."""
        if settings.keys_file is not None:
            self._reread(settings.keys_file)

    def caller(self, secret: str | None, address: str, visitor: str) -> Caller:
        """Who calls with a key, or without one where none is needed.

        Args:
            address: of the caller.
            visitor: of its browser, or empty.

        Raises:
            Problem: 401.
        """
        settings = self._settings
        if not self.required:
            return Caller(f"{address} {visitor}", address, "", settings.requests, settings.megapixels)
        if settings.keys_file is not None:
            try:
                self._reread(settings.keys_file)
            except KeyFileError as error:
                log.error("%s; the keys that were known stay", error)
        key = {**self._fixed, **self._read}.get(_digest(secret or ""))
        if key is None:
            what = "the key is not known" if secret else "a key is needed"
            raise Problem(
                401,
                f"{what}; send the one that you were given as the header 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        requests = settings.requests if key.requests is None else key.requests
        megapixels = settings.megapixels if key.megapixels is None else key.megapixels
        return Caller(key.digest, key.digest, key.name, requests, megapixels)

    def _reread(self, path: Path) -> None:
        try:
            status = path.stat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            if state != self._state:
                self._read = parse_keys(path.read_text(encoding="utf-8").splitlines())
                self._state = state
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"the keys in {path} cannot be read ({error})") from None


class Charge:
    """What a request or job has under way, on its caller's account until `close`."""

    def __init__(self, accounts: Accounts, caller: Caller) -> None:
        self._accounts, self._caller = accounts, caller
        self._pixels, self._open = 0, True

    def photo(self, pixels: int, forced: bool = False) -> None:
        """Put a photo on the account.

        Args:
            forced: however much it is; for what was taken before.

        Raises:
            Problem: 413 it is too much by itself; 429 together with what is under way.
        """
        allowed = self._caller.megapixels
        if pixels > allowed * 1e6 and not forced:
            raise Problem(413, f"the photo has {pixels / 1e6:.1f} megapixels, of which {allowed:g} are allowed")
        total = self._accounts.pixels.get(self._caller.account, 0) + pixels
        if total > allowed * 1e6 and not forced:
            raise Problem(429, f"{allowed:g} megapixels at a time are allowed; wait until others are done", BUSY_S)
        self._accounts.pixels[self._caller.account] = total
        self._pixels += pixels

    def close(self) -> None:
        """Take it off the account; again does nothing."""
        if self._open:
            self._open = False
            self._accounts.take_off(self._caller.account, self._pixels)


class Accounts:
    """What callers have under way."""

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.pixels: dict[str, int] = {}

    def open(self, caller: Caller, forced: bool = False) -> Charge:
        """Put a request on its caller's account.

        Args:
            forced: in any case; for what was taken before.

        Raises:
            Problem: 429.
        """
        under_way = self.requests.get(caller.account, 0)
        if under_way >= caller.requests and not forced:
            raise Problem(
                429, f"{caller.requests} requests and jobs at a time are allowed; wait until others are done", BUSY_S
            )
        self.requests[caller.account] = under_way + 1
        return Charge(self, caller)

    def take_off(self, account: str, pixels: int) -> None:
        """The end of a request."""
        for values, number in ((self.requests, 1), (self.pixels, pixels)):
            left = values.get(account, 0) - number
            if left > 0:
                values[account] = left
            else:
                values.pop(account, None)
