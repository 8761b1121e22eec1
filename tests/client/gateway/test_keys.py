"""Keys: who is let in, what each may have under way, and that a new file counts at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.gateway import gateway, picture

from ipt_triton.client.gateway.keys import KeyFileError, new_key, parse_keys

PHOTO = "/v1/restore?task=derain"


def bearing(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_only_holders_of_a_key_are_let_in_and_keys_change_without_a_restart(tmp_path: Path):
    (first, line), (second, other) = new_key("first"), new_key("second")
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{line}\n")
    with gateway(tmp_path / "folder", keys_file=file) as (http, _):
        for headers in ({}, bearing("ipt_guessed"), bearing(line.split()[0])):
            refused = http.post(PHOTO, content=picture(), headers=headers)
            assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        assert http.post(PHOTO, content=picture(), headers=bearing(first)).status_code == 200
        assert http.get("/metrics").status_code == 401 and http.get("/v1/tasks").status_code == 200
        file.write_text(f"{other}\n")
        assert http.post(PHOTO, content=picture(), headers=bearing(first)).status_code == 401
        assert http.post(PHOTO, content=picture(), headers=bearing(second)).status_code == 200
        file.write_text("nonsense\n")
        assert http.post(PHOTO, content=picture(), headers=bearing(second)).status_code == 200


def test_a_key_bounds_what_is_under_way(tmp_path: Path):
    secret, line = new_key("small")
    with gateway(tmp_path, keys=f"{line} requests=2") as (http, server):
        server.held = asyncio.Event()
        with ThreadPoolExecutor() as pool:
            held = [pool.submit(http.post, PHOTO, content=picture(), headers=bearing(secret)) for _ in range(2)]
            while len(server.asked) < 2:
                pass
            refused = http.post("/v1/jobs?task=derain", content=picture(), headers=bearing(secret))
            assert http.portal
            http.portal.call(server.held.set)
        assert [answer.result().status_code for answer in held] == [200, 200]
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "5"
        assert http.post(PHOTO, content=picture(), headers=bearing(secret)).status_code == 200


def test_megapixels_under_way_are_bounded_too(tmp_path: Path):
    with gateway(tmp_path, megapixels=0.004) as (http, server):
        assert http.post(PHOTO, content=picture(width=120)).status_code == 413
        server.held = asyncio.Event()
        job = http.post("/v1/jobs?task=derain", content=picture()).json()
        assert http.post(PHOTO, content=picture()).status_code == 429
        http.delete(job["links"]["self"])
        server.held = None
        assert http.post(PHOTO, content=picture()).status_code == 200


@pytest.mark.parametrize(
    "line", ["sha256:abc me", "secret", f"sha256:{'0' * 64} me speed=3", f"sha256:{'0' * 64} requests=x"]
)
def test_a_line_that_is_no_key_is_named(line: str):
    with pytest.raises(KeyFileError, match="line 2"):
        parse_keys(["# fine", line])


def test_new_key_prints_the_hash_for_the_file_and_the_key_for_its_owner():
    command = [sys.executable, "-m", "ipt_triton.client.gateway.command", "new-key", "alice"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    (key,) = parse_keys(run.stdout.splitlines()).values()
    assert key.name == "alice" and run.stderr.startswith("ipt_") and run.stderr.strip() not in run.stdout


def test_pages_of_other_sites_may_call_only_where_they_are_named(tmp_path: Path):
    with gateway(tmp_path, origins=("https://friend.example",)) as (http, _):
        for origin, status in (
            ("https://friend.example", 200),
            ("https://foe.example", 403),
            ("http://127.0.0.1", 200),
        ):
            assert http.post(PHOTO, content=picture(), headers={"Origin": origin}).status_code == status
        asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        assert (
            http.options("/v1/jobs", headers=asked).headers["Access-Control-Allow-Origin"] == "https://friend.example"
        )
        foreign = http.get("/v1/tasks", headers={"Origin": "https://foe.example"})
        assert "Access-Control-Allow-Origin" not in foreign.headers
