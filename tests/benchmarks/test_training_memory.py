"""Memory of training: what is counted as kept is what the graph of a loss holds, and a record shows itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.training import CONFIG

from ipt_triton.benchmarks.compute import training_memory
from ipt_triton.benchmarks.compute.training_memory import COPIES, PARTS, kept_bytes, sizes_of
from ipt_triton.benchmarks.record import Record
from ipt_triton.train.fit.losses import Group, Objective
from ipt_triton.train.model.ipt import IPT

BATCH = 2
CROPS = [Group("denoise_30", *255 * torch.rand(2, BATCH, 3, CONFIG.patch_size, CONFIG.patch_size))]
TOKENS = CONFIG.tokens * CONFIG.width * 4 * BATCH  # bytes


def objective(precision: str, recompute: bool) -> Objective:
    torch.manual_seed(0)
    return Objective(IPT(CONFIG), 0.0, precision, recompute=recompute)


def held_by_the_graph(loss: torch.Tensor, but: set[int]) -> int:
    """Bytes of the storages that the nodes of a graph have saved, found from its end."""
    storages: dict[int, int] = {}
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for tensor in (t for t in saved if isinstance(t, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in but:
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_is_what_the_graph_of_the_loss_holds(precision: str) -> None:
    measured = objective(precision, recompute=False)
    kept = kept_bytes(measured, CROPS)
    weights = {t.untyped_storage().data_ptr() for t in (*measured.model.parameters(), *measured.model.buffers())}
    loss, _ = measured(CROPS)
    assert sum(kept.values()) == held_by_the_graph(loss, weights)
    assert (kept[COPIES] > 0) == (precision == "bf16") and all(kept[part] > 0 for part in PARTS)


def test_of_layers_that_are_computed_again_the_inputs_are_kept_alone() -> None:
    """Of an encoder layer its tokens; of the one decoder layer its memory, which is what it begins with as well."""
    without, kept = (kept_bytes(objective("fp32", recompute), CROPS) for recompute in (False, True))
    assert (kept["encoder layer"], kept["decoder layer"]) == (TOKENS, TOKENS)
    assert without["encoder layer"] > 10 * TOKENS and without["decoder layer"] > 10 * TOKENS
    for part in set(PARTS) - {"encoder layer", "decoder layer"}:
        assert kept[part] == pytest.approx(without[part], abs=2 * TOKENS)


def test_parts_hold_all_parameters() -> None:
    model = IPT(CONFIG)
    sizes = sizes_of(model)
    assert sum(size["parameters"] for size in sizes.values()) == sum(p.numel() for p in model.parameters())
    assert [sizes[part]["count"] for part in PARTS] == [3, 1, 1, 1, 3]


@pytest.mark.slow
def test_a_step_is_measured_in_processes_of_its_own_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "memory.json"
    settings = ["--preset", "ipt-tiny", "--task", "denoise_30", "--batch", "8", "--steps", "1", "--precision", "fp32"]
    assert training_memory.main([*settings, "--json", str(output), "--plot", str(tmp_path / "memory.png")]) == 0
    without, with_it = Record.load(output).figures["rows"]
    assert 10 * 2**20 < with_it["peak"] < without["peak"] < 2**30
    assert sum(with_it["kept"].values()) < 0.6 * sum(without["kept"].values()) < 0.6 * without["peak"]
    shown = capsys.readouterr().out
    assert "| 8 | with activation checkpointing |" in shown and "| decoder layer | 2 |" in shown
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_wrong_arguments_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        training_memory.main(["--batch", "0"])
    assert ended.value.code == 2 and "--batch and --steps must be at least 1" in capsys.readouterr().err
