"""Checkpoints: a folder with `config.json` and safetensors shards that describes itself.

`config.json` holds the architecture with its task table, where the weights came from (`provenance`), measured quality
and the list of shards with their sha256. Loading is strict: a tensor that is missing, unexpected, misshaped or not
finite is an error that names it.

    save_checkpoint(model, Path("weights/mine"), provenance={"steps": 1000})
    checkpoint = load_checkpoint(Path("weights/mine"))
    checkpoint.model, checkpoint.sha256, checkpoint.provenance
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ipt_triton.files import atomic_directory
from ipt_triton.reading import excerpt, printable, read_json, sha256_of, shown
from ipt_triton.tasks import TaskError
from ipt_triton.train.errors import CheckpointError, ConfigError
from ipt_triton.train.model.ipt import IPT, IPTConfig

FORMAT = 1
SHARD_BYTES = 16 * 2**20
SHARD_NAME = r"weights-\d{2,5}-of-\d{2,5}\.safetensors"
MAX_NUMBERS = 2**30
"""Most weights of an architecture; the paper has 2**27."""

NAMED = 20
"""Tensors of each kind that an error names."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_STORED = ("F32", "F16", "BF16")  # as safetensors calls them


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: float32, in evaluation mode, on the CPU.
        sha256: hash of the stored tensors' names and values, hex; the same weights give the same hash.
        provenance: how the weights came about.
        quality: measured figures.
    """

    model: IPT
    sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)


def content_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 (hex) over names, shapes and float32 values, independent of order, sharding and storage type."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    model: IPT,
    folder: Path,
    provenance: dict[str, Any] | None = None,
    quality: dict[str, Any] | None = None,
    dtype: str = "float32",
    files: dict[str, str] | None = None,
) -> None:
    """Write a checkpoint folder atomically, in shards of at most 16 MiB.

    Args:
        dtype: storage type, `float32`, `float16` or `bfloat16`.
        files: more text files to put beside, name to text (a model card, for instance).

    Raises:
        CheckpointError: a tensor is not finite in the storage type, or `folder` holds something else than a checkpoint.
    """
    if Path(folder).exists() and not (Path(folder) / "config.json").is_file() and any(Path(folder).iterdir()):
        raise CheckpointError(
            f"{folder} holds other files than a checkpoint and would be replaced; choose another folder"
        )
    tensors = {name: t.detach().to("cpu", DTYPES[dtype]).contiguous() for name, t in model.state_dict().items()}
    _check_finite(tensors)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES - 2**16:  # room for the shard's own header
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    with atomic_directory(folder) as temporary:
        listing = {}
        for number, shard in enumerate(shards, 1):
            path = temporary / f"weights-{number:02d}-of-{len(shards):02d}.safetensors"
            save_file(shard, path)
            path.chmod(0o644)  # safetensors writes for the owner alone
            listing[path.name] = sha256_of(path)
        config = {
            "format": FORMAT,
            "architecture": model.config.to_dict(),
            "dtype": dtype,
            "shards": listing,
            "provenance": provenance or {},
            "quality": quality or {},
        }
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, text in (files or {}).items():
            (temporary / name).write_text(text)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: no such folder, unreadable or truncated files, or tensors that do not fit, by name.
    """
    folder = Path(folder)
    config = _read_config(folder)
    try:
        architecture = IPTConfig.from_dict(config["architecture"])
        wanted = shapes_of(architecture)
    except (ConfigError, TaskError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    paths = [_check_shard(folder, name, sha256) for name, sha256 in config["shards"].items()]
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        shards = [(path, stack.enter_context(_open_shard(path))) for path in paths]
        slices = {name: (path, shard.get_slice(name)) for path, shard in shards for name in shard.keys()}  # noqa: SIM118
        for name, (path, found) in slices.items():
            if found.get_dtype() not in _STORED:
                raise CheckpointError(f"{path}: tensor {shown(name)} is {found.get_dtype()}, not {', '.join(_STORED)}")
        _check_fit(wanted, {name: found.get_shape() for name, (_, found) in slices.items()})
        for _, shard in shards:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118 (no mapping)
    model = IPT(architecture)
    load_strictly(model, tensors)
    return Checkpoint(model.eval(), content_hash(tensors), config.get("provenance", {}), config.get("quality", {}))


def _check_shard(folder: Path, name: str, sha256: object) -> Path:
    """The path of a shard, if it is one of this folder and what `config.json` says of it."""
    if not re.fullmatch(SHARD_NAME, name):
        raise CheckpointError(f"{folder / 'config.json'}: {shown(name)} is not the name of a shard; copy it again")
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the whole checkpoint folder again")
    if sha256_of(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in config.json; copy it again")
    return path


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {excerpt(error)}") from None


def load_strictly(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a model.

    Raises:
        CheckpointError: naming missing, unexpected and misshaped tensors, at most 20 of each, or the first that is not
            finite.
    """
    _check_fit(_shapes(model), {name: list(t.shape) for name, t in tensors.items()})
    _check_finite(tensors)
    model.load_state_dict({name: t.to(torch.float32) for name, t in tensors.items()})


def shapes_of(config: IPTConfig) -> dict[str, list[int]]:
    """Shapes of an architecture's tensors by name, known without memory for them.

    Raises:
        ConfigError: they are more numbers than `MAX_NUMBERS`.
    """
    with torch.device("meta"):
        shapes = _shapes(IPT(config))
    if (numbers := sum(math.prod(shape) for shape in shapes.values())) > MAX_NUMBERS:
        raise ConfigError(f"the architecture asks for {numbers} weights; {MAX_NUMBERS} are allowed")
    return shapes


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_fit(wanted: Mapping[str, list[int]], given: Mapping[str, list[int]]) -> None:
    if problems := misfits(wanted, given):
        raise CheckpointError("the tensors do not fit the architecture; " + "; ".join(problems))


def misfits(wanted: Mapping[str, list[int]], given: Mapping[str, list[int]]) -> list[str]:
    """What keeps tensors from having the shapes wanted: those missing, unexpected and misshaped, by name."""
    kinds = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "misshaped": [f"{n} is {given[n]}, not {wanted[n]}" for n in wanted if given.get(n, wanted[n]) != wanted[n]],
    }
    return [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return printable(", ".join(names[:NAMED])) + more


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name} holds NaN or Inf")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        config = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of checkpoint format {FORMAT}")
    if missing := [key for key in ("architecture", "shards") if not isinstance(config.get(key), dict)]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    if wrong := [key for key in ("provenance", "quality") if not isinstance(config.get(key, {}), dict)]:
        raise CheckpointError(f"{path}: {', '.join(wrong)} is not an object")
    return config
