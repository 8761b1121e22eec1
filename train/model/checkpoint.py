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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ipt_triton.files import atomic_directory
from ipt_triton.tasks import TaskError
from ipt_triton.train.errors import CheckpointError, ConfigError
from ipt_triton.train.model.ipt import IPT, IPTConfig

FORMAT = 1
SHARD_BYTES = 16 * 2**20
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
            listing[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
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
        model = IPT(IPTConfig.from_dict(config["architecture"]))
    except (ConfigError, TaskError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    tensors: dict[str, Tensor] = {}
    for name, expected in config["shards"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; copy the whole checkpoint folder again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the one in config.json; copy it again")
        try:
            with safe_open(path, "pt") as shard:
                tensors.update({key: shard.get_tensor(key) for key in shard.keys()})  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
    load_strictly(model, tensors)
    return Checkpoint(model.eval(), content_hash(tensors), config.get("provenance", {}), config.get("quality", {}))


def load_strictly(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a model.

    Raises:
        CheckpointError: naming every missing, unexpected and misshaped tensor, or the first that is not finite.
    """
    problems = misfits({name: list(t.shape) for name, t in model.state_dict().items()}, tensors)
    if problems:
        raise CheckpointError("the tensors do not fit the architecture; " + "; ".join(problems))
    _check_finite(tensors)
    model.load_state_dict({name: t.to(torch.float32) for name, t in tensors.items()})


def misfits(wanted: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from having the shapes wanted: those missing, unexpected and misshaped, by name."""
    given = {name: list(t.shape) for name, t in tensors.items()}
    kinds = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "misshaped": [f"{n} is {given[n]}, not {wanted[n]}" for n in wanted if given.get(n, wanted[n]) != wanted[n]],
    }
    return [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name} holds NaN or Inf")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of checkpoint format {FORMAT}")
    if missing := [key for key in ("architecture", "shards") if not isinstance(config.get(key), dict)]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    return config
