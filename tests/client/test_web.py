"""The web page, driven through gradio's own client against a real server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.support import Served, read_image
from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.client.web import build_page, main
from ipt_triton.train.model.infer import restore_image


def test_page_restores_an_uploaded_photo(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from gradio_client import Client, handle_file

    photo = read_image("kitten")[100:180, 100:200]
    Image.fromarray(photo).save(tmp_path / "kitten.png")
    with RestorationClient(served.server.grpc_url) as client:
        page = build_page(client, tmp_path)
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(tmp_path)])
        try:
            caller = Client(address, verbose=False, download_files=str(tmp_path))
            _, restored, line = caller.predict(handle_file(tmp_path / "kitten.png"), "sr_x2", api_name="/restore")
        finally:
            page.close()
    expected = restore_image(served.checkpoint.model, photo, "sr_x2")
    assert np.abs(np.asarray(Image.open(restored)).astype(int) - expected).max() <= 1
    assert "100×80 → 200×160" in line


@pytest.mark.slow
def test_page_without_a_server_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "ipt_triton.client.connection.RestorationClient.__init__.__defaults__", ("", None, 0)
    )  # no retries
    assert main(["--url", "127.0.0.1:1"]) == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
