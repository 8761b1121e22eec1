"""The options of a restore, as queries and forms hold them, and what they are for the client."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ipt_triton.client import options as client_options
from ipt_triton.client.gateway.problems import Problem, sentence_of
from ipt_triton.client.photo import FORMATS
from ipt_triton.client.photo.formats import format_named
from ipt_triton.reading import shown

FORMAT_NAMES = ("same", *FORMATS)

_FOR_CLIENT = ("stride", "keep", "width", "height", "scale", "strength", "tta")


class Options(BaseModel):
    """What is to be done with a photo; all but `task` may be left out."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = Field(
        default=None,
        max_length=1000,
        description="Name or id of a task, or several one after the other: `derain,sr_x2`. `/v1/tasks` has them.",
        examples=["sr_x2"],
    )
    format: str = Field(default="same", description=f"Of the result: {', '.join(FORMAT_NAMES)}; `same` as the photo's.")
    quality: int | None = Field(default=None, ge=1, le=100, description="Of JPEG, WebP and AVIF.")
    width: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Of the result, in pixels; with `height` it is the largest that fits.",
    )
    height: int | None = Field(default=None, ge=1, le=100_000, description="Of the result, in pixels.")
    scale: float | None = Field(default=None, gt=0, le=16, description="Sides of the result over those of the photo.")
    strength: float | None = Field(default=None, ge=0, le=1, description="0 leaves the photo, 1 is the whole effect.")
    stride: int | None = Field(default=None, ge=1, le=1000, description="Pixels between neighbouring tiles.")
    keep: int | None = Field(default=None, ge=2, le=1000, description="Side of each tile's centre that is used.")
    tta: bool | None = Field(
        default=None, description="The mean of eight turned and mirrored restores: better, slower."
    )
    metadata: Literal["keep", "strip"] = Field(default="keep", description="EXIF, XMP, IPTC and the like.")

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        name = "same" if value == "same" else format_named(value)
        if name is None:
            raise ValueError(f"must be one of {', '.join(FORMAT_NAMES)}")
        return name

    @property
    def named_task(self) -> str:
        """The task, or the chain of tasks.

        Raises:
            Problem: none was named.
        """
        if not self.task:
            raise Problem(422, "task is missing; /v1/tasks has the names, such as sr_x2")
        return self.task

    @property
    def keeps_metadata(self) -> bool:
        return self.metadata == "keep"

    def for_client(self) -> dict[str, Any]:
        """Arguments of the client's `restore` beside image and task."""
        return {name: value for name in _FOR_CLIENT if (value := getattr(self, name)) is not None}

    def of_client(self) -> client_options.Options:
        """What the client calls options.

        Raises:
            InvalidRequest: they contradict each other.
        """
        return client_options.Options(**{k: v for k, v in self.for_client().items() if k not in ("stride", "keep")})

    @classmethod
    def of(cls, query: Options, form: dict[str, str]) -> Options:
        """Options of a query and of a form together; what the form says counts.

        Raises:
            Problem: a value that is not allowed.
        """
        try:
            return cls.model_validate({**query.model_dump(exclude_unset=True), **form})
        except ValidationError as error:
            raise Problem(422, sentence_of(list(error.errors()))) from None


def check_format(name: str) -> str:
    """The name in `FORMATS` of a format that a caller asks for.

    Raises:
        Problem: there is none.
    """
    found = format_named(name)
    if found is None:
        raise Problem(422, f"format is {shown(name)}, which is not allowed: it must be one of {', '.join(FORMATS)}")
    return found
