"""The page of results: what the records give, nothing else, and in step with them."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.benchmarks import MACHINE
from PIL import Image

from ipt_triton.benchmarks import BENCHMARKS, report
from ipt_triton.benchmarks.compute.measurement import Measurement
from ipt_triton.benchmarks.record import Record, Spread

RATES = {name: asdict(Spread(rate, rate - 1, rate + 1, 7)) for name, rate in (("trainer", 20.0), ("bare", 25.0))}
SETTING = {"preset": "ipt-tiny", "batch": 16, "steps": 12, "precision": "bf16", "contrastive": 0.0, "compiled": False}
TRAINING = Record(
    "training",
    ["ipt-benchmark", "training"],
    MACHINE,
    {**SETTING, "device": "CPU", "threads": 2, "patches_per_s": RATES},
)
SECONDS = Spread(0.01, 0.009, 0.011, 9)
ENGINES = Record(
    "engines",
    ["ipt-benchmark", "engines"],
    MACHINE,
    {"measurements": [asdict(Measurement("body", "fp32", 4, SECONDS, SECONDS, 10**9, 8e11))]},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TRAINING.save(tmp_path / "a-training.json")
    ENGINES.save(tmp_path / "b-engines.json")
    return tmp_path


def test_the_page_shows_each_record_with_table_plot_and_command(folder: Path) -> None:
    assert report.main(["--results", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    order = [f"## {report.HEADINGS[name]}\n" for name in ("engines", "training")]
    assert [text.index(heading) for heading in order] == sorted(text.index(heading) for heading in order)
    assert "| body | openvino | fp32 | 4 | 10 [9, 11] |" in text and "400.0 | 50 % |" in text
    assert "Trainer : bare loop = **0.800**" in text
    for record, name in ((TRAINING, "a-training"), (ENGINES, "b-engines")):
        assert record.footnote in text and f"({name}.png)" in text
        assert min(Image.open(folder / f"{name}.png").size) > 200
    assert report.main(["--results", str(folder), "--check"]) == 0


def test_the_projects_page_is_in_step_with_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_record_or_a_missing_plot_is_out_of_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["--results", str(folder), "--check"]
    assert report.main(check) == 1
    assert "README.md is not what the records give: run ipt-benchmark report" in capsys.readouterr().err
    assert not (folder / "README.md").exists()
    assert report.main(check[:-1]) == 0
    (folder / "b-engines.png").unlink()
    assert report.main(check) == 1
    assert capsys.readouterr().err.startswith(f"{folder / 'b-engines.png'} is missing: run")
    assert report.main(check[:-1]) == 0
    values = json.loads((folder / "a-training.json").read_text())
    values["figures"]["patches_per_s"]["bare"]["median"] = 26.0
    (folder / "a-training.json").write_text(json.dumps(values))
    assert report.main(check) == 1


def test_a_page_that_a_benchmark_wrote_itself_is_linked(folder: Path) -> None:
    (folder / "ablations.json").write_text('{"means": []}')
    (folder / "ablations.md").write_text("# Ablations")
    assert report.main(["--results", str(folder)]) == 0
    assert (folder / "README.md").read_text().endswith("## More\n\n- [ablations](ablations.md)\n")
    assert not (folder / "ablations.png").exists()
    assert report.main(["--results", str(folder), "--check"]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"ratio": 0.9}', "is not a record of a benchmark"),
        ("{", "is not a record of a benchmark"),
        (json.dumps(asdict(TRAINING) | {"benchmark": "serving2"}), "there is no benchmark 'serving2'; there are thr"),
        (
            json.dumps(asdict(TRAINING) | {"figures": {}}),
            "is not what ipt-benchmark training writes (KeyError(",
        ),
        (
            json.dumps(asdict(TRAINING) | {"machine": {}}),
            "is not what ipt-benchmark training writes (KeyError(",
        ),
        (
            json.dumps(asdict(ENGINES) | {"figures": {"measurements": [{"part": 1}]}}),
            "is not what ipt-benchmark engines",
        ),
    ],
)
def test_a_file_that_is_no_record_is_named_and_nothing_is_written(
    folder: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.json").write_text(text)
    before = sorted(folder.iterdir())
    assert report.main(["--results", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder / 'odd.json'}") and said in error
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", report.HEADINGS)
def test_every_section_has_a_benchmark(name: str) -> None:
    module = importlib.import_module(f"ipt_triton.benchmarks.{BENCHMARKS[name]}")
    assert all(callable(getattr(module, function)) for function in ("main", "markdown", "draw"))


def test_the_committed_page_is_in_step_with_the_committed_records() -> None:
    assert report.out_of_step(report.RESULTS) == []
