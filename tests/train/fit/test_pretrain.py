"""The pre-training command: what it writes, when it stops, and what it says about wrong data and arguments."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import photograph, write_photographs
from PIL import Image

from ipt_triton.tasks import KNOWN_TASKS, OPTIONAL_TASKS
from ipt_triton.train.__main__ import COMMANDS
from ipt_triton.train.__main__ import main as ipt_train
from ipt_triton.train.data.pack import main as pack
from ipt_triton.train.fit import state
from ipt_triton.train.fit.command import HELD_OUT, parse_duration
from ipt_triton.train.fit.pretrain import main
from ipt_triton.train.model.checkpoint import load_checkpoint
from ipt_triton.train.rivals.presets import RIVAL_PRESETS

ROOT = Path(__file__).parents[3]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.usefixtures("repeatable", "few_held_out_crops")


def command(photos: Path, output: Path, *more: str) -> list[str]:
    required = ["--data", str(photos), "--output", str(output), "--tasks", "denoise_50", "--precision", "fp32"]
    return [*required, "--batch", "2", "--device", "cpu", *more]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ipt_triton.train", "pretrain", *arguments],
        cwd=ROOT,
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not path.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("feeding", [[], ["--workers", "2"]])
def test_sigterm_saves_and_ends_with_status_0(photos: Path, tmp_path: Path, feeding: list[str]) -> None:
    arguments = command(photos, tmp_path / "run", "--steps", "1000000", "--interval", "1s", "--report", "0.5s")
    run = start(*arguments, *feeding)
    try:
        wait_for(tmp_path / "run" / "checkpoint", run)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    steps = [int(s) for s in re.findall(r"step (\d+),", errors)]
    assert len(steps) >= 2 and "Traceback" not in errors
    assert re.search(r"step \d+, \d+ % done, [\d.]+ patches/s, [\d.]+ h left, denoise_50 loss [\d.]+ PSNR", errors)
    assert load_checkpoint(tmp_path / "run" / "checkpoint").provenance["steps"] == steps[-1]
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == steps[-1]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["best", "checkpoint", "recipe.json", "state.pt"]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_save(photos: Path, tmp_path: Path) -> None:
    arguments = command(photos, tmp_path / "run", "--interval", "0.2s")
    run = start(*arguments, "--steps", "1000000")
    try:
        wait_for(tmp_path / "run" / "state.pt", run)
        time.sleep(1)
    finally:
        run.kill()
        run.communicate()
    saved = state.read_state(tmp_path / "run" / "state.pt")["step"]
    assert saved > 0
    assert main([*arguments, "--steps", str(saved + 2), "--resume"]) == 0
    assert state.read_state(tmp_path / "run" / "state.pt")["step"] == saved + 2


def test_wrong_resumes_are_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert main(command(photos, output, "--steps", "1", "--resume")) == 1
    assert "nothing to resume" in capsys.readouterr().err
    assert main(command(photos, output, "--steps", "1")) == 0
    for more, message in (
        ([], "add --resume"),
        (["--resume", "--seed", "3"], "seed 0 is now 3"),
        (["--resume", "--lr", "0.1", "--warmup", "7"], "lr 0.0004 is now 0.1, warmup 300 is now 7"),
        (
            ["--resume", "--schedule", "paper"],
            "contrastive 0.0 is now 0.1, busiest 4 is now 1, noise",
        ),
        (["--resume", "--tasks", "denoise_30"], "another architecture or task table"),
        (["--resume", "--preset", "ipt-small"], "another architecture or task table"),
    ):
        before = (output / "state.pt").read_bytes()
        assert main(command(photos, output, "--steps", "2", *more)) == 1
        assert message in capsys.readouterr().err
        assert (output / "state.pt").read_bytes() == before
    assert main(command(photos, output, "--steps", "2", "--resume")) == 0
    assert load_checkpoint(output / "checkpoint").provenance["steps"] == 2


@pytest.fixture(scope="module")
def first_step(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`state.pt` after one step."""
    folder = tmp_path_factory.mktemp("run")
    assert main(command(photos, folder, "--steps", "1")) == 0
    return folder / "state.pt"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "old"])
