"""The table of jobs in SQLite: what a gateway must know of them when it is started again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TABLE = "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, state TEXT NOT NULL, record TEXT NOT NULL) STRICT"


class Store:
    """Records of jobs as JSON, by id. A write is on disk when the call returns, but for a failure of the system."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA secure_delete = ON")
        self._database.execute(_TABLE)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def save(self, id: str, state: str, record: dict[str, Any]) -> None:
        """Write a job's record, or replace it."""
        self._database.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", (id, state, json.dumps(record)))

    def delete(self, id: str) -> None:
        """Forget a job."""
        self._database.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def __iter__(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for id, state, record in self._database.execute("SELECT id, state, record FROM jobs ORDER BY rowid").fetchall():
            yield id, state, json.loads(record)
