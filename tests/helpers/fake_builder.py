"""Stands for the builder of engines: same arguments, same manner of speaking, and plans that are words.

Run as a script, with a description to copy, `description.json`, at the repository's root; what it does besides is said
by the files `fail` and `hang` there. It notes its arguments, and its process id when it hangs.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--device", type=int, required=True)
    options = parser.parse_args()

    with (options.repository / "asked").open("a") as asked:
        print(options.device, file=asked)
    if (options.repository / "fail").exists():
        print("error: body: not enough GPU memory to build", file=sys.stderr)
        sys.exit(1)
    if (options.repository / "hang").exists():
        if "stubborn" in (options.repository / "hang").read_text():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("body: timing kernels")
        (options.repository / "process").write_text(str(os.getpid()))
        time.sleep(60)
    capability = (options.repository / "capabilities").read_text().split()[options.device]
    for onnx in sorted(options.repository.glob("*/1/model.onnx")):
        name = onnx.parents[1].name
        plan = onnx.with_name(f"model_{capability}.plan")
        plan.write_bytes(b"a plan")
        description = json.loads((options.repository / "description.json").read_text())
        facts = {"part": name, "compute_capability": capability, "plan_bytes": plan.stat().st_size}
        facts["plan_sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
        plan.with_name(f"{plan.name}.json").write_text(json.dumps({**description, **facts}))
        print(f"{name}: built")


if __name__ == "__main__":
    main()
