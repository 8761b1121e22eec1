"""Tampered checkpoints, manifests, repositories and records: done or refused with a sentence, and nothing else touched.

Each seed is a variant of a valid file; `HOSTILE_VARIANTS` says how many of each kind there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from helpers.hostile import hostile_bytes, hostile_json, hostile_value
from helpers.official_reference import OfficialIPT
from safetensors.torch import save_file

from ipt_triton.benchmarks.record import Record
from ipt_triton.errors import IptError
from ipt_triton.export.engines.files import write_plan
from ipt_triton.export.engines.inputs import reference_tensors
from ipt_triton.export.engines.metadata import EngineMetadata, describe_path, plan_path
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.manifest import MANIFEST, Manifest, Parity, Part, Port, Route, read_manifest
from ipt_triton.service import ServiceInfo
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.data.pack import write_packed
from ipt_triton.train.data.pool import Pool, read_packed
from ipt_triton.train.fit.state import FIELDS, FORMAT, read_state
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint
from ipt_triton.train.model.import_official import convert, read_state_dict
from ipt_triton.train.model.ipt import IPT, IPTConfig
from ipt_triton.train.model.release import read_rows

VARIANTS = int(os.environ.get("HOSTILE_VARIANTS", "25"))
MOST_MEMORY = 600 * 2**20
TASK = OFFICIAL_TASKS[3]
CONFIG = IPTConfig(features=4, patch_size=12, encoder_layers=1, decoder_layers=1, heads=2, tasks=(TASK,))


def manifest_for(runtime: str, folder: Path) -> Manifest:
    """A manifest of three parts whose files hold no graphs: publishing looks at hashes."""
    features, embedding = Port("FEATURES", (4, 12, 12)), Port("TASK_EMBEDDING", (16, 36))
    ports = {
        "head_derain": ((Port("IMAGE", (3, 12, 12)),), (features, embedding)),
        "body": ((features, embedding), (Port("BODY_FEATURES", (4, 12, 12)),)),
        "tail_derain": ((Port("BODY_FEATURES", (4, 12, 12)),), (Port("RESTORED", (3, 12, 12)),)),
    }
    parts = []
    for name, (inputs, outputs) in ports.items():
        (folder / f"{name}.onnx").write_bytes(name.encode() * 100)
        found = hashlib.sha256((folder / f"{name}.onnx").read_bytes()).hexdigest()
        parity = Parity("fp32", 0.01, 100.0, 4)
        parts.append(Part(name, inputs, outputs, "0" * 64, parity, 1000, 100, "fp32", onnx_sha256=found))
    route = Route(TASK, "head_derain", "body", "tail_derain", "0" * 64)
    return Manifest(12, runtime, "fp32", tuple(parts), (route,))


def engine_of(part: Part, onnx: Path) -> EngineMetadata:
    return EngineMetadata(
        **{name: getattr(part, name) for name in ("inputs", "outputs", "weight_count", "flops")},
        **{"part": part.name, "library": "tensorrt", "version": "10.13.3.9", "gpu": "", "compute_capability": "9.0"},
        **{"precision": "fp32", "profile": (1, 8, 8), "level": 3, "build_seconds": 1.0, "plan_bytes": 4},
        **{"plan_sha256": hashlib.sha256(b"plan").hexdigest(), "onnx_sha256": part.onnx_sha256},
        **{"layers": {"fp32": 10}, "evidence": "inspector", "parity": (part.parity,), "ran": True},
    )


class Scene:
    """Valid files of every kind below one folder, and for each kind how a variant of it is made and used."""

    def __init__(self, folder: Path) -> None:
        self.valid, self.work = folder / "valid", folder / "work"
        self.valid.mkdir()
        torch.manual_seed(0)
        self.model = IPT(CONFIG)
        save_checkpoint(self.model, self.valid / "checkpoint", provenance={"parent": {"provenance": {"steps": 1}}})
        for runtime, name in (("openvino", "parts"), ("tensorrt", "gpu_parts")):
            (self.valid / name).mkdir()
            manifest = manifest_for(runtime, self.valid / name)
            manifest.save(self.valid / name)
        samples = {
            f"derain/{port.name}": np.ones((2, *port.shape), np.float32)
            for part in manifest.parts
            for port in (*part.inputs, *part.outputs)
        }
        np.savez(self.valid / "gpu_parts" / "samples.npz", **samples)
        for part in manifest.parts:
            plan = plan_path(self.valid / "engines" / part.name, "9.0")
            plan.parent.mkdir(exist_ok=True)
            write_plan(plan, b"plan", engine_of(part, self.valid / "gpu_parts" / f"{part.name}.onnx"))
        write_repository(
            self.valid / "parts",
            manifest_for("openvino", self.valid / "parts"),
            self.valid / "models",
            ServingOptions(),
        )
        machine = {"processor": "x", "cores": 2, "versions": {}, "commit": "0"}
        Record("scaling", ["ipt-benchmark"], machine, {"images": [1, 2.5]}).save(self.valid / "record.json")
        rows = [{"task": "derain", "set": "s", "checkpoint_sha256": "0", "psnr_y": 30.0, "per_image": []}]
        (self.valid / "rows.json").write_text(json.dumps(rows))
        write_packed(Pool([np.zeros((9, 8, 3), np.uint8)], ["a"]), self.valid / "pack.npz")
        state = {name: {} for name in FIELDS} | {"format": FORMAT, "config": CONFIG.to_dict(), "step": 1}
        torch.save(state, self.valid / "state.pt")
        torch.save(OfficialIPT(4, 1, 1, 2, [1]).state_dict(), self.valid / "official.pt")

    def use(self, kind: str, seed: int) -> None:
        """Make a variant of a copy in `work`, and read or publish it."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.valid, self.work)
        getattr(self, kind)(Random(f"{kind} {seed}"), self.work)

    def config(self, random: Random, folder: Path) -> None:
        path = folder / "checkpoint" / "config.json"
        path.write_text(hostile_json(json.loads(path.read_text()), random), errors="surrogatepass")
        load_checkpoint(folder / "checkpoint")

    def shard(self, random: Random, folder: Path) -> None:
        """A shard whose hash is right, so that safetensors reads it."""
        path = next((folder / "checkpoint").glob("*.safetensors"))
        if random.random() < 0.3:
            tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            name = random.choice(list(tensors))
            odd = [torch.full_like(tensors[name], random.choice((np.nan, np.inf))), tensors[name].to(torch.int64)]
            odd += [tensors[name].reshape(-1)[:1], tensors[name].to(torch.complex64), tensors[name] > 0]
            tensors[random.choice((name, "evil\x1b[31m", "../evil"))] = random.choice(odd).clone()
            save_file(tensors, path)
        elif random.random() < 0.6:
            data = path.read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            header = hostile_json(json.loads(data[8 : 8 + size]), random).encode(errors="surrogatepass")
            path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
        else:
            path.write_bytes(hostile_bytes(path.read_bytes()[: random.choice((300, 10**9))], random))
        config = json.loads((folder / "checkpoint" / "config.json").read_text())
        config["shards"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        (folder / "checkpoint" / "config.json").write_text(json.dumps(config))
        load_checkpoint(folder / "checkpoint")

    def manifest(self, random: Random, folder: Path) -> None:
        parts = folder / random.choice(("parts", "gpu_parts"))
        text = hostile_json(json.loads((parts / MANIFEST).read_text()), random)
        (parts / MANIFEST).write_text(text, errors="surrogatepass")
        write_repository(parts, read_manifest(parts), folder / "models", ServingOptions())

    def graph(self, random: Random, folder: Path) -> None:
        path = random.choice(sorted((folder / "parts").glob("*.onnx")))
        before = path.read_bytes()
        path.write_bytes(hostile_bytes(before, random))
        write_repository(folder / "parts", read_manifest(folder / "parts"), folder / "models", ServingOptions())
        assert path.read_bytes() == before, "another graph than the manifest's was published"

    def plan(self, random: Random, folder: Path) -> None:
        path = describe_path(random.choice(sorted((folder / "engines").glob("*.plan"))))
        path.write_text(hostile_json(json.loads(path.read_text()), random), errors="surrogatepass")
        parts = folder / "gpu_parts"
        write_repository(parts, read_manifest(parts), folder / "models", ServingOptions(), [folder / "engines"])

    def repository(self, random: Random, folder: Path) -> None:
        path = random.choice(sorted((folder / "models").glob("*/config.pbtxt")))
        nested = b"parameters { key: 'a' value {" * random.choice((1, 100, 20_000))
        path.write_bytes(random.choice((hostile_bytes(path.read_bytes(), random), nested, b"\xff\xfe")))
        write_repository(folder / "parts", read_manifest(folder / "parts"), folder / "models", ServingOptions())

    def samples(self, random: Random, folder: Path) -> None:
        path = folder / "gpu_parts" / "samples.npz"
        if random.random() < 0.5:
            with np.load(path) as arrays:
                changed: dict[str, Any] = dict(arrays)
            odd = [np.array([{"evil": 1}], object), np.zeros((0, 3, 12, 12), np.float32), np.float64(1)]
            odd += [np.zeros((2, 4, 12, 12), "U3"), np.zeros((3, 12), np.float32), np.asfortranarray(np.ones((9, 9)))]
            changed[random.choice([*changed, "../evil"])] = random.choice(odd)
            np.savez(path, **changed)
        else:
            path.write_bytes(hostile_bytes(path.read_bytes(), random))
        for part in read_manifest(folder / "gpu_parts").parts:
            reference_tensors(path, part, "derain")

    def record(self, random: Random, folder: Path) -> None:
        path = folder / "record.json"
        path.write_text(hostile_json(json.loads(path.read_text()), random), errors="surrogatepass")
        Record.load(path)

    def rows(self, random: Random, folder: Path) -> None:
        path = folder / "rows.json"
        path.write_text(hostile_json(json.loads(path.read_text()), random), errors="surrogatepass")
        read_rows([path], "0")

    def pack(self, random: Random, folder: Path) -> None:
        path = folder / "pack.npz"
        path.write_bytes(hostile_bytes(path.read_bytes(), random))
        read_packed(path)

    def state(self, random: Random, folder: Path) -> None:
        path = folder / "state.pt"
        if random.random() < 0.5:
            path.write_bytes(hostile_bytes(path.read_bytes(), random))
        else:
            state = torch.load(path, weights_only=True)
            state[random.choice([*state])] = hostile_value(random)
            torch.save(state, path)
        read_state(path)

    def official(self, random: Random, folder: Path) -> None:
        path = folder / "official.pt"
        tensors: dict[Any, Any] = torch.load(path, weights_only=True)
        key = random.choice([*tensors, 7, None, ("a", 1), "head.99999999999.0.weight", "body.encoder.layers.9.x"])
        odd = [7, None, [1], torch.ones(1).expand(2**40), torch.ones(2, 2).to_sparse(), torch.ones(0)]
        odd += [torch.ones(3, dtype=torch.complex64), torch.ones(1, 1, 1, 1).expand(2**20, 3, 3, 3), "text"]
        tensors[key] = random.choice(odd)
        torch.save(tensors, path)
        if random.random() < 0.3:
            path.write_bytes(hostile_bytes(path.read_bytes(), random))
        convert(read_state_dict(path), ["derain"], heads=2)

    def service(self, random: Random, folder: Path) -> None:
        """What a server says of itself to a client."""
        info = ServiceInfo((TASK,), 48, 40, 46, 10**6, 10**6, 10**4, "0", "openvino", "fp32").to_parameters()
        info["tasks"] = hostile_json(json.loads(info["tasks"]), random)
        if random.random() < 0.5:
            info[random.choice([*info])] = random.choice(
                ("", "-1", "0", "1e9", "9" * 30, "9" * 5000, "NaN", "\x1b[31m")
            )
        ServiceInfo.from_parameters(info)


KINDS = [name for name, value in vars(Scene).items() if not name.startswith("_") and name != "use"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("tampering"))


def tree(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tampered_file_is_read_or_refused_with_a_sentence(scene: Scene, kind: str) -> None:
    home = scene.valid.parent
    before, memory = tree(scene.valid), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(VARIANTS):
        try:
            scene.use(kind, seed)
        except IptError as error:
            text = str(error)
            assert text.isprintable() and 10 < len(text) < 3000, f"{kind} {seed}: {text[:500]!r}"
        except Exception as error:
            raise AssertionError(f"variant {seed} of {kind}: {type(error).__name__}: {str(error)[:300]}") from error
        assert {path.name for path in home.iterdir()} == {"valid", "work"}, f"variant {seed} of {kind} wrote outside"
        assert {path.name for path in scene.work.iterdir()} == {path.name for path in scene.valid.iterdir()}, seed
    assert tree(scene.valid) == before
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < MOST_MEMORY


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def set_layers(config: Any) -> None:
    config["architecture"]["encoder_layers"] = 10**9


def leave_the_folder(config: Any) -> None:
    config["shards"] = {f"../{name}": sha256 for name, sha256 in config["shards"].items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_layers, "encoder_layers 1000000000 is not a whole number from 0 to 128"),
        (leave_the_folder, r"'../weights-01-of-01.safetensors' is not the name of a shard"),
    ],
)
def test_a_checkpoint_that_asks_for_the_impossible_is_refused(
    scene: Scene, tmp_path: Path, change: Callable[[Any], object], sentence: str
) -> None:
    shutil.copytree(scene.valid / "checkpoint", tmp_path / "checkpoint")
    shutil.copy(next((tmp_path / "checkpoint").glob("*.safetensors")), tmp_path)
    edit(tmp_path / "checkpoint" / "config.json", change)
    with pytest.raises(IptError, match=sentence):
        load_checkpoint(tmp_path / "checkpoint")


