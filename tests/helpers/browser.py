"""A headless Chromium, driven by Playwright, and what a visitor does with the page in it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REASON = "no Chromium here; apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip(REASON)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Its sandbox needs rights that containers and root do not have; it sees our own page alone.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def png(pixels: np.ndarray, name: str = "photo.png") -> dict[str, Any]:
    """A file to choose."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()}


class Visitor:
    """A browser window on the page, and its complaints: errors of scripts, breaches of the security policy."""

    def __init__(self, browser: Any, url: str, width: int = 1280, height: int = 800, **options: Any) -> None:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        context.set_default_timeout(30_000)
        self.page = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(url)
        self.page.locator(".task").first.wait_for()

    def _listen(self, message: Any) -> None:
        # Refused requests are logged by the browser itself; tests of errors look at what the page makes of them.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def bring(self, *files: Any) -> None:
        """Choose files: paths, or {"name", "mimeType", "buffer"}."""
        self.page.set_input_files("#files", list(files))

    def choose(self, task: str) -> None:
        """Choose a task by its name."""
        self.page.locator(f"input[value={task}]").check(force=True)

    def restore(self) -> None:
        """Press the button and wait for the comparison."""
        self.page.click("#restore")
        self.until_compared()

    def until_under_way(self) -> None:
        self.page.locator("#bar[data-state=running]").wait_for()

    def until_compared(self) -> None:
        self.page.locator("#save").wait_for()
        self.page.locator("#divider").wait_for()

    def until(self, condition: str) -> None:
        """Wait for an expression of JavaScript."""
        self.page.wait_for_function(f"() => {condition}")  # a bare expression would be refused by the security policy

    def split(self) -> int:
        """Where the divider stands, 0 to 100."""
        return int(self.page.get_attribute("#divider", "aria-valuenow") or -1)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def download(self) -> tuple[str, bytes]:
        """Name and bytes of the file that the page saves."""
        with self.page.expect_download() as waiting:
            self.page.click("#download")
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()
