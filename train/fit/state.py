"""`state.pt`: everything that a run needs to go on. Written atomically, checked when read, turned into a checkpoint.

    ipt-train checkpoint runs/tiny/state.pt runs/tiny/checkpoint

makes a servable checkpoint of the averaged weights. The trainer writes that checkpoint itself where safetensors is
installed; on a machine without it the state is all there is, and this command follows elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ipt_triton.cli import make_parser, run_command
from ipt_triton.files import atomic_file
from ipt_triton.tasks import TaskError
from ipt_triton.train.errors import CheckpointError, ConfigError, StateError, needs
from ipt_triton.train.model.ipt import IPT, IPTConfig

FORMAT = 3
STATE = "state.pt"
"""Its name in the folder of a run."""

FIELDS = {"config", "recipe", "trained", "step", "patches", "elapsed", "history", "model", "average", "optimiser"}
FIELDS |= {"provenance", "quality"}


def write_state(state: dict[str, Any], path: Path) -> None:
    """Replace `path`; a reader finds the old state or the new one."""
    with atomic_file(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        StateError: no such file, a damaged one, or one of another version of the trainer.
    """
    if not path.is_file():
        raise StateError(f"nothing to resume: there is no {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch's unpickler meets damaged bytes with errors of any kind
        raise StateError(
            f"{path} is damaged ({type(error).__name__}); delete it and start anew, or restore a copy"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or (FIELDS - state.keys()) or not _has_dicts(state):
        raise StateError(f"{path} is not of this version of the trainer; finish the run with the version that began it")
    return state


def _has_dicts(state: dict[str, Any]) -> bool:
    return all(isinstance(state[name], dict) for name in ("config", "model", "average", "provenance", "quality"))


def write_checkpoint(state: dict[str, Any], folder: Path) -> None:
    """Write the averaged weights of the tasks that the run keeps as a checkpoint folder.

    Raises:
        StateError: the run is not of an IPT, or its weights cannot be stored there.
        MissingPackage: safetensors is not installed.
    """
    with needs("safetensors", "a checkpoint"):
        from ipt_triton.train.model.checkpoint import load_strictly, save_checkpoint
    try:
        model = IPT(IPTConfig.from_dict(state["config"]))
        load_strictly(model, {name: tensor.cpu() for name, tensor in state["average"].items()})
        save_checkpoint(model, folder, state["provenance"], state["quality"])
    except (CheckpointError, ConfigError, TaskError) as error:
        raise StateError(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed."""
    parser = make_parser("ipt-train checkpoint", __doc__ or "")
    parser.add_argument("state", type=Path, help="state.pt of a run")
    parser.add_argument("checkpoint", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    return run_command(lambda: write_checkpoint(read_state(arguments.state), arguments.checkpoint))