def rename_the_body(manifest: Any) -> None:
    manifest["parts"][1]["name"] = manifest["routes"][0]["body"] = "../evil"


def turn_the_patch(manifest: Any) -> None:
    manifest["patch_size"] = -48


def name_another_head(manifest: Any) -> None:
    manifest["routes"][0]["head"] = "head_evil"


def name_another_type(manifest: Any) -> None:
    manifest["parts"][0]["inputs"][0]["dtype"] = "float64"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rename_the_body, r"part '../evil' is not head_TASK, body, body_HASH or tail_TASK"),
        (turn_the_patch, "patch_size -48 is not within 1 to 512"),
        (name_another_head, "task derain has no head 'head_evil'"),
        (name_another_type, r"tensor 'IMAGE float64 \[3, 12, 12\]' of head_derain is not allowed"),
    ],
)
def test_a_manifest_that_no_export_writes_publishes_nothing(
    scene: Scene, tmp_path: Path, change: Callable[[Any], object], sentence: str
) -> None:
    parts = tmp_path / "inner" / "parts"
    shutil.copytree(scene.valid / "parts", parts)
    shutil.copy(parts / "body.onnx", parts.parent / "evil.onnx")
    edit(parts / MANIFEST, change)
    before = tree(tmp_path)
    with pytest.raises(IptError, match=sentence):
        write_repository(parts, read_manifest(parts), tmp_path / "inner" / "models", ServingOptions())
    assert tree(tmp_path) == before


def test_a_graph_that_was_cut_off_is_not_published(scene: Scene, tmp_path: Path) -> None:
    shutil.copytree(scene.valid / "parts", tmp_path / "parts")
    (tmp_path / "parts" / "body.onnx").write_bytes(b"body" * 50)
    with pytest.raises(IptError, match=r"body.onnx is not the file that the manifest speaks of"):
        write_repository(tmp_path / "parts", read_manifest(tmp_path / "parts"), tmp_path / "models", ServingOptions())
    assert not (tmp_path / "models").exists()
