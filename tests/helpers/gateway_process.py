"""`ipt-gateway` as a user runs it, on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from helpers.serve import until


class GatewayProcess:
    """A running `ipt-gateway`; all it writes is in one file."""

    def __init__(self, folder: Path, url: str, *arguments: str, before: str = "") -> None:
        """`before`: Python that runs before the command, to cut the gateway's patience."""
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        code = f"{before}\nimport sys\nfrom ipt_triton.client.gateway.command import main\nsys.exit(main())"
        command = [sys.executable, "-c", code, "--url", url, "--port", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--folder", str(folder / "files"), "--workers", "1", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> GatewayProcess:
        until(lambda: "startup complete" in self.output or self.process.poll() is not None, 60, "start")
        assert self.process.poll() is None, self.output
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(30)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def address(self) -> str:
        """http://HOST:PORT of the last start."""
        return str(re.findall(r"page: (http://\S+?)/$", self.output, re.MULTILINE)[-1])
