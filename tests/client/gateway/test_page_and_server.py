"""The page in a real browser, in front of `ipt-gateway` and `ipt-serve` with the weights that come with the project.

`LARGE_MEGAPIXELS` says how large the first visitor's photo is.
"""

from __future__ import annotations

import io
import math
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from helpers.browser import Visitor, png
from helpers.live_gateway import gateway_command
from helpers.serve import Command, until
from helpers.support import read_image
from PIL import Image

from ipt_triton.export.repository.packed import unpack
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.tiling import count_patches
from ipt_triton.train.model.checkpoint import load_checkpoint
from ipt_triton.train.model.infer import restore_image

pytestmark = [pytest.mark.server, pytest.mark.slow]

WEIGHTS = Path(__file__).parents[3] / "weights" / "ipt-tiny"
MEGAPIXELS = float(os.environ.get("LARGE_MEGAPIXELS", "6"))
TILES = r"^(\d+) of (\d+) tiles"
WATCH = """() => {
    window.seen = [];
    const [bar, status] = ["progress", "status"].map((id) => document.getElementById(id));
    const look = () => window.seen.push([bar.hidden, bar.getAttribute("value"), status.textContent]);
    new MutationObserver(look).observe(bar, { attributes: true, attributeFilter: ["value"] });
}"""

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """`ipt-serve`, which ends well and leaves nothing."""
    folder = tmp_path_factory.mktemp("served")
    manifest = unpack(WEIGHTS / "parts.zip", folder / "parts")
    write_repository(folder / "parts", manifest, folder / "models", ServingOptions())
    started = Command(folder / "models")
    started.ready()
    yield started
    started.process.terminate()
    assert started.process.wait(60) == 0, started.output
    assert started.left() == []


@pytest.fixture(scope="module")
def url(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gateway_command(command.address("grpc"), tmp_path_factory.mktemp("gateway")) as address:
        yield address


def computed(command: Command) -> int:
    """Patches that the body has computed since the server started."""
    with triton.InferenceServerClient(command.address("grpc")) as connection:
        return int(connection.get_inference_statistics("body").model_stats[0].inference_count)


def under_way(command: Command) -> float:
    """Photographs that the server works on."""
    with urllib.request.urlopen(command.address("metrics")) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("ipt_photographs_under_way{"))


def test_the_bar_follows_the_servers_tiles_and_the_download_is_the_restored_photo(open_page: Visit, url: str) -> None:
    photo = read_image("parrot")[:360, :480]
    visitor = open_page(url)
    visitor.bring(png(photo, "parrot.png"))
    visitor.choose("denoise_30")
    visitor.page.evaluate(WATCH)
    visitor.restore()
    told = []
    for hidden, value, status in visitor.page.evaluate("window.seen"):
        if value is not None and (found := re.match(TILES, status)):
            assert not hidden and float(value) == pytest.approx(int(found[1]) / int(found[2]))
            told.append((int(found[1]), int(found[2])))
    print(f"tiles that the bar showed: {told}")
    assert told == sorted(told) and {due for _, due in told} == {count_patches(*photo.shape[:2])}
    assert len({done for done, due in told if done < due}) >= 3
    name, data = visitor.download()
    assert name == "parrot_denoise_30.png"
    assert data == visitor.page.request.get(f"{job_of(visitor)}/result").body()
    expected = restore_image(load_checkpoint(WEIGHTS).model, photo, "denoise_30")
    assert np.abs(np.asarray(Image.open(io.BytesIO(data))).astype(int) - expected).max() <= 1


def test_a_second_visitor_does_not_wait_for_the_first_ones_large_photo_whose_end_frees_the_server(
    open_page: Visit, url: str, command: Command, tmp_path: Path
) -> None:
    first, second = open_page(url), open_page(url)
    first.page.set_default_timeout(300_000)
    before = computed(command)
    first.bring(large_jpeg(tmp_path))
    first.choose("denoise_30")
    first.page.click("#restore")
    first.until("/^[1-9].* of .* tiles/.test(document.getElementById('status').textContent)")
    second.choose("sr_x2")
    waited = seconds_of_a_small_photo(second, "beside.png")
    job = first.page.request.get(job_of(first)).json()
    assert job["state"] == "running" and 0 < job["tiles_done"] < job["tiles"]
    assert first.page.locator("#progress").is_visible()
    with first.page.expect_request(lambda request: request.method == "DELETE") as deletion:
        first.page.click("#cancel")
    assert deletion.value.response().status == 204 and first.text("#status") == "Cancelled"
    left = time.monotonic()
    until(lambda: not under_way(command), 60, "nothing under way")
    spent, freed = computed(command) - before, time.monotonic() - left
    alone = seconds_of_a_small_photo(second, "alone.png")
    print(
        f"{job['input']}: {job['tiles_done']} of {job['tiles']} tiles when the second had its result after "
        f"{waited:.1f} s, alone {alone:.1f} s; {spent} computed when the server was free, {freed:.1f} s after DELETE"
    )
    assert spent < job["tiles"]


def seconds_of_a_small_photo(visitor: Visitor, name: str) -> float:
    """Until it is restored twice as large and compared."""
    began = time.monotonic()
    visitor.bring(png(read_image("kitten")[100:180, 100:200], name))
    visitor.restore()
    taken = time.monotonic() - began
    assert Image.open(io.BytesIO(visitor.download()[1])).size == (200, 160)
    return taken


def large_jpeg(folder: Path) -> Path:
    """A photo of `MEGAPIXELS`."""
    side = math.isqrt(round(MEGAPIXELS * 10**6))
    detail = read_image("skyline")
    repeats = [-(-side // length) for length in detail.shape[:2]]
    Image.fromarray(np.tile(detail, (*repeats, 1))[:side, :side]).save(folder / "large.jpg", quality=90)
    return folder / "large.jpg"


def job_of(visitor: Visitor) -> str:
    """The address of the page's last job."""
    return [address for address in visitor.requests if address.endswith("/events")][-1].removesuffix("/events")
