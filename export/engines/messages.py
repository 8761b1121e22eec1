"""What the parser and the builder say: errors as sentences, progress as lines, and the layers of an engine.

Python 3.9 syntax.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ipt_triton.manifest import Layer

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger("ipt_triton.export.engines.build")

PROGRESS_S = 2.0
"""A running build reports at most so often."""

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<inputs>\[.*?\]), "
    r"(?:Constants: (?P<constants>\[.*?\]), )?Outputs: (?P<outputs>\[.*?\]), TacticName: (?P<tactic>.*?), "
    r"StreamId: .*?Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([^\]]*)\],.*?Datatype: (\w+), Format: (.*?) \}")


def make_logger(lib: ModuleType) -> Any:
    """An `ILogger` that keeps errors (`errors`) and the engine's layers (`layers`), and hands warnings to logging.

    `layers` holds lines of text. The builder writes them at the end of a build with detailed profiling verbosity.
    """

    class Log(lib.ILogger):  # type: ignore[misc, name-defined]  # a class of the library at hand
        def __init__(self) -> None:
            lib.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (lib.ILogger.ERROR, lib.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                logger.debug("%s", message)  # becomes part of the one sentence that the caller raises
            elif severity == lib.ILogger.WARNING:
                logger.warning("%s", message)
            elif ", LayerType: " in message:
                self.layers += [line for line in message.splitlines() if _LAYER.match(line)]

    return Log()


def make_monitor(
    lib: ModuleType, part: str, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Any:
    """An `IProgressMonitor` that says every `PROGRESS_S` seconds which phase a build is in; TensorRT 10 and newer."""

    class Monitor(lib.IProgressMonitor):  # type: ignore[misc, name-defined]  # a class of the library at hand
        def __init__(self) -> None:
            lib.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._started = self._last = clock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            now = clock()
            if now - self._last >= PROGRESS_S:
                self._last = now
                report(f"{part}: {phase}, step {done} of {self._steps.get(phase, 0)}, {now - self._started:.0f} s")

    return Monitor()


def parser_error(error: trt.ParserError, layers: Sequence[Layer]) -> str:
    """A parser's error with its code, and the node's name and operator, which TensorRT 8.6 gives by its index alone."""
    index = error.node()
    where = "the graph"
    if 0 <= index < len(layers):
        where = f"node {layers[index].name or index} ({layers[index].operator})"
    code = str(error.code()).rpartition(".")[2]
    return f"{where}: {' '.join(str(error.desc()).split())} ({code})"


def explain_refusal(part: str, errors: Sequence[str], messages: Sequence[str]) -> str:
    """One sentence for a graph that the parser refused.

    Args:
        errors: see `parser_error`. A description may be no more than the condition that failed, such as `false`.
        messages: what was logged meanwhile, which tells more.
    """
    logged = [" ".join(message.split()) for message in dict.fromkeys(messages)]
    more = f"; it logged: {'; '.join(logged)}" if logged else ""
    return f"{part}: TensorRT's parser refuses the graph: {'; '.join(errors) or 'it gave no reason'}{more}"


def explain_failure(part: str, messages: Sequence[str], workspace: float | None) -> str:
    """One sentence for a build that TensorRT gave up, from what it logged."""
    text = " ".join(" ".join(messages).split())
    if re.search(r"out ?of ?memory|insufficient memory|cudaErrorMemoryAllocation|bad_alloc", text, re.IGNORECASE):
        limit = f"--workspace is {workspace:g} GiB" if workspace else "no --workspace was given"
        return (
            f"{part}: not enough GPU memory to build ({limit}): "
            "stop what else uses the GPU, or build with a smaller --max-batch or another --workspace"
        )
    return f"{part}: TensorRT could not build the engine: {text or 'it gave no reason'}"


def layer_report(lines: Sequence[str]) -> str:
    """The layers that a builder told, in the layout of the inspector's JSON; empty text for no lines."""

    def ports(text: str | None) -> list[dict[str, object]]:
        return [
            {"Name": name, "Dimensions": [int(n) for n in sides.split(",") if n], "Datatype": kind, "Format": layout}
            for name, sides, kind, layout in _TENSOR.findall(text or "")
        ]

    layers = []
    for line in lines:
        found = _LAYER.match(line)
        if found:
            layers.append(
                {
                    "Name": found["name"],
                    "LayerType": found["kind"],
                    "Inputs": ports(found["inputs"]),
                    "Constants": ports(found["constants"]),
                    "Outputs": ports(found["outputs"]),
                    "TacticName": found["tactic"],
                    "Metadata": found["metadata"],
                }
            )
    return json.dumps({"Layers": layers}) if layers else ""
