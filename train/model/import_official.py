"""Importing official IPT weights (huawei-noah/Pretrained-IPT): a `.pt` state dict becomes a checkpoint folder.

    ipt-train import-official IPT_pretrain.pt --output weights/ipt
    ipt-train import-official IPT_sr2.pt --output weights/ipt-sr-x2 --tasks sr_x2

Everything but the number of attention heads is read from the tensors' shapes. A file of six tasks is in the official
order; one of fewer does not say which they are, so `--tasks` names them in the order of the file. Unlike the official
loader, which skips what does not fit, every tensor must have its place and every place its tensor.
"""

from __future__ import annotations

import logging
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ipt_triton.cli import make_parser, run_command
from ipt_triton.reading import printable, sha256_of
from ipt_triton.tasks import OFFICIAL_TASKS, Task, find_task
from ipt_triton.train.errors import LayoutError, TaskChoiceError, UnreadableFileError
from ipt_triton.train.model.checkpoint import NAMED, load_strictly, misfits, save_checkpoint, shapes_of
from ipt_triton.train.model.ipt import IPT, RGB_MEAN, IPTConfig

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "params")  # keys under which trainers put the state dict
PREFIXES = ("module.", "model.")  # what DataParallel and wrapping modules put before every name
IGNORED = "body.position_encoding.position_ids"  # 0, 1, 2 …: no weight
MEAN_TOLERANCE = 1e-3  # grey levels


def convert(state_dict: Mapping[str, Any], tasks: Sequence[int | str] | None = None, heads: int = 12) -> IPT:
    """Build an IPT with the weights of an official state dict.

    Args:
        state_dict: tensors by official name; a wrapping dict and a `module.` or `model.` prefix are taken off.
        tasks: ids or names out of `OFFICIAL_TASKS`, in the order of the file's heads; needed unless it has six.
        heads: attention heads, which no tensor tells.

    Returns:
        The model, float32, on the CPU, in evaluation mode.

    Raises:
        LayoutError: naming missing, unexpected and misshaped tensors, or means that are not the official constants.
        TaskChoiceError: too few or too many tasks, or a task whose scale is not that of its tail.
        TaskError: an unknown task, or one named twice.
        ConfigError: `heads` does not divide the token width.
    """
    tensors = _unwrap(state_dict)
    tensors.pop(IGNORED, None)
    _check_means(tensors)
    features, token_size, tokens, ffn_ratio = _widths(tensors)
    count = _count(tensors, "head.", 1)
    table = _choose_tasks(tasks, count)
    for index, task in enumerate(table):
        scale = _tail_scale(tensors, index, features)
        if scale != task.scale:
            raise TaskChoiceError(
                f"task {task.name} is x{task.scale}, but tail {index} of the file is x{scale}; "
                "name the tasks in the order of the file"
            )
    config = IPTConfig(
        features=features,
        patch_size=token_size * math.isqrt(tokens),
        token_size=token_size,
        encoder_layers=_count(tensors, "body.encoder.layers.", 3),
        decoder_layers=_count(tensors, "body.decoder.layers.", 3),
        heads=heads,
        ffn_ratio=ffn_ratio,
        tasks=tuple(table),
    )
    names = _official_names(config, table)
    _check_layout(tensors, config, names, table)
    model = IPT(config)
    queries = tensors["body.query_embed.weight"].view(count, config.tokens, config.width)
    ours = {f"heads.{task.name}.embedding": queries[index] for index, task in enumerate(table)}
    ours.update({name: tensors[official] for name, official in names.items()})
    load_strictly(model, ours)
    return model.eval()


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read a `.pt` file without running any code that it may hold.

    Raises:
        UnreadableFileError: not there, damaged, or holding other objects than tensors.
    """
    if not path.is_file():
        raise UnreadableFileError(f"{path} is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableFileError(
            f"{path} holds more than tensors, or is damaged; save `model.state_dict()` instead ({_first_line(error)})"
        ) from None
    except Exception as error:  # torch's unpickler meets damaged bytes with errors of any kind
        raise UnreadableFileError(f"{path} is damaged or not a torch file ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise UnreadableFileError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by their official names."""
    for key in WRAPPERS:
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
            break
    others = [str(name) for name, value in state_dict.items() if not isinstance(name, str) or not _is_plain(value)]
    if others or not state_dict:
        what = f"no tensor: {printable(', '.join(others[:NAMED]))}" if others else "it is empty"
        raise LayoutError(f"not a state dict: {what}")
    tensors = dict(state_dict)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that can be weights: a file may also hold sparse, quantised and complex ones, and
    some that claim more numbers than it has."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        return False
    return value.nbytes <= value.untyped_storage().nbytes()


