"""Ablations of the paper (sections 4.3 and 4.4) at toy scale, by the real trainer: how a token's place is told, rivals
of equal cost (EDSR, RDN, IGNN), the contrastive loss's weight λ, and the share of data against the rivals.

    ipt-benchmark ablations --data photos --output build/ablations
    ipt-benchmark ablations --data photos --output build/ablations --only position rivals
    ipt-benchmark ablations --data photos --output build/ablations --eval Set5 --small-pool 10
    ipt-benchmark ablations --output build/ablations --table --report benchmarks/results/ablations
    ipt-benchmark ablations --data imagenet --output runs/ablations --size ipt-small --steps 200000

Every run takes the same number of steps on the same crops in the same order (of its seed), starts as bicubic
interpolation, and is measured on photographs that no run is trained on, restored tile by tile. A run that is finished
is kept and one that was interrupted is continued, so the command may be stopped and given again; `--only` divides the
work among processes. An experiment is reported when all its runs are finished. Sizes: `toy` (patches of 24x24, 0.3 M
parameters: minutes on a CPU core), or a preset.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ipt_triton.benchmarks.ablations.experiments import EXPERIMENTS, NETWORKS, Variant, variants
from ipt_triton.benchmarks.ablations.report import markdown, summarise, write_report
from ipt_triton.benchmarks.quality.evaluate import Score, score
from ipt_triton.cli import make_parser, run_command
from ipt_triton.files import atomic_file
from ipt_triton.metrics import to_uint8
from ipt_triton.reading import convert, read_json
from ipt_triton.tasks import OFFICIAL_TASKS, Task, find_task
from ipt_triton.tiling import PATCH, STRIDE
from ipt_triton.train.data.degradations import degrade_image, seed_of
from ipt_triton.train.data.feed import MemoryFeed, Store, wide_side
from ipt_triton.train.data.pool import Pool, load_pool
from ipt_triton.train.data.sets import Sample, find_images, load_sample
from ipt_triton.train.fit.command import HELD_OUT, git_commit
from ipt_triton.train.fit.loop import Cadence, Trainer, TrainingError, train
from ipt_triton.train.fit.recipe import Recipe
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.fit.state import read_state
from ipt_triton.train.model.infer import restore_image
from ipt_triton.train.model.ipt import IPT, PRESETS, IPTConfig, Network
from ipt_triton.train.model.start import identity_start
from ipt_triton.train.rivals.edsr import EDSRConfig
from ipt_triton.train.rivals.ignn import IGNNConfig
from ipt_triton.train.rivals.network import RivalConfig
from ipt_triton.train.rivals.presets import RIVAL_PRESETS, untrained
from ipt_triton.train.rivals.rdn import RDNConfig

logger = logging.getLogger(__name__)

SIZES: dict[str, dict[str, IPTConfig | RivalConfig]] = {
    # Million multiply-adds of a patch at scale 1 and 2: IPT 29.0 and 30.7, EDSR 28.4 and 34.4, RDN 29.3 and 35.4, IGNN
    # 27.7 and 33.7.
    "toy": {
        "ipt": IPTConfig(features=8, patch_size=24, encoder_layers=2, decoder_layers=2, heads=3),
        "edsr": EDSRConfig(features=16, patch_size=24, blocks=10),
        "rdn": RDNConfig(features=16, patch_size=24, blocks=5, layers=4, growth=8),
        "ignn": IGNNConfig(features=16, patch_size=24, blocks=6),
    },
    **{
        name: {v.network: (RIVAL_PRESETS | PRESETS)[name.replace("ipt", v.network)] for v in NETWORKS}
        for name in PRESETS
    },
}
"""The networks of each size by name, of about equal cost."""

MIDDLE_SIDE = 256  # of the middle of each photograph held out, in pixels


@dataclass(frozen=True)
class Settings:
    """What all runs of a folder have in common."""

    size: str
    tasks: tuple[Task, ...]
    steps: int
    batch: int
    lr: float
    small_pool: int | None
    device: str

    def recipe(self, variant: Variant) -> Recipe:
        """The trainer's recipe: short runs need a short warm-up and a quick average."""
        return Recipe(
            steps=self.steps,
            batch=(self.batch,),
            lr=self.lr,
            warmup=min(Recipe.warmup, self.steps // 10),
            ema=min(Recipe.ema, 1 - 10 / (self.steps + 10)),
            contrastive=variant.contrastive,
            seed=variant.seed,
            precision="fp32",
            data_fraction=variant.share or 1.0,
            noise="nominal",
        )

    def model(self, variant: Variant) -> Network:
        """The untrained network of a variant, which interpolates bicubically."""
        torch.manual_seed(variant.seed)
        config = replace(SIZES[self.size][variant.network], tasks=self.tasks)
        if isinstance(config, RivalConfig):
            return untrained(config)
        return identity_start(IPT(replace(config, position=variant.position)))

    def photographs(self, variant: Variant, pool: Pool) -> Pool:
        """What a variant is trained on: the whole pool, or a share of the small one, the same for every seed."""
        if not variant.share:
            return pool
        small = pool.share(min(1.0, (self.small_pool or len(pool.names)) / len(pool.names)))
        return small.share(variant.share)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "tasks": [t.name for t in self.tasks]}


