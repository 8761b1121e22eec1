"""Hostile uploads: each is answered with a photo or a problem, and the gateway is as it was before.

Each number is an upload for good; `HOSTILE_UPLOADS` says how many there are.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from random import Random
from urllib.parse import quote

import httpx2
import psutil
import pytest
from helpers.gateway import listening, picture
from helpers.hostile import WORDS, hostile_bytes
from helpers.hostile_photos import valid_files, variant
from helpers.serve import until

from ipt_triton.client.gateway.spool import bytes_below

UPLOADS = int(os.environ.get("HOSTILE_UPLOADS", "200"))
ALLOWED = {200, 202, 400, 413, 415, 422}
OPTIONS = ("task", "format", "quality", "width", "scale", "strength", "stride", "keep", "tta", "metadata", "x")
MIB = 2**20
MOST_GROWTH, MOST_FILES = 200, 8 * MIB  # SQLite keeps a journal of 4 MiB
IDLE_S, RETENTION_S = 3.0, 5.0


def not_a_photo(random: Random) -> bytes:
    """Another kind of file, or one that is two kinds."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(2**20))
    others = (
        b"",
        b"A letter.",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<?php system($_GET['c']); ?>",
        b"%PDF-1.7\n" + bytes(1000),
        b"\x7fELF" + bytes(random.randrange(3000)),
        archive.getvalue(),
        random.randbytes(random.randrange(5000)),
    )
    other = random.choice(others)
    photo = random.choice(random.choice(list(valid_files().values())))
    return random.choice((other, photo + other, other + photo, photo[:20] + other))


def form(file: bytes, random: Random) -> tuple[bytes, str]:
    """A form with a file, sometimes damaged."""
    name = random.choice((*WORDS[:8], 'a"b', "x" * 5000)).encode(errors="replace").decode("latin-1")
    field = random.choice(("image", "image", "image", "image", "file", ""))
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="task"\r\n\r\n{random.choice(("derain", "0", "nothing"))}'
    ]
    parts.append(f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n')
    body = "\r\n".join(parts).encode("latin-1") + file + b"\r\n--edge--\r\n"
    kind = random.choice(
        ("multipart/form-data; boundary=edge",) * 5 + ("multipart/form-data", "text/html", "image/svg+xml")
    )
    return (body if random.random() < 0.6 else hostile_bytes(body, random)), kind


def query(random: Random) -> str:
    """Options, a few of them odd."""
    asked = {"task": random.choice(("derain", "sr_x2", "1", "denoise_50"))}
    if random.random() < 0.3:
        odd = random.choice(("-1", "0", "1e9", "nan", "true", "0.5", "\0", *WORDS[:9]))
        asked[random.choice(OPTIONS)] = odd
    return "&".join(f"{name}={quote(value.encode(errors='replace'))}" for name, value in asked.items())


def upload(address: str, http: httpx2.Client, number: int) -> int:
    """Send one; the status of the answer."""
    random = Random(f"upload {number}")
    file = not_a_photo(random) if random.random() < 0.25 else variant(random.choice(list(valid_files())), random)
    if random.random() < 0.02:
        return cut_off(address, file, random)
    if random.random() < 0.01:
        return too_slow(address, file, random)
    if random.random() < 0.3:
        body, kind = form(file, random)
        path = "/v1/restore"
    else:
        body, kind = file, random.choice(("image/png", "application/octet-stream", "image/x-anything"))
        path = f"{random.choice(('/v1/restore', '/v1/restore', '/v1/jobs'))}?{query(random)}"
    answer = http.post(address + path, content=body, headers={"Content-Type": kind})
    media = answer.headers["Content-Type"]
    assert answer.status_code in ALLOWED, f"{number}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code == 202:
        http.delete(address + answer.headers["Location"])
    elif answer.status_code == 200:
        assert media.startswith("image/")
    else:
        assert media == "application/problem+json" and answer.json()["detail"].isprintable(), f"{number}: {answer.text}"
    return answer.status_code


def cut_off(address: str, file: bytes, random: Random) -> int:
    """Promise more bytes than are sent, and leave."""
    with connected(address) as connection:
        head = promise(file)
        connection.sendall((head + file)[: random.randrange(1, len(head) + len(file))])
    return 0


def too_slow(address: str, file: bytes, random: Random) -> int:
    """Promise more bytes than are sent, and wait; the status of the answer."""
    with connected(address) as connection:
        connection.sendall(promise(file) + file[: random.randrange(len(file) + 1)])
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ") and b"comes too slowly" in answer, answer[:300]
    return 408


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 30)


def promise(file: bytes) -> bytes:
    """The head of a request that holds a file and 100 bytes more."""
    length = len(file) + 100
    return f"POST /v1/restore?task=derain HTTP/1.1\r\nHost: gateway\r\nContent-Length: {length}\r\n\r\n".encode()


def memory() -> int:
    gc.collect()
    ours = psutil.Process()
    return sum(process.memory_info().rss for process in (ours, *ours.children(recursive=True)))


@pytest.fixture
def few_lines_are_logged() -> Iterator[None]:
    logging.disable(logging.WARNING)  # pytest keeps them, and they would be taken for the gateway's memory
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.usefixtures("few_lines_are_logged")
def test_hostile_uploads_are_answered_and_leave_nothing(tmp_path: Path):
    settings = {"workers": 2, "max_pixels": 2_000_000, "requests": 100, "idle_s": IDLE_S, "retention_s": RETENTION_S}
    with listening(tmp_path, **settings) as address, httpx2.Client(timeout=120) as http:
        seen: Counter[int] = Counter()
        levels, files = [], 0
        with ThreadPoolExecutor(4) as pool:
            for quarter in range(4):
                numbers = range(quarter * UPLOADS // 4, (quarter + 1) * UPLOADS // 4)
                seen.update(pool.map(lambda number: upload(address, http, number), numbers))
                levels.append(memory() / MIB)
                files = files or bytes_below(tmp_path)
        assert seen[200] and seen[408] and seen[415] and seen[422]
        assert http.post(f"{address}/v1/restore?task=derain", content=picture()).status_code == 200
        until(lambda: not [*(tmp_path / "work").iterdir(), *(tmp_path / "jobs").iterdir()], 30, "all files gone")
        until(lambda: no_jobs(http.get(f"{address}/metrics").text), 60, "all jobs forgotten")
        more = bytes_below(tmp_path) - files
        told = ", ".join(f"{level:.0f}" for level in levels)
        print(f"{UPLOADS} uploads, answered: {dict(seen)}; MiB after each quarter: {told}; files {more:+} bytes")
        assert levels[3] - levels[0] < MOST_GROWTH and more < MOST_FILES


def no_jobs(page: str) -> bool:
    """Whether the page of metrics counts none in any state."""
    counts = re.findall(r"jobs\{state=.*\} (\S+)", page)
    assert len(counts) == 5
    return not any(map(float, counts))
