"""Add a task to trained weights: it gets a head and a tail of its own beside a body that stays as it is.

    .venv/bin/python examples/add_a_task.py
    .venv/bin/ipt-serve --repository build/add_a_task/models

The task takes away the traces of strong JPEG compression. It is trained for a few steps on pieces of the six sample
photographs, which takes a minute or two on two cores. A useful task needs a folder of photographs of its own and
thousands of steps.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from ipt_triton.images import PHOTOS, read_rgb
from ipt_triton.metrics import psnr, to_uint8
from ipt_triton.train.data.degradations import degrade_image
from ipt_triton.train.model.checkpoint import load_checkpoint
from ipt_triton.train.model.infer import restore_image

WEIGHTS = Path(__file__).parents[1] / "weights" / "ipt-tiny"
FOLDER = Path("build/add_a_task")
TASK = "dejpeg_20"


def cut_photographs(folder: Path) -> None:
    """Quarters of the sample photographs but one: 20, of which the trainer keeps 12 to judge by."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(PHOTOS.glob("*.png")):
        image = read_rgb(path)
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        for quarter in range(4 * (path.stem != "kitten")):
            top, left = quarter // 2 * rows, quarter % 2 * columns
            Image.fromarray(image[top : top + rows, left : left + columns]).save(folder / f"{path.stem}-{quarter}.png")


def run(module: str, *words: object) -> None:
    """Run a command as a terminal would: `ipt-train` is `python -m ipt_triton.train`."""
    subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True)


def main() -> None:
    cut_photographs(FOLDER / "photos")
    checkpoint = FOLDER / "run" / "checkpoint"
    if not checkpoint.exists():
        task = ("--task", TASK, "--degradation", "dejpeg", "--quality", 20, "--freeze-body")
        length = ("--steps", 60, "--batch", 8, "--warmup", 10, "--precision", "fp32")
        where = ("--data", FOLDER / "photos", "--output", checkpoint.parent)
        run("ipt_triton.train", "finetune", WEIGHTS, *task, *length, *where)

    model = load_checkpoint(checkpoint).model
    clean = read_rgb(PHOTOS / "kitten.png")
    degraded = to_uint8(degrade_image(clean, model.task(TASK), seed=0))
    restored = restore_image(model, degraded, TASK)
    print(f"kitten.png, PSNR: JPEG {psnr(degraded, clean):.2f} dB, restored {psnr(restored, clean):.2f} dB")

    run("ipt_triton.export", checkpoint, "--parts", FOLDER / "parts", "--repository", FOLDER / "models")


if __name__ == "__main__":
    main()
