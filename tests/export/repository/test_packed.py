"""Packed parts: small, the same bytes again, without PyTorch, and refused beside other weights or when damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from helpers.quick_parts import quick_parts
from helpers.small_parts import small_parts

from ipt_triton.client.local import PACKED, WEIGHTS
from ipt_triton.export.__main__ import main
from ipt_triton.export.parts import split
from ipt_triton.export.repository.packed import pack, unpack
from ipt_triton.export.repository.plans import RepositoryError
from ipt_triton.manifest import Manifest, read_manifest
from ipt_triton.train.model.checkpoint import load_checkpoint

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["onnxruntime"] = None
from ipt_triton.export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def weights(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two tasks with its packed parts."""
    parts = small_parts(tmp_path_factory)
    shutil.copytree(parts.parent / "checkpoint", tmp_path / "weights")
    pack(parts, tmp_path / "weights" / PACKED)
    return tmp_path / "weights"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_unpacked_is_what_was_packed_and_the_weights_are_not_in_it_twice(
    weights: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = unpack(weights / PACKED, tmp_path / "unpacked")
    parts = files_of(small_parts(tmp_path_factory))
    assert files_of(tmp_path / "unpacked") == parts
    assert manifest == read_manifest(small_parts(tmp_path_factory))
    assert (weights / PACKED).stat().st_size < sum(map(len, parts.values())) / 5
    before = (weights / PACKED).read_bytes()
    pack(tmp_path / "unpacked", weights / PACKED)
    assert (weights / PACKED).read_bytes() == before


def test_a_repository_is_written_from_packed_parts_without_pytorch(
    weights: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packed = ["repository", "--parts", str(weights / PACKED), "--repository"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *packed, str(tmp_path / "without"), "--precision", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full = ["repository", "--parts", str(small_parts(tmp_path_factory)), "--repository", str(tmp_path / "full")]
    assert main(full) == 0
    without, full_files = files_of(tmp_path / "without"), files_of(tmp_path / "full")
    assert without.keys() == full_files.keys()
    differ = {name for name in without if without[name] != full_files[name]}
    assert differ and all(b"bf16" in without[name] and name.endswith("config.pbtxt") for name in differ)


def test_the_command_packs_what_it_exports(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def export_parts(checkpoints: object, folder: Path, *rest: object) -> Manifest:
        shutil.copytree(small_parts(tmp_path_factory), folder)
        return read_manifest(folder)

    monkeypatch.setattr(split, "export_parts", export_parts)  # an export takes a minute
    before = (weights / PACKED).read_bytes()
    (weights / PACKED).unlink()
    assert main(["parts", str(weights), "--parts", str(weights / PACKED)]) == 0
    assert (weights / PACKED).read_bytes() == before


@pytest.mark.slow
def test_the_weights_of_the_package_come_with_parts_that_an_export_makes_today(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(WEIGHTS)
    manifest = unpack(WEIGHTS / PACKED, tmp_path / "parts")
    assert {route.checkpoint_sha256 for route in manifest.routes} == {checkpoint.sha256}
    assert [route.task for route in manifest.routes] == list(checkpoint.model.config.tasks)
    quick_parts(checkpoint, tmp_path / "today", "fp32", names := ["head_sr_x2", "body", "tail_sr_x2"])
    for name in names:
        packed, today = (onnx.load(tmp_path / folder / f"{name}.onnx") for folder in ("parts", "today"))
        today.producer_version = packed.producer_version  # of PyTorch, CPU build or not
        assert packed == today


def test_other_weights_and_damaged_files_are_refused(weights: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(RepositoryError) as refused:
            unpack(weights / PACKED, tmp_path / "unpacked")
        assert not (tmp_path / "unpacked").exists()
        return str(refused.value)

    (shard,) = weights.glob("weights-*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:-4] + b"\0\0\0\0")
    assert "was made of other weights than those beside it: run ipt-export parts" in refusal()
    shard.write_bytes(content[:100])
    assert "cannot be read" in refusal()
    shard.unlink()
    assert "holds no weights" in refusal()
    shard.write_bytes(content)
    whole = (weights / PACKED).read_bytes()
    with zipfile.ZipFile(weights / PACKED) as file:
        manifest = file.read("manifest.json")
    (weights / PACKED).write_bytes(whole[: len(whole) // 2])
    assert "is not what ipt-export packs" in refusal()
    for place in range(60, 400, 20):  # in what is compressed
        (weights / PACKED).write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        refusal()
    with zipfile.ZipFile(weights / PACKED, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", bytes(2**26 + 1))
    assert "manifest.json of 67108865 bytes is too large" in refusal()
    with zipfile.ZipFile(weights / PACKED, "w") as file:
        file.writestr("manifest.json", manifest)
        file.writestr("cuts.json", json.dumps({}))
    assert "is not what ipt-export packs" in refusal()
    (weights / PACKED).unlink()
    assert "cannot be read" in refusal()


def test_parts_of_other_types_are_not_packed(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = unpack(weights / PACKED, tmp_path / "parts")
    replace(manifest, runtime="tensorrt", precision="fp16").save(tmp_path / "parts")
    with pytest.raises(RepositoryError, match="parts for tensorrt in fp16 cannot be packed"):
        pack(tmp_path / "parts", weights / PACKED)
    words = ["repository", "--parts", str(tmp_path / "parts"), "--repository", str(tmp_path / "models")]
    assert main([*words, "--precision", "bf16"]) == 1
    assert "--precision is for parts for openvino in fp32 or bf16; these are for tensorrt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["parts", str(weights), "--parts", str(tmp_path / PACKED)])
    assert (
        "parts.zip is packed beside its weights: give CHECKPOINT --parts CHECKPOINT/parts.zip"
        in capsys.readouterr().err
    )
