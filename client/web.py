"""A web page in front of a running server: drop a photo, choose a task, compare, download.

ipt-web
ipt-web --url gpu-box:8001 --port 7860
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipt_triton.cli import make_parser
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.errors import RestorationError
from ipt_triton.client.photo import Photo, read_photo, write_photo
from ipt_triton.tasks import TaskKey

LABELS = {
    "sr": "enlarge x{scale}",
    "denoise": "remove noise",
    "derain": "remove rain",
    "dejpeg": "remove traces of JPEG",
    "real": "repair, enlarge x{scale}",
    "auto": "repair whatever there is",
}


def restore_file(client: RestorationClient, path: str | Path, task: TaskKey, folder: Path) -> tuple[Path, Path, str]:
    """Restore one photo file.

    Returns:
        A PNG of the photo enlarged to the result's size by repeating pixels (to compare with), the restored PNG (same
        depth, alpha, profile and EXIF as the photo), and a line about both.

    Raises:
        RestorationError: the photo or the server, in one sentence.
    """
    photo = read_photo(path)
    chain = client.info().chain(task)
    started = time.perf_counter()
    restored = photo.with_planes([client.restore(plane, task) for plane in photo.planes()])
    seconds = time.perf_counter() - started
    stem, made = Path(path).stem, chain.name.replace(",", "_")
    before, after = folder / f"{stem}_before.png", folder / f"{stem}_{made}.png"
    enlarged = photo.with_planes([p.repeat(chain.scale, 0).repeat(chain.scale, 1) for p in photo.planes()])
    write_photo(enlarged, before)
    write_photo(restored, after)
    return before, after, f"{sides(photo)} → {sides(restored)} in {seconds:.1f} s"


def sides(photo: Photo) -> str:
    width, height = photo.size
    return f"{width}×{height}"


def build_page(client: RestorationClient, folder: Path) -> Any:
    """The page as a `gradio.Blocks`; results are written below `folder`.

    Raises:
        RestorationError: the server does not answer.
    """
    import gradio as gr  # heavy, and only this command needs it

    choices = [(LABELS.get(t.kind, t.name).format(scale=t.scale) + f" — {t.name}", t.name) for t in client.tasks()]

    def restore(path: str | None, task: str) -> tuple[tuple[str, str], str, str]:
        if path is None:
            raise gr.Error("Choose a photo first.")
        try:
            before, after, line = restore_file(client, path, task, Path(tempfile.mkdtemp(dir=folder)))
        except RestorationError as error:
            raise gr.Error(str(error)) from None
        return (str(before), str(after)), str(after), line

    with gr.Blocks(title="ipt-triton", analytics_enabled=False) as page:
        gr.Markdown("# ipt-triton\nRestore a photo through the server.")
        with gr.Row():
            with gr.Column(scale=1):
                photo = gr.Image(type="filepath", label="photo", image_mode=None, sources=["upload", "clipboard"])
                task = gr.Radio(choices, value=choices[0][1], label="task")
                button = gr.Button("Restore", variant="primary")
            with gr.Column(scale=2):
                comparison = gr.ImageSlider(label="before and after", type="filepath", interactive=False)
                line = gr.Markdown()
                download = gr.File(label="restored photo")
        button.click(restore, [photo, task], [comparison, download, line], api_name="restore")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 stopped, 2 no server or wrong arguments."""
    parser = make_parser("ipt-web", __doc__ or "")
    parser.add_argument(
        "--url", default="localhost:8001", help="HOST:PORT of the server's gRPC port (default %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="of the page (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="ipt-web-") as name, RestorationClient(arguments.url) as client:
            page = build_page(client, Path(name))
            page.launch(server_name=arguments.host, server_port=arguments.port, allowed_paths=[name], quiet=True)
    except (RestorationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
