"""The page in a real browser, in front of a real gateway whose server gives pictures back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import Visitor, png
from helpers.live_gateway import Live, live_gateway
from helpers.support import read_image
from PIL import Image

from ipt_triton.client.gateway.keys import new_key
from ipt_triton.images import PHOTOS

pytestmark = pytest.mark.slow

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def started(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def gateway(started: Live) -> Live:
    """One that large photos halt in, until `going` is set."""
    started.going.clear()
    return started


@pytest.fixture
def visit(open_page: Visit, gateway: Live) -> Visit:
    """Open the page of a gateway, by default of that one."""
    return lambda url=gateway.url, **options: open_page(url, **options)


def large_photo(side: int = 1100) -> dict[str, Any]:
    """A photo that the gateway halts in, unless it is smaller."""
    ramp = (np.arange(side)[:, None] * 3 + np.arange(side)) % 256
    return png(np.repeat(ramp[..., None], 3, 2).astype(np.uint8), "large.png")


KITTEN = read_image("kitten")[100:180, 100:200]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_a_photo_is_restored_compared_and_downloaded(visit: Visit, width: int, height: int):
    visitor = visit(width=width, height=height)
    visitor.bring(png(KITTEN, "kitten.png"))
    visitor.choose("sr_x2")
    visitor.restore()
    assert "100 × 80 → 200 × 160" in visitor.text("#status")
    name, data = visitor.download()
    assert name.startswith("kitten") and name.endswith(".png")
    assert (np.asarray(Image.open(io.BytesIO(data))) == KITTEN.repeat(2, 0).repeat(2, 1)).all()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_result_is_downloaded_in_the_format_that_is_chosen(visit: Visit):
    visitor = visit()
    visitor.bring(png(KITTEN, "kitten.png"))
    visitor.choose("sr_x2")
    visitor.restore()
    for choice, form in (("same", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")):
        visitor.page.select_option("#format", choice)
        _, data = visitor.download()
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == (form, (200, 160))


def test_tasks_stand_in_groups_each_with_a_line_and_a_thumbnail(visit: Visit):
    visitor = visit()
    page = visitor.page
    assert page.locator("#tasks fieldset legend").all_inner_texts()[0] == "Enlarge"
    for task in page.locator(".task").all():
        assert task.locator("b").inner_text() and task.locator(".words .muted").inner_text()
    visitor.until("[...document.querySelectorAll('.thumb img')].every((image) => image.naturalWidth)")
    assert page.locator(".thumb img").count() > 0


def test_the_divider_moves_by_pointer_and_keys(visit: Visit):
    visitor = visit()
    visitor.bring(png(KITTEN))
    visitor.restore()
    page, view = visitor.page, visitor.page.locator("#view").bounding_box()
    middle = view["y"] + view["height"] / 2
    page.mouse.move(view["x"] + view["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(view["x"] + view["width"] * 0.7, middle, steps=4)
    page.mouse.up()
    assert 60 < visitor.split() < 90
    page.focus("#divider")
    for key, expected in (("Home", 0), ("End", 100), ("PageDown", 90), ("ArrowLeft", 88), ("Shift+ArrowLeft", 78)):
        page.keyboard.press(key)
        assert visitor.split() == expected
    assert page.get_attribute("#divider", "aria-valuetext") == "78 % before, 22 % after"


def test_the_divider_moves_by_touch_and_two_fingers_zoom(visit: Visit):
    visitor = visit(width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    visitor.bring(png(KITTEN))
    visitor.restore()
    page, view = visitor.page, visitor.page.locator("#view").bounding_box()
    x, y = view["x"] + view["width"] / 2, view["y"] + view["height"] / 2
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": at[0], "y": at[1], "id": number} for number, at in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    touch("touchStart", (x, y))
    for step in range(1, 6):
        touch("touchMove", (x - 20 * step, y))
    touch("touchEnd")
    assert visitor.split() < 40
    before = zoom_of(visitor)
    touch("touchStart", (x - 20, y + 60), (x + 20, y + 60))
    for step in range(1, 6):
        touch("touchMove", (x - 20 - 12 * step, y + 60), (x + 20 + 12 * step, y + 60))
    touch("touchEnd")
    assert zoom_of(visitor) > 2 * before


def zoom_of(visitor: Visitor) -> float:
    """Device pixels a pixel of the picture."""
    return float(
        visitor.page.evaluate(
            "devicePixelRatio * document.getElementById('after').getBoundingClientRect().width"
            " / document.getElementById('after').naturalWidth"
        )
    )


def corner_of(visitor: Visitor) -> tuple[float, float]:
    box = visitor.page.locator("#after").bounding_box()
    return round(box["x"]), round(box["y"])


@pytest.mark.parametrize("ratio", [1, 2])
def test_at_100_percent_pixels_are_the_screens_own_and_the_picture_is_panned(visit: Visit, ratio: int):
    visitor = visit(device_scale_factor=ratio, width=900, height=600)
    visitor.bring(large_photo(1000))
    visitor.choose("sr_x2")
    visitor.restore()
    assert zoom_of(visitor) < 1
    visitor.page.click("#full")
    assert zoom_of(visitor) == pytest.approx(1)
    x, y = corner_of(visitor)
    view = visitor.page.locator("#view").bounding_box()
    at = view["x"] + view["width"] / 4, view["y"] + view["height"] / 2
    visitor.page.mouse.move(*at)
    visitor.page.mouse.down()
    visitor.page.mouse.move(at[0] + 30, at[1] - 40, steps=3)
    visitor.page.mouse.up()
    assert corner_of(visitor) == (x + 30, y - 40)
    visitor.page.mouse.wheel(10, 20)
    visitor.until(f"document.getElementById('after').getBoundingClientRect().x < {x + 29}")
    assert corner_of(visitor)[1] < y - 40
    x, _ = corner_of(visitor)
    visitor.page.focus("#view")
    visitor.page.keyboard.press("ArrowRight")
    assert corner_of(visitor)[0] < x
    visitor.page.keyboard.press("0")
    assert visitor.page.get_attribute("#fit", "aria-pressed") == "true"
    visitor.page.keyboard.press("1")
    assert zoom_of(visitor) == pytest.approx(1)
    visitor.page.keyboard.press("+")
    assert zoom_of(visitor) == pytest.approx(1.25)


def test_the_loupe_shows_one_spot_before_and_after(visit: Visit):
    visitor = visit()
    visitor.bring(png(KITTEN))
    visitor.choose("sr_x2")
    visitor.restore()
    page = visitor.page
    page.click("#magnify")
    view = page.locator("#view").bounding_box()
    page.mouse.move(view["x"] + view["width"] / 2 + 30, view["y"] + view["height"] / 2 + 30)
    lenses = page.locator("#loupe .lens img")
    first, second = lenses.nth(0).bounding_box(), lenses.nth(1).bounding_box()
    assert (first["width"], first["height"]) == (second["width"], second["height"])
    assert first["width"] == pytest.approx(2 * page.locator("#after").bounding_box()["width"])
    page.focus("#view")
    page.keyboard.press("ArrowLeft")
    assert lenses.nth(0).bounding_box()["x"] > first["x"]
    page.click("#magnify")
    assert page.locator("#loupe").is_hidden()


def test_progress_is_told_in_tiles_with_an_estimate(visit: Visit, gateway: Live):
    visitor = visit()
    visitor.bring(large_photo())
    visitor.choose("denoise_30")
    visitor.page.click("#restore")
    visitor.until(r"/^20 of 40 tiles, .* left$/.test(document.getElementById('status').textContent)")
    assert visitor.page.evaluate("document.getElementById('progress').value") == 0.5
    assert visitor.page.title().startswith("50 %")
    gateway.going.set()
    visitor.until_compared()
    assert visitor.page.locator("#progress").is_hidden()


def test_the_place_in_the_queue_is_told(visit: Visit):
    visitor = visit()
    # Of photos above 4 megapixels, a gateway restores one of each visitor at a time.
    visitor.bring(*(large_photo(side) for side in (2001, 2002, 2003)))
    visitor.choose("denoise_30")
    visitor.page.click("#restore-all")
    visitor.page.locator("#strip .card >> nth=2").get_by_text("1 ahead").wait_for()
    visitor.page.click("#strip .card >> nth=2")
    assert visitor.text("#status") == "Waiting, 1 photo ahead"
    visitor.page.click("#strip .card >> nth=1")
    assert visitor.text("#status") == "Next in line"
    visitor.page.click("#cancel-all")
    visitor.page.locator("#strip li[data-state=cancelled]").nth(2).wait_for()


def test_a_new_photo_takes_the_stage_and_both_are_listed(visit: Visit):
    visitor = visit()
    visitor.bring(png(KITTEN, "first.png"))
    visitor.restore()
    visitor.bring(png(KITTEN[:60, :60], "second.png"))
    page = visitor.page
    page.locator("#divider").wait_for(state="hidden")
    assert visitor.text("#name") == "second.png" and page.locator("#save").is_hidden()
    assert page.locator("#strip .name").all_inner_texts() == ["first.png", "second.png"]
    page.click("#strip .card >> nth=0")
    page.locator("#divider").wait_for()
    page.click("#strip .cross >> nth=0")
    page.click("#remove")
    assert page.locator("#empty").is_visible()


def test_several_photos_are_restored_at_once(visit: Visit):
    visitor = visit()
    visitor.bring(*(png(KITTEN[: 40 + 10 * number], f"{number}.png") for number in range(3)))
    visitor.choose("sr_x2")
    visitor.page.click("#restore-all")
    visitor.page.locator("#strip li[data-state=done]").nth(2).wait_for()
    downloads: list[Any] = []
    visitor.page.on("download", lambda download: downloads.append(download))
    visitor.page.click("#download-all")
    visitor.until("!document.getElementById('download').disabled")
    sizes = [Image.open(download.path()).size for download in downloads]
    assert sizes == [(200, 80), (200, 100), (200, 120)]


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_photos_are_pasted_and_dropped(visit: Visit, way: str):
    visitor = visit()
    visitor.page.evaluate(
        """async ([way, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            const event = way === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                : new DragEvent("drop", { ...options, dataTransfer: data });
            document.getElementById("stage").dispatchEvent(event);
        }""",
        [way, list(png(KITTEN)["buffer"])],
    )
    assert visitor.text("#name") == {"paste": "pasted.png", "drop": "image.png"}[way]
    visitor.restore()


def test_the_keyboard_alone_does_all_of_it(visit: Visit):
    visitor = visit()
    page = visitor.page
    page.locator("#samples button").first.wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached by Tab")

    tab_to("#samples button")
    page.keyboard.press("Enter")
    page.locator("#bar").wait_for()
    tab_to("input[name=task]")
    page.keyboard.press("ArrowDown")
    chosen = page.evaluate("document.activeElement.value")
    assert page.evaluate("document.activeElement.checked")
    tab_to("#restore")
    page.evaluate(
        "() => { window.focused = []; document.addEventListener('focusin', (e) => window.focused.push(e.target.id)); }"
    )
    page.keyboard.press("Enter")
    visitor.until_compared()
    visitor.until("document.activeElement.id === 'divider'")
    assert page.evaluate("window.focused") == ["cancel", "divider"]
    page.keyboard.press("End")
    assert visitor.split() == 100
    title = page.inner_text(f".task:has([value={chosen}]) b")
    assert title in visitor.text("#status")
    tab_to("#format")
    page.keyboard.press("ArrowDown")
    tab_to("#download")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    assert Image.open(waiting.value.path()).size[0] > 0


def test_text_that_is_called_a_photo_is_refused_in_a_sentence(visit: Visit, tmp_path: Path):
    visitor = visit()
    (tmp_path / "holiday.jpg").write_text("this is no photo\n" * 10)
    visitor.bring(tmp_path / "holiday.jpg")
    visitor.page.click("#restore")
    trouble = visitor.page.locator("#trouble:not(:empty)")
    trouble.wait_for()
    assert len(trouble.inner_text()) > 20 and trouble.inner_text().endswith(".")
    assert visitor.text("#restore") == "Try again"
    visitor.bring(PHOTOS / "dog.png")  # the next photo works
    assert visitor.text("#trouble") == ""
    visitor.restore()


def test_what_is_too_large_is_not_even_sent(tmp_path: Path, visit: Visit):
    with live_gateway(tmp_path, max_upload_bytes=300_000, max_pixels=1_000_000) as small:
        visitor = visit(small.url)
        visitor.bring(PHOTOS / "dog.png")
        assert "dog.png has 373 KB; this server takes at most 300 KB." in visitor.text("#trouble")
        assert visitor.page.locator("#restore").is_hidden()
        visitor.bring(large_photo())
        visitor.until("document.getElementById('name').textContent === 'large.png'")
        visitor.page.click("#restore")
        visitor.until("document.getElementById('trouble').textContent")
        assert "large.png has 1.2 megapixels; this server takes at most 1 megapixel." in visitor.text("#trouble")
        assert not [url for url in visitor.requests if url.endswith("/v1/jobs")]


def test_a_gateway_that_goes_away_is_looked_for_and_then_missed(tmp_path: Path, visit: Visit):
    with live_gateway(tmp_path) as running:
        visitor = visit(running.url)
        visitor.page.clock.install()
        visitor.bring(large_photo())
        visitor.page.click("#restore")
        visitor.until_under_way()
        running.stop()
        visitor.until("/connection is lost/.test(document.getElementById('status').textContent)")
        for _ in range(6):
            visitor.page.clock.run_for(10_000)
        visitor.page.locator("#trouble:not(:empty)").wait_for()
        assert "does not answer" in visitor.text("#trouble")
        assert visitor.text("#restore") == "Try again"
        assert visitor.page.locator("#before").is_visible()  # the photo is still here


def test_cancelling_leaves_the_photo_and_frees_the_server(visit: Visit):
    visitor = visit()
    visitor.bring(large_photo())
    visitor.page.click("#restore")
    visitor.until_under_way()
    with visitor.page.expect_request(lambda request: request.method == "DELETE") as deletion:
        visitor.page.click("#cancel")
    assert deletion.value.response().status == 204
    assert visitor.text("#status") == "Cancelled" and visitor.page.locator("#restore").is_visible()
    assert visitor.page.request.get(f"{deletion.value.url}/result").status == 410


def test_a_second_visitor_does_not_wait_for_the_first_ones_large_photo(visit: Visit):
    first, second = visit(), visit()
    first.bring(large_photo(2001))
    first.page.click("#restore")
    first.until_under_way()
    second.bring(png(KITTEN))
    second.choose("sr_x2")
    second.restore()
    assert first.page.locator("#cancel").is_visible() and first.page.locator("#progress").is_visible()
    first.page.click("#cancel")


def test_a_key_is_asked_for_where_the_server_wants_one(tmp_path: Path, visit: Visit):
    secret, line = new_key("alice")
    with live_gateway(tmp_path, keys=line) as locked:
        visitor = visit(locked.url)
        visitor.bring(png(KITTEN))
        visitor.page.click("#restore")
        visitor.page.locator("#key-dialog").wait_for()
        visitor.page.keyboard.type("wrong")
        visitor.page.keyboard.press("Enter")
        visitor.until("document.getElementById('key').value === '' && document.getElementById('key-dialog').open")
        visitor.page.fill("#key", secret)
        visitor.page.keyboard.press("Enter")
        visitor.until_compared()
        assert visitor.download()[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing(visit: Visit, gateway: Live, scheme: str, width: int):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visitor = visit(width=width, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    page = visitor.page

    def look(state: str) -> None:
        found = axe.run(page).response["violations"]
        assert [(state, rule["id"], rule["nodes"][0]["html"]) for rule in found] == []

    look("empty")
    visitor.bring(png(KITTEN, "one.png"), large_photo())
    visitor.choose("denoise_30")
    look("photos")
    page.click("#restore-all")
    page.locator("#strip li[data-state=running]").first.wait_for()
    look("running")
    gateway.going.set()
    page.locator("#download-all").wait_for()
    page.locator("#divider").wait_for()
    look("done")
    page.click("#magnify")
    look("loupe")
    page.evaluate("document.getElementById('key-dialog').showModal()")
    look("key")


def test_light_and_dark_follow_the_system_until_the_visitor_chooses(visit: Visit):
    page = visit(color_scheme="dark").page
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(19, 19, 19)"
    page.click("#theme")
    assert page.evaluate(paper) == "rgb(244, 244, 243)"
    page.reload()
    assert page.evaluate(paper) == "rgb(244, 244, 243)"


def test_nothing_moves_for_those_who_want_no_motion(visit: Visit):
    visitor = visit(reduced_motion="reduce")
    visitor.bring(large_photo())
    visitor.page.click("#restore")
    assert visitor.page.evaluate("document.getAnimations().length") == 0
    visitor.page.click("#cancel")
