"""Reading what anybody may have written: JSON and hashes within bounds, dataclasses with fields of their types.

Who reads a file of ours gets plain values or one ValueError, whose message is a clause to put behind the file's name.
Standard library only and Python 3.9 syntax, because it is copied beside the Triton models that run engines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

MAX_JSON_BYTES = 8 * 2**20
"""Of a JSON file; Python makes thirty times as much of the worst one."""

MAX_DEPTH = 200
"""Of lists and objects within one another; a checkpoint's provenance grows by 2 with each training run."""

MAX_WHOLE = 2**63
"""Whole numbers stay below it, as they do in every other language."""

_SHOWN = 60


def shown(value: object) -> str:
    """A value for a message: as Python writes it, cut where it gets long."""
    if isinstance(value, int) and abs(value) >= MAX_WHOLE:  # Python may refuse to write it
        return "a number of more than 18 digits"
    text = ascii(value[:_SHOWN] if isinstance(value, (str, list)) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def printable(text: str) -> str:
    """Text for a terminal: control characters and bytes that are no characters become escapes such as `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def excerpt(error: Exception) -> str:
    """The beginning of another library's message, which may hold whatever the file holds."""
    text = printable(str(error) or type(error).__name__)
    return text if len(text) <= 5 * _SHOWN else f"{text[: 5 * _SHOWN]}…"


def parse_json(text: str) -> Any:
    """JSON as Python's values.

    Raises:
        ValueError: no JSON, NaN or Infinity in it, whole numbers over `MAX_WHOLE`, or more than `MAX_DEPTH` levels.
    """

    def whole(digits: str) -> int:
        if len(digits) > 19 or abs(int(digits)) >= MAX_WHOLE:
            raise ValueError(f"a number of {len(digits)} digits is not allowed")
        return int(digits)

    def fraction(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError(f"{shown(digits)} is too large")
        return float(digits)

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not allowed")

    try:
        values = json.loads(text, parse_int=whole, parse_float=fraction, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels are not allowed") from None
    level, depth = [values], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels are not allowed")
    return values


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_json(path: Path) -> Any:
    """A JSON file's values.

    Raises:
        OSError: it is not there or not a file.
        ValueError: as `parse_json`; also for other than UTF-8 and more than `MAX_JSON_BYTES`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a file")
    if status.st_size > MAX_JSON_BYTES:
        raise ValueError(f"{status.st_size} bytes are more than the {MAX_JSON_BYTES} that are allowed")
    return parse_json(path.read_text(encoding="utf-8"))


def build(cls: Callable[..., T], values: object) -> T:
    """A dataclass from the object that JSON has for it: no field foreign or missing, each of its type.

    Fields may be str, bool, int, float, Any, dataclasses, and tuples, lists, dicts and Optionals of these. A class with
    a method `from_json` reads itself.

    Raises:
        ValueError: naming the field; also what the class itself refuses.
    """
    name = getattr(cls, "__name__", "")
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is {shown(values)} and not an object")
    kinds = get_type_hints(cls)
    fields: Any = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if foreign := [key for key in values if key not in fields]:
        raise ValueError(f"{name} has no field {shown(foreign[0])}")
    needed = (f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING)
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    return cls(**{key: convert(kinds[key], value, f"{key} of {name}") for key, value in values.items()})


def convert(kind: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type that a dataclass's field has.

    Args:
        name: of the value, for the message.

    Raises:
        ValueError: it is of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Union:  # Optional
        return None if value is None else convert(arguments[0], value, name)
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)) and origin in (tuple, list):
        if origin is list or arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) == len(value):
            return origin(convert(k, v, name) for k, v in zip(arguments, value))
    if isinstance(value, Mapping) and origin is dict and all(isinstance(key, str) for key in value):
        return {key: convert(arguments[1], v, name) for key, v in value.items()}
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value)
    wanted = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise ValueError(f"{name} is {shown(value)}, not {wanted}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex, a piece at a time: whatever its size, it does not fill the memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
