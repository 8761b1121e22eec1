"""The manifest: what became of each photo, in Parquet beside the results, so that the next run goes on from there.

`_manifest/` holds files that are written whole, each with the outcomes since the last one. Of several rows about one
result the latest is true. `Manifest.read` makes one file of them.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from ipt_triton.client.bulk.places import Place
from ipt_triton.client.errors import PlanError

FOLDER = "_manifest"

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("target", pa.string()),
        ("version", pa.string()),
        ("settings", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("warning", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seconds", pa.float64()),
        ("finished", pa.timestamp("us", tz="UTC")),
    ]
)
"""Of a row. `target` is the path below the target; `version` tells the contents of the source apart, `settings` say
how it was restored, and `key` is a hash of source, version and settings. `status` is restored or failed."""

ROWS = 10_000
"""That a file is written for at the latest."""


@dataclass(frozen=True)
class Done:
    """What is known of a result: by which key it was made, and if that failed, why."""

    key: str
    error: str


class Manifest:
    """The manifest of a target.

    Args:
        every: seconds after which outcomes are written at the latest, when another one comes.
    """

    def __init__(self, target: Place, every: float) -> None:
        self._target, self._every = target, every
        self._rows: list[dict[str, Any]] = []
        self._written = time.monotonic()

    def read(self) -> dict[str, Done]:
        """What is known of each result by its path below the target; the first call makes the manifest.

        Raises:
            PlanError: it cannot be read, or the target holds files and no manifest: they would be replaced.
        """
        if FOLDER not in (there := self._target.list()) and there:
            raise PlanError(f"{self._target.url} holds files and no manifest; give a target that is empty or not there")
        parts = [name for name in self._target.list(FOLDER) if name.endswith(".parquet")]
        try:
            tables = [parquet.read_table(self._target.read(f"{FOLDER}/{name}"), schema=SCHEMA) for name in parts]
        except (pa.ArrowException, OSError) as error:
            raise PlanError(f"{self._target.name(FOLDER)} is no manifest of ipt-batch: {error}") from error
        table = pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by("finished")
        latest = {target: row for row, target in enumerate(table["target"].to_pylist())}
        table = table.take(pa.array(latest.values(), pa.int64()))
        if len(parts) != 1:
            self._write(table)
            for name in parts:
                self._target.remove(f"{FOLDER}/{name}")
        columns = (table[name].to_pylist() for name in ("target", "key", "error"))
        return {target: Done(key, error) for target, key, error in zip(*columns, strict=True)}

    def add(self, row: dict[str, Any]) -> bool:
        """Take an outcome, with the columns of `SCHEMA` but for `finished`; True if the file was written with it."""
        self._rows.append({**row, "finished": time.time_ns() // 1000})
        if len(self._rows) < ROWS and time.monotonic() - self._written < self._every:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write the outcomes that are not written yet."""
        if self._rows:
            self._write(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows.clear()
        self._written = time.monotonic()

    def _write(self, table: pa.Table) -> None:
        buffer = io.BytesIO()
        parquet.write_table(table, buffer)
        self._target.write(f"{FOLDER}/{time.time_ns():020d}.parquet", buffer.getvalue())
