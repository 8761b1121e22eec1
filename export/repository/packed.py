"""Packed parts: all of the OpenVINO parts of a checkpoint but the weights, which lie beside the file.

    ipt-export parts weights/ipt-tiny --parts weights/ipt-tiny/parts.zip
    ipt-export repository --parts weights/ipt-tiny/parts.zip

With it weights are served where PyTorch is not installed, without the minute that an export takes. The file of a graph
holds each weight as a run of bytes. Those that equal a tensor of the checkpoint, or a part of one, are cut out, and put
back with numpy alone. The hash that the manifest has of a graph tells whether it is the one that was checked.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ipt_triton.export.repository.plans import RepositoryError
from ipt_triton.files import atomic_directory, atomic_file
from ipt_triton.manifest import MANIFEST, Manifest, read_manifest

SUFFIX = ".zip"
_CUTS = "cuts.json"
_LEAST, _MOST = 64, 2**26  # bytes of a piece that is cut out, and of a packed file
_DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, NotImplementedError)
"""What zipfile, json and a wrong list of cuts raise for a file that is not what `pack` writes."""
_DATE = (1980, 1, 1, 0, 0, 0)  # the same parts make the same file


def pack(parts: Path, target: Path) -> None:
    """Write the parts without the weights that lie beside `target`.

    Raises:
        RepositoryError: parts for another runtime, whose weights are of other types; or no weights beside `target`.
    """
    manifest = read_manifest(parts)
    if manifest.runtime != "openvino" or manifest.precision == "int8":
        raise RepositoryError(
            f"parts for {manifest.runtime} in {manifest.precision} cannot be packed, since their weights are of other "
            "types: give a folder for --parts"
        )
    names = {piece: name for name, piece in _pieces(target.parent).items() if len(piece) >= _LEAST}
    cuts: dict[str, list[tuple[int, str]]] = {}
    with atomic_file(target) as temporary, zipfile.ZipFile(temporary, "w") as file:

        def write(name: str, content: bytes) -> None:
            file.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)

        for part in manifest.parts:
            name = f"{part.name}.onnx"
            rest, cuts[name] = _cut((parts / name).read_bytes(), names)
            write(name, rest)
        write(_CUTS, json.dumps(cuts).encode())
        write(MANIFEST, (parts / MANIFEST).read_bytes())


def unpack(packed: Path, folder: Path) -> Manifest:
    """Write the parts folder that was packed, atomically, with the weights that lie beside `packed`.

    Raises:
        RepositoryError: the file is damaged, or the weights are not those that the parts were made of.
    """
    try:
        pieces = _pieces(packed.parent)
        with zipfile.ZipFile(packed) as file, atomic_directory(folder) as temporary:
            (temporary / MANIFEST).write_bytes(_read(file, MANIFEST))
            manifest = read_manifest(temporary)
            cuts = json.loads(_read(file, _CUTS))
            for part in manifest.parts:
                name = f"{part.name}.onnx"
                content = _fill(_read(file, name), cuts[name], pieces)
                if hashlib.sha256(content).hexdigest() != part.onnx_sha256:
                    raise RepositoryError(
                        f"{packed} was made of other weights than those beside it: "
                        f"run ipt-export parts {packed.parent} --parts {packed}"
                    )
                (temporary / name).write_bytes(content)
            return manifest
    except RepositoryError:
        raise
    except _DAMAGED as error:
        raise RepositoryError(f"{packed} is not what ipt-export packs: {error}") from error
    except OSError as error:
        raise RepositoryError(f"{packed} cannot be read: {error.strerror or error}") from error


def _pieces(checkpoint: Path) -> dict[str, bytes]:
    """Each tensor's bytes as FP32 by its name, of matrices those of the transposed one too, and of its square blocks:
    graphs have the projections of query, key and value apart."""
    shards = sorted(checkpoint.glob("weights-*.safetensors"))
    if not shards:
        raise RepositoryError(f"{checkpoint} holds no weights; packed parts lie beside those that they were made of")
    pieces = {}
    for shard in shards:
        try:
            tensors = load_file(shard)
        except (SafetensorError, OSError, TypeError) as error:
            raise RepositoryError(f"{shard} cannot be read: {error}") from error
        for name, tensor in tensors.items():
            values = tensor.astype(np.float32)
            pieces[name] = values.tobytes()
            if values.ndim == 2:
                pieces[f"{name}.T"] = values.T.tobytes()
                rows, columns = values.shape
                for block in range(rows // columns if rows > columns and rows % columns == 0 else 0):
                    pieces[f"{name}[{block}].T"] = values[block * columns : (block + 1) * columns].T.tobytes()
    return pieces


def _cut(content: bytes, names: dict[bytes, str]) -> tuple[bytes, list[tuple[int, str]]]:
    """What is left of a file without the pieces, and before which place of the rest each of them stood."""
    found = []
    for piece in names:
        start = content.find(piece)
        while start >= 0:
            found.append((start, -len(piece), piece))
            start = content.find(piece, start + len(piece))
    rest, cuts, done = bytearray(), [], 0
    for start, _, piece in sorted(found):
        if start >= done:
            rest += content[done:start]
            cuts.append((len(rest), names[piece]))
            done = start + len(piece)
    return bytes(rest + content[done:]), cuts


def _fill(rest: bytes, cuts: list[tuple[int, str]], pieces: dict[str, bytes]) -> bytes:
    """`_cut`, undone."""
    content, done = bytearray(), 0
    for place, name in cuts:
        content += rest[done:place] + pieces[name]
        done = place
    return bytes(content + rest[done:])


def _read(file: zipfile.ZipFile, name: str) -> bytes:
    if file.getinfo(name).file_size > _MOST:
        raise ValueError(f"{name} of {file.getinfo(name).file_size} bytes is too large")
    return file.read(name)
