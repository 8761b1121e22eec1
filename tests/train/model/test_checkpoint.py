"""Checkpoints: what is saved is what is loaded, strictly, and a failed save leaves the old folder alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ipt_triton.train.model.checkpoint
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.model.checkpoint import (
    CheckpointError,
    content_hash,
    load_checkpoint,
    load_strictly,
    save_checkpoint,
)
from ipt_triton.train.model.ipt import IPT, IPTConfig, preset

CONFIG = IPTConfig(features=4, encoder_layers=1, decoder_layers=1, heads=2, tasks=OFFICIAL_TASKS[:4:3])


@pytest.fixture
def model() -> IPT:
    torch.manual_seed(0)
    return IPT(CONFIG)


@pytest.fixture
def folder(model: IPT, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def rewrite_shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the one shard and its hash, as a tool that edits checkpoints would."""
    path = next(folder.glob("*.safetensors"))
    save_file(tensors, path)
    edit_config(folder, shards={path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_was_saved_is_loaded_in_every_storage_type(model: IPT, tmp_path: Path, dtype: str) -> None:
    save_checkpoint(model, tmp_path / "c", {"steps": 7}, {"psnr": 30.5}, dtype, files={"README.md": "a card"})
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.model.config == CONFIG and not loaded.model.training
    assert (loaded.provenance, loaded.quality) == ({"steps": 7}, {"psnr": 30.5})
    assert (tmp_path / "c" / "README.md").read_text() == "a card"
    stored = {n: t.to(getattr(torch, dtype)).float() for n, t in model.state_dict().items()}
    assert stored.keys() == loaded.model.state_dict().keys()
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name]), name
    assert loaded.sha256 == content_hash(stored)


@pytest.mark.slow
def test_the_shards_of_the_paper_size_are_at_most_16_mib_and_hold_everything(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = IPT(preset("ipt", OFFICIAL_TASKS[3:4]))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            tensor.fill_(number % 256)
    save_checkpoint(model, tmp_path / "c", dtype="bfloat16")
    shards = sorted((tmp_path / "c").glob("*.safetensors"))
    assert max(s.stat().st_size for s in shards) <= 16 * 2**20
    assert 12 < len(shards) < 20  # 231 MB
    contents = [load_file(s) for s in shards]
    assert sorted(n for c in contents for n in c) == sorted(model.state_dict())
    for number, name in enumerate(model.state_dict()):
        [tensor] = [c[name] for c in contents if name in c]
        assert (tensor == number % 256).all(), name


def test_the_hash_depends_on_the_weights_and_not_on_sharding(
    model: IPT, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipt_triton.train.model.checkpoint, "SHARD_BYTES", 2**16 + 20_000)
    save_checkpoint(model, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert load_checkpoint(tmp_path / "many").sha256 == load_checkpoint(folder).sha256
    with torch.no_grad():
        model.body.linear_encoding.bias[3] += 1e-6
    save_checkpoint(model, tmp_path / "other")
    assert load_checkpoint(tmp_path / "other").sha256 != load_checkpoint(folder).sha256


@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 3))
def test_the_hash_does_not_depend_on_order_but_on_names_and_shapes(order: list[str], turned: int) -> None:
    tensors = {n: torch.arange(6.0).view(2, 3) + i for i, n in enumerate("abcd")}
    assert content_hash({n: tensors[n] for n in order}) == content_hash(tensors)
    key = "abcd"[turned]
    assert content_hash({**tensors, key: tensors[key].view(3, 2)}) != content_hash(tensors)
    renamed = {("z" if n == key else n): t for n, t in tensors.items()}
    assert content_hash(renamed) != content_hash(tensors)


def test_every_missing_unexpected_and_misshaped_tensor_is_named(model: IPT) -> None:
    tensors = dict(model.state_dict())
    del tensors["heads.sr_x2.conv.bias"], tensors["body.out2.weight"]
    tensors["heads.blur.conv.weight"] = torch.zeros(1)
    tensors["body.position"] = tensors["body.position"][:100]
    with pytest.raises(CheckpointError) as error:
        load_strictly(IPT(CONFIG), tensors)
    for part in (
        "missing: body.out2.weight, heads.sr_x2.conv.bias",
        "unexpected: heads.blur.conv.weight",
        "misshaped: body.position is [100, 36], not [256, 36]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named_when_saving_and_when_loading(
    model: IPT, folder: Path, tmp_path: Path, value: float
) -> None:
    model.body.out1.weight.data[3, 4] = value
    with pytest.raises(CheckpointError, match=r"body\.out1\.weight holds NaN or Inf"):
        save_checkpoint(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    rewrite_shard(folder, dict(model.state_dict()))
    with pytest.raises(CheckpointError, match=r"body\.out1\.weight holds NaN or Inf"):
        load_checkpoint(folder)


def test_a_weight_that_float16_cannot_hold_is_refused(model: IPT, tmp_path: Path) -> None:
    model.body.position.data[0, 0] = 70000.0
    with pytest.raises(CheckpointError, match=r"body\.position"):
        save_checkpoint(model, tmp_path / "c", dtype="float16")


def test_a_checkpoint_of_another_architecture_is_refused_naming_the_tensors(folder: Path) -> None:
    edit_config(folder, architecture={**CONFIG.to_dict(), "encoder_layers": 2})
    with pytest.raises(CheckpointError, match=r"missing: body\.encoder\.1\.attention\.out\.weight"):
        load_checkpoint(folder)


def test_a_truncated_shard_a_damaged_one_and_an_absent_one_are_named(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    content = path.read_bytes()
    for wrong in (content[:-100], content[:20], b"", content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
            load_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name} is missing"):
        load_checkpoint(folder)


def test_a_shard_that_is_no_safetensors_file_is_named(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(b"not tensors")
    edit_config(folder, shards={path.name: hashlib.sha256(b"not tensors").hexdigest()})
    with pytest.raises(CheckpointError, match=f"{path.name} is not a safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "format 1"),
        ('{"format": 2}', "format 1"),
        ('{"format": 1, "shards": {}}', "lacks architecture"),
        ('{"format": 1, "architecture": {"depth": 3}, "shards": {}}', "unknown model fields: depth"),
        ('{"format": 1, "architecture": {"features": "4"}, "shards": {}}', "features '4'"),
        ('{"format": 1, "architecture": {"tasks": [{"id": 0}]}, "shards": {}}', "not a task entry"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            load_checkpoint(path)


def test_the_old_folder_survives_a_save_that_fails_and_nothing_else_is_left(
    model: IPT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(ipt_triton.train.model.checkpoint, "SHARD_BYTES", 2**16 + 20_000)
    calls = 0

    def full_disk(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(ipt_triton.train.model.checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(model, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_save_replaces_the_old_folder_as_a_whole(model: IPT, folder: Path) -> None:
    save_checkpoint(model, folder, files={"README.md": "old"})
    save_checkpoint(model, folder, {"steps": 2})
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights-01-of-01.safetensors"]
    assert load_checkpoint(folder).provenance == {"steps": 2}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_of_other_files_is_not_replaced(model: IPT, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="holds other files"):
        save_checkpoint(model, tmp_path)
    assert (tmp_path / "photo.png").read_bytes() == b"precious"


def test_files_are_readable_by_everyone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o755
    assert all(p.stat().st_mode & 0o044 for p in folder.iterdir())
