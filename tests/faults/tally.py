"""Cases of the fault tests: counted, told of while they run, shared out, taken up again.

A case that goes wrong is kept, with what it said, and the others go on; `Cases.settle` fails then.
The environment says how much is done (``python -m faults`` sets it):

``RINGRIFT_FAULTS_SHARE``
    ``2/10``: of every ten cases the second.
``RINGRIFT_FAULTS_SEED``
    Root of all that is left to chance, 0.
``RINGRIFT_FAULTS_COUNT``
    Random cases of a test, where it has any; else as many as that test thinks enough.
``RINGRIFT_FAULTS_LEDGER``
    File of finished cases, one JSON object a line. What is in it and went well is not done again,
    and counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PATIENCE = 10.0  # seconds between two lines that tell how far a test is
MOST_BAD = 10  # cases that may go wrong before a test gives up


@dataclass(frozen=True)
class Record:
    """A finished case, or several in one: ``count``; ``bad`` is what went wrong, else None."""

    harness: str
    part: str
    name: str
    count: int
    seconds: float
    bad: str | None = None


records: dict[tuple[str, str, str], Record] = {}  # of this session and of its ledger


def seed() -> int:
    """Root of all that is left to chance."""
    return int(os.environ.get("RINGRIFT_FAULTS_SEED", "0"))


def share() -> tuple[int, int]:
    """Which part of how many, counted from 0."""
    number, _, parts = os.environ.get("RINGRIFT_FAULTS_SHARE", "1/1").partition("/")
    if not 1 <= int(number) <= int(parts):
        raise ValueError(f"RINGRIFT_FAULTS_SHARE must be like 2/10, not {number}/{parts}")
    return int(number) - 1, int(parts)


def wanted(enough: int) -> int:
    """How many random cases this session does of a test that thinks ``enough`` enough."""
    total = int(os.environ.get("RINGRIFT_FAULTS_COUNT", str(enough)))
    return -(-total // share()[1])


def read_ledger(path: Path) -> Iterator[Record]:
    """The cases in a ledger; a last line that a killed session left unfinished is none."""
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError):
                continue


def _ledger() -> Path | None:
    path = os.environ.get("RINGRIFT_FAULTS_LEDGER")
    return Path(path) if path else None


def recall() -> None:
    """Take what the ledger holds; the newest line about a case counts."""
    path = _ledger()
    for record in read_ledger(path) if path else ():
        records[record.harness, record.part, record.name] = record


class Cases:
    """The cases of one test: ``part`` of a ``harness``."""

    def __init__(self, harness: str, part: str) -> None:
        self.harness, self.part = harness, part
        self._asked = self._bad = self._done = 0
        self._began = self._told = time.monotonic()
        if not records:
            recall()

    def run(self, name: str, work: Callable[[], int | None], ours: bool = False) -> None:
        """Do a case if it is of our share (or ``ours`` anyway) and not done yet.

        ``work`` may return how many cases it was.
        """
        which, parts = share()
        self._asked += 1
        if not ours and (self._asked - 1) % parts != which:
            return
        known = records.get((self.harness, self.part, name))
        if known is not None and known.bad is None:
            return
        began, bad, count = time.monotonic(), None, None
        try:
            count = work()
        except Exception:
            bad = traceback.format_exc(limit=-4)
            self._bad += 1
        self._done += 1
        self.keep(name, 1 if count is None else count, time.monotonic() - began, bad)
        self._tell(bad and f"BAD {name}: {bad}")
        if self._bad >= MOST_BAD:
            self.settle()

    def keep(self, name: str, count: int, seconds: float = 0.0, bad: str | None = None) -> None:
        """Note a finished case, or with a name that begins with ``#`` a number to be told of."""
        record = Record(self.harness, self.part, name, count, round(seconds, 2), bad)
        records[self.harness, self.part, name] = record
        if path := _ledger():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")

    @property
    def counted(self) -> int:
        """Cases that went well, those of the ledger included."""
        return sum(
            record.count
            for record in records.values()
            if (record.harness, record.part) == (self.harness, self.part)
            and record.bad is None
            and not record.name.startswith("#")
        )

    def settle(self) -> None:
        """Fail if a case went wrong."""
        bad = [
            record
            for record in records.values()
            if (record.harness, record.part) == (self.harness, self.part) and record.bad
        ]
        assert not bad, f"{len(bad)} bad:\n" + "\n".join(f"{one.name}: {one.bad}" for one in bad)

    def _tell(self, more: str | None) -> None:
        now = time.monotonic()
        if more is None and now - self._told < PATIENCE:
            return
        self._told = now
        rate = self._done / max(1e-9, now - self._began)
        line = f"{self.harness}, {self.part}: {self._done} cases, {self._bad} bad, {rate:.2f}/s"
        print(line if more is None else f"{line}\n{more}", file=sys.stderr, flush=True)


def figures() -> list[str]:
    """A line a harness: cases, how many went wrong, and the numbers that it noted."""
    cases: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    noted: dict[str, Counter[str]] = {}
    parts: dict[str, set[str]] = {}
    for record in records.values():
        parts.setdefault(record.harness, set()).add(record.part)
        if record.name.startswith("#"):
            noted.setdefault(record.harness, Counter())[record.name[1:].strip()] += record.count
        else:
            cases[record.harness] += record.count
            bad[record.harness] += record.bad is not None
    return [
        f"{harness}: {cases[harness]} cases over {len(parts[harness])} parts, "
        + "".join(f"{count} {name}, " for name, count in sorted(noted.get(harness, {}).items()))
        + f"{bad[harness]} bad"
        for harness in sorted(parts)
    ]
