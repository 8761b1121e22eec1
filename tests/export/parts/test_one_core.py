"""One Core of OpenVINO a process: with several, a signal may end the process on CPUs with AMX."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ONE_EACH = {"export/parts/one_core.py", "export/repository/runner_openvino.py", "export/serving/preflight.py"}
"""Of a process each: ours, a model's in Triton, and one that answers a question."""

SIGNALLED = """
import gc, os, signal
from pathlib import Path
import onnx
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
import openvino as ov
from ipt_triton.export.parts.int8 import served
from ipt_triton.export.parts.parity import has_bf16

ports = [make_tensor_value_info(name, 1, ["n", 4]) for name in ("FEATURES", "BODY_FEATURES")]
graph = make_graph([make_node("Relu", ["FEATURES"], ["BODY_FEATURES"])], "body", ports[:1], ports[1:])
model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
first, second = (served(model, ov.Type.f32) for _ in range(2))
has_bf16()
del first, second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_parts_were_computed() -> None:
    ended = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_nothing_else_makes_a_core() -> None:
    folders = ("train", "export", "client", "benchmarks", "triton_models/restore", "src/ipt_triton", "tests")
    files = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    makers = {path.relative_to(ROOT).as_posix() for path in files if re.search(r"\bCore\(\)", path.read_text())}
    assert makers - {Path(__file__).relative_to(ROOT).as_posix()} == ONE_EACH