def _take(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    if name not in tensors:
        raise LayoutError(f"not an official IPT state dict: {name} is missing")
    if tensors[name].ndim != dimensions:
        raise LayoutError(f"{name} is {list(tensors[name].shape)}; it must have {dimensions} dimensions")
    return tensors[name]


def _check_means(tensors: dict[str, Tensor]) -> None:
    """Take the frozen `sub_mean` and `add_mean` out, having compared them with the constants that our model has."""
    for layer, sign in (("sub_mean", -1), ("add_mean", 1)):
        expected = {"weight": torch.eye(3).view(3, 3, 1, 1), "bias": sign * 255 * torch.tensor(RGB_MEAN)}
        for part, constant in expected.items():
            name = f"{layer}.{part}"
            found = _take(tensors, name, constant.ndim)
            constant = constant.to(found.dtype)
            if found.shape != constant.shape or not torch.allclose(found, constant, rtol=0, atol=MEAN_TOLERANCE):
                raise LayoutError(
                    f"{name} is {[round(v, 4) for v in found.flatten().tolist()]}, not the official constant "
                    f"{[round(v, 4) for v in constant.flatten().tolist()]}; only weights for RGB 0..255 fit"
                )
            del tensors[name]


def _widths(tensors: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """(features, token size, tokens, feed-forward ratio)."""
    features = _take(tensors, "head.0.0.weight", 4).shape[0]
    width = _take(tensors, "body.linear_encoding.weight", 2).shape[0]
    hidden = _take(tensors, "body.mlp_head.0.weight", 2).shape[0]
    queries = _take(tensors, "body.query_embed.weight", 2).shape[1]
    token_size, tokens = math.isqrt(width // max(features, 1)), queries // max(width, 1)
    if not width or features * token_size**2 != width:
        raise LayoutError(f"the token width {width} is not {features} features times a square number of pixels")
    if not tokens or tokens * width != queries or math.isqrt(tokens) ** 2 != tokens:
        raise LayoutError(f"body.query_embed.weight has {queries} columns, not a square number of {width}-wide tokens")
    if not hidden or hidden % width:
        raise LayoutError(f"the hidden width {hidden} is not a multiple of the token width {width}")
    return features, token_size, tokens, hidden // width


def _count(tensors: Mapping[str, Tensor], prefix: str, part: int) -> int:
    """One more than the largest number that follows the prefix; `part` is where it stands between the dots."""
    parts = [name.split(".")[part] for name in tensors if name.startswith(prefix)]
    return max((int(p[:6]) + 1 for p in parts if p.isdecimal()), default=0)  # a longer one is refused as it is


def _choose_tasks(tasks: Sequence[int | str] | None, count: int) -> list[Task]:
    if count > len(OFFICIAL_TASKS):
        raise TaskChoiceError(f"the file has {count} heads; there are {len(OFFICIAL_TASKS)} official tasks")
    if tasks is None:
        if count == len(OFFICIAL_TASKS):
            return list(OFFICIAL_TASKS)
        known = ", ".join(t.name for t in OFFICIAL_TASKS)
        raise TaskChoiceError(
            f"the file has {count} of the {len(OFFICIAL_TASKS)} official tasks and does not say which; "
            f"name {count} with --tasks: {known}"
        )
    if len(tasks) != count:
        raise TaskChoiceError(f"{len(tasks)} tasks named ({', '.join(map(str, tasks))}), but the file has {count}")
    return [find_task(OFFICIAL_TASKS, key) for key in tasks]


def _tail_scale(tensors: Mapping[str, Tensor], index: int, features: int) -> int:
    """The scale of a tail by its pixel shuffles: none, one of 2 or 3, or two of 2."""
    _take(tensors, f"tail.{index}.1.weight", 4)
    stages = sorted(name for name in tensors if name.startswith(f"tail.{index}.0.") and name.endswith(".weight"))
    factors = [math.isqrt(_take(tensors, name, 4).shape[0] // features) for name in stages]
    scales = {(): 1, (2,): 2, (3,): 3, (2, 2): 4}
    if tuple(factors) not in scales:
        raise LayoutError(f"tail {index} enlarges by {' times '.join(map(str, factors))}; that is not an official tail")
    return scales[tuple(factors)]


def _official_names(config: IPTConfig, tasks: Sequence[Task]) -> dict[str, str]:
    """Official names by ours, for every tensor but the embeddings."""
    modules = {"body.linear_encoding": "body.linear_encoding"}
    modules.update({"body.out1": "body.mlp_head.0", "body.out2": "body.mlp_head.3"})
    whole = {"body.position": "body.position_encoding.pe.weight"}
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        attentions = {"attention": "self_attn"}
        if stack == "decoder":
            attentions["cross_attention"] = "multihead_attn"
        for layer in range(layers):
            ours, theirs = f"body.{stack}.{layer}", f"body.{stack}.layers.{layer}"
            for name in ("linear1", "linear2", *(f"norm{n + 1}" for n in range(len(attentions) + 1))):
                modules[f"{ours}.{name}"] = f"{theirs}.{name}"
            for name, official in attentions.items():
                whole[f"{ours}.{name}.projection"] = f"{theirs}.{official}.in_proj_weight"
                whole[f"{ours}.{name}.out.weight"] = f"{theirs}.{official}.out_proj.weight"
    for index, task in enumerate(tasks):
        modules[f"heads.{task.name}.conv"] = f"head.{index}.0"
        for block in (0, 1):
            for conv in (0, 1):
                modules[f"heads.{task.name}.blocks.{block}.conv{conv + 1}"] = (
                    f"head.{index}.{block + 1}.body.{2 * conv}"
                )
        for step in range({1: 0, 2: 1, 3: 1, 4: 2}[task.scale]):
            modules[f"tails.{task.name}.steps.{step}"] = f"tail.{index}.0.{2 * step}"
        modules[f"tails.{task.name}.conv"] = f"tail.{index}.1"
    return whole | {f"{o}.{part}": f"{t}.{part}" for o, t in modules.items() for part in ("weight", "bias")}


def _check_layout(
    tensors: Mapping[str, Tensor], config: IPTConfig, names: Mapping[str, str], tasks: Sequence[Task]
) -> None:
    """Name tensors that are missing, unexpected, misshaped or not finite, by their official names."""
    shapes = shapes_of(config)
    wanted = {official: shapes[name] for name, official in names.items()}
    wanted["body.query_embed.weight"] = [len(tasks), config.tokens * config.width]
    problems = misfits(wanted, {name: list(tensor.shape) for name, tensor in tensors.items()})
    if not_finite := [n for n in sorted(wanted.keys() & tensors.keys()) if not torch.isfinite(tensors[n]).all()]:
        problems.append(f"NaN or Inf in: {', '.join(not_finite)}")
    if problems:
        raise LayoutError("the tensors are not those of an official IPT; " + "; ".join(problems))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 written, 1 the file cannot be imported, 2 wrong arguments."""
    parser = make_parser("ipt-train import-official", __doc__ or "")
    parser.add_argument("file", type=Path, metavar="FILE.pt", help="official weights")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="names or ids, in the order of the file")
    parser.add_argument("--heads", type=int, default=12, help="attention heads (default %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)

    def work() -> None:
        model = convert(read_state_dict(arguments.file), arguments.tasks, arguments.heads)
        digest = sha256_of(arguments.file)
        provenance = {
            "importer": "train.model.import_official",
            "source": {"file": arguments.file.name, "sha256": digest},
        }
        save_checkpoint(model, arguments.output, provenance)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        tasks = ", ".join(t.name for t in model.config.tasks)
        logger.info("%s: %.1f M parameters, %s", arguments.output, millions, tasks)
        print(arguments.output)

    return run_command(work)