def run_variant(
    variant: Variant, settings: Settings, training: Pool, held_out: Pool, folder: Path, evaluation: Path | None
) -> dict[str, Any] | None:
    """Train and measure a variant; None if a signal stopped it, its state saved.

    Raises:
        TrainingError, StateError, EvaluationError: as they say.
    """
    device = torch.device(settings.device)
    model = settings.model(variant).to(device).eval()
    start = {t.name: psnr_of_held_out(model, t, held_out) for t in settings.tasks}
    recipe = settings.recipe(variant)
    trainer = Trainer(model, recipe, Runtime(device), settings.tasks, {"trainer": "benchmarks.ablations.run"})
    if (state := folder / "state.pt").exists():
        trainer.load_state(read_state(state, device))
    photographs = settings.photographs(variant, training)
    feed = MemoryFeed(Store(photographs, device), recipe.sampler(settings.tasks), model.config.patch_size)
    train(trainer, feed, Store(held_out, device), folder, Cadence())
    if trainer.progress() < 1:
        return None
    result: dict[str, Any] = {
        "variant": asdict(variant),
        "settings": settings.to_dict(),
        "photographs": len(photographs.names),
        "megapixels": round(photographs.megapixels, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "megamacs": megamacs(settings, variant),
        "patches": trainer.patches,
        "seconds": round(trainer.elapsed),
        "start": start,
        "psnr": {t.name: psnr_of_held_out(trainer.average, t, held_out) for t in settings.tasks},
        "git_commit": git_commit(),
    }
    if evaluation:
        result["eval"] = {
            "set": evaluation.resolve().name,
            "psnr_y": {t.name: evaluate_set(trainer.average, t, evaluation) for t in settings.tasks},
        }
    return result


def megamacs(settings: Settings, variant: Variant) -> dict[str, float]:
    """Million multiply-adds of a variant's network for one patch, by task; attention included."""
    costs = {}
    for task in settings.tasks:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:  # no weights, shapes alone
            network = settings.model(variant)
            network(torch.zeros(1, 3, network.config.patch_size, network.config.patch_size), task.name)
        costs[task.name] = round(counter.get_total_flops() / 2e6, 1)
    return costs


def psnr_of_held_out(model: Network, task: Task, held_out: Pool) -> float:
    """Mean PSNR (RGB, dB) over the middles of the photographs held out, as `evaluate_set` measures."""
    samples = []
    for name, image in zip(held_out.names, held_out.images, strict=True):
        side = min(MIDDLE_SIDE, *image.shape[:2]) // task.scale * task.scale
        top, left = ((size - side) // 2 for size in image.shape[:2])
        clean = image[top : top + side, left : left + side]
        samples.append(Sample(name, clean, degrade_image(clean, task, seed_of(name))))
    return round(fmean(restored_score(model, task, s).psnr_rgb for s in samples), 3)


def evaluate_set(model: Network, task: Task, folder: Path) -> float:
    """Mean PSNR-Y (dB) over a test set by the protocol of `ipt-train evaluate`, inputs and outputs in 8 bit."""
    samples = (load_sample(clean, degraded, task) for clean, degraded in find_images(folder, task))
    return round(fmean(restored_score(model, task, s).psnr_y for s in samples), 3)


def restored_score(model: Network, task: Task, sample: Sample) -> Score:
    """How well a network restores an image in tiles that lose as many pixels on each side as the default rule says."""
    stride = model.config.patch_size - PATCH + STRIDE
    return score(restore_image(model, to_uint8(sample.degraded), task.name, stride, stride), sample, task)


def finished(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder of runs, in the order of their names; raises TrainingError for one that is none."""
    results = []
    for path in sorted(folder.glob("*/result.json")):
        try:
            results.append(convert(dict[str, Any], read_json(path), "its content"))
        except ValueError as error:
            raise TrainingError(f"{path} is not a result ({error}); delete its folder and run again") from None
    return results


def run_all(arguments: argparse.Namespace, settings: Settings) -> bool:
    """Run what is not finished yet; False if a signal stopped it.

    Raises:
        DataError, TrainingError, StateError, EvaluationError: as they say.
    """
    for result in finished(arguments.output):
        if changed := [k for k, v in settings.to_dict().items() if result["settings"][k] != v]:
            raise TrainingError(
                f"the runs in {arguments.output} have other settings ({', '.join(changed)}); choose another --output"
            )
    wanted = list(variants(arguments.only, arguments.seeds))
    left = [v for v in wanted if not (arguments.output / v.name / "result.json").exists()]
    logger.info("%d runs, %d of them finished", len(wanted), len(wanted) - len(left))
    if not left:
        return True
    side = max(wide_side(t, SIZES[settings.size]["ipt"].patch_size) for t in settings.tasks)
    training, held_out = load_pool(arguments.data, side).split(HELD_OUT)
    for number, variant in enumerate(left, 1):
        logger.info("run %d of %d: %s", number, len(left), variant.name)
        folder = arguments.output / variant.name
        measured = run_variant(variant, settings, training, held_out, folder, arguments.eval)
        if measured is None:
            return False
        with atomic_file(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(measured, indent=2) + "\n")
    return True


def run(arguments: argparse.Namespace) -> int:
    """Run and report as the arguments say; returns the exit status."""
    if not arguments.table:
        tasks = tuple(find_task(OFFICIAL_TASKS, key) for key in arguments.tasks)
        common = (getattr(arguments, n) for n in ("steps", "batch", "lr", "small_pool", "device"))
        if not run_all(arguments, Settings(arguments.size, tasks, *common)):
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
    machine = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    summary = summarise(finished(arguments.output), arguments.seeds, machine)
    if arguments.report:
        write_report(summary, arguments.report)
    print(json.dumps(summary, indent=2) if arguments.json else markdown(summary))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments or data, 130 stopped by a signal."""
    parser = make_parser("ipt-benchmark ablations", __doc__ or "")
    add = parser.add_argument
    add("--data", type=Path, nargs="+", metavar="DIR", help="folders of clean photographs, or packed pools (.npz)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the runs")
    add("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="run these (default all)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each setting (default %(default)s)")
    add("--size", choices=SIZES, default="toy", help="of all networks (default %(default)s)")
    add("--steps", type=int, default=600, help="of each run (default %(default)s)")
    add("--batch", type=int, default=16, help="(default %(default)s)")
    add("--lr", type=float, default=1e-3, help="(default %(default)s)")
    add("--tasks", nargs="+", default=["sr_x2", "denoise_50"], help="names or ids (default %(default)s)")
    add("--small-pool", type=int, metavar="N", help="take the shares of N photographs instead of all")
    add("--eval", type=Path, metavar="DIR", help="measure each run on this test set, too")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--table", action="store_true", help="run nothing, report what is finished")
    add("--report", type=Path, metavar="STEM", help="write STEM.json, STEM.md and plots")
    add("--json", action="store_true", help="print JSON instead of Markdown")
    arguments = parser.parse_args(argv)
    if not arguments.table and not arguments.data:
        parser.error("on what? give --data, or --table to report what is finished")
    for name in ("seeds", "steps", "batch", "small_pool"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} is not allowed: it must be at least 1")
    if arguments.batch < 2:
        parser.error("the contrastive loss compares images: give --batch 2 or more")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return run_command(lambda: run(arguments))
