"""`POST /v1/restore`: forms and bare bodies, what is kept of a photo, and one sentence for all that is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.gateway import Repeating, gateway, opened, picture
from PIL import ExifTags, Image, ImageCms

from ipt_triton.client.errors import RequestTimeout, ServerError, ServerUnavailable
from ipt_triton.client.photo import read_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def clear_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (30, 30), (200, 0, 0, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_form_and_a_bare_body_are_restored_alike(http: TestClient):
    photo = picture()
    form = http.post("/v1/restore", files={"image": ("a cat.png", photo)}, data={"task": "sr_x2"})
    bare = http.post("/v1/restore?task=sr_x2", content=photo, headers={"Content-Type": "image/png"})
    assert (form.status_code, bare.status_code) == (200, 200), form.text
    expected = np.asarray(opened(photo)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(np.asarray(opened(form.content)), expected)
    np.testing.assert_array_equal(np.asarray(opened(bare.content)), expected)
    assert form.headers["Ipt-Size"] == "120x80" and form.headers["Ipt-Task"] == "sr_x2"
    assert "a%20cat_sr_x2.png" in form.headers["Content-Disposition"]
    assert {part.split(";")[0] for part in form.headers["Server-Timing"].split(", ")} == {
        "queue",
        "decode",
        "restore",
        "encode",
    }


def test_depth_alpha_orientation_profile_and_metadata_are_kept(http: TestClient):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "Camera"
    photo = picture("JPEG", exif=exif, icc_profile=SRGB, comment=b"a comment")
    restored = read_photo(http.post("/v1/restore?task=derain", content=photo).content)
    assert restored.size == (40, 60) and restored.icc == SRGB and restored.comment == "a comment"
    assert b"Camera" in (restored.exif or b"") and b"derain" in (restored.xmp or b"")
    stripped = read_photo(http.post("/v1/restore?task=derain&metadata=strip", content=photo).content)
    assert stripped.exif is None and stripped.xmp is None and stripped.icc == SRGB
    clear = http.post("/v1/restore?task=sr_x2", content=clear_picture())
    assert opened(clear.content).mode == "RGBA"
    deep = io.BytesIO()
    Image.fromarray((np.arange(48 * 48, dtype=np.uint16) * 28).reshape(48, 48)).save(deep, "PNG")
    assert read_photo(http.post("/v1/restore?task=0", content=deep.getvalue()).content).bits == 16


@pytest.mark.parametrize("name", ["png", "jpg", "jpeg", "webp", "tiff", "avif", "bmp", "ppm"])
def test_the_result_comes_in_the_format_that_is_asked_for(http: TestClient, name: str):
    answer = http.post(f"/v1/restore?task=derain&format={name}&quality=80", content=picture())
    assert answer.status_code == 200
    kind = {"jpg": "jpeg", "ppm": "x-portable-pixmap"}.get(name, name)
    assert answer.headers["Content-Type"] == f"image/{kind}"
    assert opened(answer.content).format == {"jpg": "JPEG"}.get(name, name.upper())


@pytest.mark.parametrize(
    ("status", "query", "body", "words"),
    [
        (400, "task=derain", b"", "no photo"),
        (415, "task=derain", b"This is a letter, and no photo.", "not an image"),
        (422, "task=derain", picture("PNG")[:-2000], "truncated or damaged"),
        (422, "task=nothing", picture(), "sr_x2"),
        (422, "", picture(), "task is missing"),
        (422, "task=derain&quality=101", picture(), "quality is '101'"),
        (422, "task=derain&speed=9", picture(), "no option 'speed'"),
        (422, "task=derain&format=gif", picture(), "must be one of"),
        (422, "task=derain&stride=47&keep=20", picture(), "47"),
        (422, "task=derain&format=jpg", clear_picture(), "cannot hold transparency"),
        (415, "task=derain", picture("GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))]), "frames"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(http: TestClient, status: int, query: str, body: bytes, words: str):
    answer = http.post(f"/v1/restore?{query}", content=body)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status), problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert words in problem["detail"] and "/" + "tmp" not in problem["detail"]


def test_options_and_chains_go_to_the_client(http: TestClient, server: Repeating):
    query = "task=derain,0&strength=0.5&tta=yes&stride=36&keep=36&width=120"
    answer = http.post(f"/v1/restore?{query}", content=picture())
    assert answer.status_code == 200 and answer.headers["Ipt-Task"] == "derain,sr_x2"
    assert server.options == {"strength": 0.5, "tta": True, "stride": 36, "keep": 36, "width": 120}
    for wrong in ("scale=2&width=9", "scale=99", "strength=2"):
        assert http.post(f"/v1/restore?task=derain&{wrong}", content=picture()).status_code == 422


def test_a_body_of_another_kind_and_a_form_without_a_file_are_told_apart(http: TestClient):
    assert http.post("/v1/restore?task=derain", json={"image": "?"}).status_code == 415
    assert http.post("/v1/restore", files={"photo": picture()}, data={"task": "derain"}).status_code == 400
    assert http.post("/v1/restore", data={"task": "derain"}, files={"image": b""}).status_code == 400
    twice = [("image", picture()), ("image", picture())]
    assert http.post("/v1/restore?task=derain", files=twice).status_code == 400
    broken = http.post(
        "/v1/restore?task=derain",
        content=b"--x\r\nnothing",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert broken.status_code == 400


def test_unknown_paths_and_methods_are_problems_too(http: TestClient):
    missing, wrong = http.get("/v1/nothing"), http.get("/v1/restore")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["detail"] and wrong.json()["title"] == "Method Not Allowed"
    assert wrong.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ServerUnavailable("the server at secret:8001 is away; ask again in 7 s"), 503),
        (RequestTimeout("no answer from secret:8001"), 504),
        (ServerError("secret:8001 broke"), 502),
    ],
)
def test_failures_of_the_server_are_told_without_its_address(
    http: TestClient, server: Repeating, failure: Exception, status: int
):
    server.failure = failure  # type: ignore[assignment]
    answer = http.post("/v1/restore?task=derain", content=picture())
    assert answer.status_code == status and "secret" not in answer.text
    assert ("Retry-After" in answer.headers) == ("retry_after_s" in answer.json()) == (status == 503)


def test_request_ids_are_taken_over_and_handed_on_or_made(http: TestClient, server: Repeating):
    own = {"X-Request-Id": "abc-123"}
    assert http.get("/healthz", headers=own).headers["X-Request-Id"] == "abc-123"
    odd = {"X-Request-Id": "a b\tc" * 50}
    assert len(http.get("/healthz", headers=odd).headers["X-Request-Id"]) == 16
    answer = http.post("/v1/restore?task=sr_x2", content=picture(), headers=own)
    assert answer.headers["X-Request-Id"] == server.request_id == "abc-123"


def test_too_large_files_and_pictures_are_refused_early(tmp_path: Path):
    limits = {"max_upload_bytes": 20_000, "max_pixels": 5_000, "max_output_pixels": 15_000}
    with gateway(tmp_path, **limits) as (http, server):
        unread = http.build_request(
            "POST", "/v1/restore?task=derain", content=b"x", headers={"Content-Length": "20001"}
        )
        assert http.send(unread).status_code == 413
        pieces = (b"x" * 1000 for _ in range(30))
        assert http.post("/v1/restore?task=derain", content=pieces).status_code == 413
        assert "5000 pixels" in http.post("/v1/restore?task=derain", content=picture(width=200)).json()["detail"]
        larger = http.post("/v1/restore?task=sr_x4", content=picture())
        assert larger.status_code == 413 and "38400 pixels" in larger.json()["detail"]
        assert server.asked == [] and not list((tmp_path / "work").iterdir())
