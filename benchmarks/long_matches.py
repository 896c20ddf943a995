"""What benchmarks that play for long share: progress, and games that are kept. Measures nothing."""

from __future__ import annotations

import hashlib
import io
import sys
import time
from pathlib import Path

import polars as pl

from ringrift_pipeline.store import write_bytes_atomic


class Kept:
    """Finished games of one match, a file a job, in a folder named by all that decides them."""

    def __init__(self, folder: Path, *decisive: object) -> None:
        name = hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(self.folder / "what", repr(decisive).encode())

    def load(self, job: int) -> pl.DataFrame | None:
        path = self.folder / f"{job:04d}.parquet"
        return pl.read_parquet(path) if path.exists() else None

    def keep(self, job: int, games: pl.DataFrame) -> None:
        written = io.BytesIO()
        games.write_parquet(written)
        write_bytes_atomic(self.folder / f"{job:04d}.parquet", written.getvalue())


class Told:
    """Progress as lines on standard error, one in ten seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def progress(self, done: int, total: int, message: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 10.0
            print(f"{done}/{total} games: {message}", file=sys.stderr, flush=True)
