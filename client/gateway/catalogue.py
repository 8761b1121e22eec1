"""The tasks of a server in words, in groups, with an example picture of each."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from ipt_triton.tasks import Task

EXAMPLES = Path(__file__).with_name("examples")
"""Photographs as each task expects them: `<task>.jpg`. The restored ones come from the server itself."""

_GROUPS = {
    "sr": "Enlarge",
    "denoise": "Clean",
    "dejpeg": "Clean",
    "derain": "Clean",
    "deblur": "Repair",
    "real": "Repair",
    "auto": "Repair",
}
_OTHERS = "More"
_LIGHT_SIGMA, _HEAVY_SIGMA = 20, 40


class Example(BaseModel):
    """Addresses of two pictures."""

    before: str
    after: str


class TaskInWords(BaseModel):
    """A task that the server offers."""

    id: int
    name: str = Field(examples=["sr_x2"])
    scale: int = Field(description="Sides of the result over those of the photo.")
    kind: str = Field(examples=["sr"])
    group: str = Field(examples=["Enlarge"])
    title: str = Field(examples=["Enlarge 2×"])
    description: str
    example: Example | None


def in_words(task: Task) -> TaskInWords:
    """A task as people read it."""
    title, description = _words(task)
    pictures = f"/v1/tasks/{task.name}"
    return TaskInWords(
        id=task.id,
        name=task.name,
        scale=task.scale,
        kind=task.kind,
        group=_GROUPS.get(task.kind, _OTHERS),
        title=title,
        description=description,
        example=Example(before=f"{pictures}/before.jpg", after=f"{pictures}/after.jpg") if example_of(task) else None,
    )


def example_of(task: Task) -> Path | None:
    """The file of a task's example picture, or None."""
    path = EXAMPLES / f"{task.name}.jpg"
    return path if path.is_file() else None


def _words(task: Task) -> tuple[str, str]:
    """Title and one line of description."""
    if task.kind == "sr":
        return f"Enlarge {task.scale}×", "For clean photos that are too small."
    if task.kind == "denoise":
        return _noise(task.sigma)
    if task.kind == "derain":
        return "Remove rain", "For streaks of rain in front of the scene."
    if task.kind == "dejpeg":
        strong = f" Made for quality {task.quality}." if task.quality else ""
        return "Remove JPEG traces", f"For blocks and rings of strong compression.{strong}"
    if task.kind == "deblur":
        return "Sharpen", f"For photos blurred by about {task.sigma:g} pixels."
    if task.kind == "real":
        what = f"Repair and enlarge {task.scale}×" if task.scale > 1 else "Repair"
        return what, "For old or often copied photos: noise, blur and compression together."
    if task.kind == "auto":
        return "Repair whatever there is", "Finds out by itself, and leaves good photos alone."
    return task.name.replace("_", " ").capitalize(), "A task of this server's own."


def _noise(sigma: float) -> tuple[str, str]:
    if sigma == 0:
        return "Remove noise", "For grain of any strength, as in photos taken in the dark."
    strength = "light" if sigma < _LIGHT_SIGMA else "medium" if sigma < _HEAVY_SIGMA else "heavy"
    return f"Remove {strength} noise", f"For grain of about σ {sigma:g}; weaker grain may come out blurred."