def test_a_damaged_state_is_one_sentence(
    photos: Path, tmp_path: Path, first_step: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "run" / "state.pt"
    path.parent.mkdir()
    shutil.copyfile(first_step, path)
    whole = path.read_bytes()
    if damage in ("cut", "empty", "text"):
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a state"}[damage])
    else:
        torch.save([1] if damage == "other" else {**torch.load(path, weights_only=True), "format": 1}, path)
    capsys.readouterr()
    assert main(command(photos, tmp_path / "run", "--steps", "2", "--resume")) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert ("is damaged" if damage in ("cut", "empty", "text") else "is not of this version") in line


def test_without_safetensors_the_state_is_kept_and_becomes_a_checkpoint_later(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "ipt_triton.train.model.checkpoint")
        without.setitem(sys.modules, "safetensors", None)
        assert main(command(photos, tmp_path / "run", "--steps", "2")) == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["recipe.json", "state.pt"]
    assert "ipt-train checkpoint" in caplog.text
    assert state.main([str(tmp_path / "run" / "state.pt"), str(tmp_path / "checkpoint")]) == 0
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    assert checkpoint.provenance["steps"] == 2 and "denoise_50" in checkpoint.quality["held_out_psnr_rgb"]


BARE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: as if not installed
from ipt_triton.train.fit.pretrain import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_machine_with_torch_and_numpy_alone_trains_on_a_packed_pool(photos: Path, tmp_path: Path) -> None:
    packed = tmp_path / "pool.npz"
    assert pack([str(photos), "--output", str(packed), "--min-side", "48"]) == 0
    missing = "PIL,cv2,lightning_fabric,safetensors,scipy,skimage,tensorboard,tqdm,tritonclient"
    bare = [sys.executable, "-c", BARE, missing]
    settings: dict[str, Any] = {"cwd": ROOT, "env": ONE_THREAD, "capture_output": True, "text": True, "timeout": 240}
    arguments = command(packed, tmp_path / "run", "--steps", "2")
    ended = subprocess.run([*bare, *arguments], **settings)
    assert ended.returncode == 0, ended.stderr
    assert "ipt-train checkpoint" in ended.stderr
    assert state.read_state(tmp_path / "run" / "state.pt")["step"] == 2
    arguments = command(photos, tmp_path / "other", "--steps", "2")
    ended = subprocess.run([*bare, *arguments], **settings)
    assert ended.returncode == 2
    assert "error: photographs are read with Pillow: pip install pillow, or pack them elsewhere" in ended.stderr


def test_a_run_on_shards_resumes_bit_for_bit_and_trains_what_one_on_the_folder_trains(
    photos: Path, tmp_path: Path
) -> None:
    assert pack([str(photos), "--output", str(tmp_path / "photos.tar"), "--shards", "1", "--min-side", "48"]) == 0
    states = []
    for name, data in (("folder", photos), ("shard", tmp_path / "photos-000.tar")):
        arguments = command(data, tmp_path / name, "--workers", "1", "--schedule", "constant")
        for steps in (["1"], ["3", "--resume"]) if name == "shard" else (["3"],):
            assert main([*arguments, "--steps", *steps]) == 0
        states.append(state.read_state(tmp_path / name / "state.pt"))
    folder, shard = states
    assert shard["step"] == folder["step"] == 3 and shard["provenance"]["data"] == folder["provenance"]["data"]
    for name, tensor in folder["model"].items():
        assert torch.equal(shard["model"][name], tensor), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_it_as_it_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ipt_train([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ipt-train {name} ")


def test_curves_and_samples_are_written_for_tensorboard(photos: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(command(photos, tmp_path / "run", "--steps", "3", "--tensorboard")) == 0
    events = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss/denoise_50", "psnr/denoise_50", "held_out_psnr/denoise_50"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss/denoise_50")] == [0, 1, 2]
    assert (events.Images("samples/denoise_50")[0].width, events.Images("samples/denoise_50")[0].height) == (192, 144)


def test_optional_tasks_weights_fractions_and_packed_pools_are_accepted(photos: Path, tmp_path: Path) -> None:
    packed = tmp_path / "pool.npz"
    assert pack([str(photos), "--output", str(packed), "--min-side", "48"]) == 0
    more = ["--tasks", "dejpeg", "auto", "--task-weights", "auto=2", "--task-sampling", "sample"]
    arguments = command(packed, tmp_path / "run", "--steps", "2", "--data-fraction", "0.4", "--accumulate", "2")
    assert main([*arguments, *more]) == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert checkpoint.model.config.tasks == (OPTIONAL_TASKS[1], OPTIONAL_TASKS[-1])
    made = checkpoint.provenance
    assert made["data"]["photographs"] == 2 and made["recipe"]["weights"] == {"auto": 2.0}
    assert made["patches"] == 2 * 2 * 2


def test_a_run_starts_from_a_checkpoint_with_its_architecture_and_tasks(
    tmp_path: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(tmp_path / "photos", HELD_OUT + 1, side=256)
    arguments = ["--data", str(tmp_path / "photos"), "--batch", "2", "--lr", "1e-9", "--steps", "2", "--output"]
    before = load_checkpoint(small_checkpoint)
    assert (
        main([*arguments, str(tmp_path / "run"), "--start", str(small_checkpoint), "--task-weights", "derain=3"]) == 0
    )
    after = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert after.model.config == before.model.config
    torch.testing.assert_close(after.model.state_dict(), before.model.state_dict(), rtol=0, atol=1e-7)
    assert after.provenance["parent"] == {"sha256": before.sha256, "provenance": before.provenance}
    (tmp_path / "set").mkdir()
    Image.fromarray(photograph(0, 64)).save(tmp_path / "set" / "0.png")
    more = ["--start", str(small_checkpoint), "--tasks", "all", "--validate", f"auto={tmp_path / 'set'}"]
    assert main([*arguments, str(tmp_path / "all"), *more]) == 0
    wider = load_checkpoint(tmp_path / "all" / "checkpoint")
    assert wider.model.config.tasks == KNOWN_TASKS
    assert wider.quality["validation_psnr"].keys() == {"auto set"}
    torch.testing.assert_close(
        wider.model.heads["real"].state_dict(), before.model.heads["denoise_30"].state_dict(), rtol=0, atol=1e-7
    )
    assert main([*arguments, str(tmp_path / "other"), "--start", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("rival", ["edsr", "rdn", "ignn"])
def test_a_convolutional_rival_is_trained_and_resumed(photos: Path, tmp_path: Path, rival: str) -> None:
    arguments = command(photos, tmp_path / "run", "--preset", f"{rival}-tiny")
    assert main([*arguments, "--steps", "1"]) == 0
    assert main([*arguments, "--steps", "2", "--resume"]) == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["recipe.json", "state.pt"]
    saved = state.read_state(tmp_path / "run" / "state.pt")
    assert saved["step"] == 2 and saved["recipe"]["contrastive"] == 0
    assert saved["config"]["blocks"] == RIVAL_PRESETS[f"{rival}-tiny"].to_dict()["blocks"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --steps or --time-budget"),
        (["--steps", "-5"], "--steps -5 is not allowed"),
        (["--steps", "5", "--batch", "0"], "--batch 0 is not allowed"),
        (["--steps", "5", "--batch", "2", "1", "--schedule", "paper"], "give --batch 2 or more, or --contrastive 0"),
        (["--time-budget", "soon"], "'soon' is not a duration"),
        (["--steps", "5", "--preset", "ipt-huge"], "ipt-huge"),
        (["--steps", "5", "--preset", "ipt-tiny", "--start", "x"], "--preset is decided by the checkpoint"),
        (["--steps", "5", "--preset", "edsr-tiny", "--contrastive", "0.1"], "edsr-tiny is not one"),
        (["--steps", "5", "--preset", "edsr-tiny", "--activation-checkpointing"], "edsr-tiny is not one"),
        (["--steps", "5", "--data-fraction", "1.5"], "--data-fraction 1.5 is not allowed"),
        (["--steps", "5", "--task-weights", "sr_x2=none"], "'sr_x2=none' is not a weight"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), *more])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "blur"], "unknown task 'blur'; there are: 0 sr_x2"),
        (["--tasks", "derain", "--task-weights", "sr_x2=2"], "unknown task 'sr_x2'; there are: 3 derain"),
        (["--device", "gpu"], "--device gpu is not a device"),
    ],
)
def test_what_is_not_there_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["--data", str(photos), "--output", str(tmp_path / "run"), "--steps", "1", *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("missing", "more", "message", "status"),
    [
        ("torch.utils.tensorboard", ["--tensorboard"], "pip install tensorboard", 1),
        ("lightning_fabric", ["--devices", "2"], "pip install lightning-fabric", 2),
    ],
)
def test_what_is_not_installed_is_named(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    more: list[str],
    message: str,
    status: int,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "ipt_triton.train.fit.board", raising=False)
    assert main(command(photos, tmp_path / "run", "--steps", "1", *more)) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("feeding", [[], ["--workers", "1"]])
def test_data_that_cannot_be_trained_on_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], feeding: list[str]
) -> None:
    data = tmp_path / "data"
    arguments = command(data, tmp_path / "run", "--steps", "1", *feeding)
    assert main(arguments) == 2
    assert "data is not a folder" in capsys.readouterr().err
    data.mkdir()
    (data / "notes.txt").write_text("no picture")
    (data / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    Image.fromarray(photograph(0, 40)).save(data / "small.png")
    assert main(arguments) == 2
    expected = "0 usable" if feeding else "2 files of a known kind, 1 unreadable, 1 with a side below 48 px"
    assert expected in capsys.readouterr().err
    for number in range(HELD_OUT):
        Image.fromarray(photograph(number, 50)).save(data / f"{number}.png")
    assert main(command(data, tmp_path / "run", "--steps", "1")) == 2
    assert "12 usable photographs are too few to hold 12 out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("45m", 2700), ("2h", 7200), ("1.5h", 5400)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
