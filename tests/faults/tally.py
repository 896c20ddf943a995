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
    and counts. Another seed makes other cases, so that such a ledger is refused; cases of another
    commit count, and the figures say so.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

PATIENCE = 10.0  # seconds between two lines that tell how far a test is
MOST_BAD = 10  # cases that may go wrong before a test gives up
WANTED, ENDED = "# wanted", "# ended"  # names of what is noted of a whole part
UNKNOWN = "unknown"


class LedgerError(ValueError):
    """A ledger that a session cannot go on from."""


@dataclass(frozen=True)
class Record:
    """A finished case, or several in one: ``count``; ``bad`` is what went wrong, else None.

    ``kinds`` says how many of them were of which kind, where a test tells them apart. A name that
    begins with ``#`` is no case but a number to be told of.
    """

    harness: str
    part: str
    name: str
    count: int
    seconds: float
    bad: str | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    share: str = UNKNOWN
    seed: int | None = None
    commit: str = UNKNOWN

    @property
    def case(self) -> bool:
        return not self.name.startswith("#")


records: dict[tuple[str, str, str], Record] = {}  # of this session and of its ledger


def seed() -> int:
    """Root of all that is left to chance."""
    return int(os.environ.get("RINGRIFT_FAULTS_SEED", "0"))


@functools.cache
def commit() -> str:
    """The commit that is tried, with a ``+`` where files differ from it; or "unknown"."""
    said = []
    for words in (("rev-parse", "HEAD"), ("diff", "--name-only", "HEAD")):
        try:
            folder = Path(__file__).parent
            done = subprocess.run(
                ["git", "--no-optional-locks", *words], cwd=folder, capture_output=True, text=True
            )
        except OSError:
            return UNKNOWN
        if done.returncode:
            return UNKNOWN
        said.append(done.stdout.strip())
    return said[0] + ("+" if said[1] else "")


def share() -> tuple[int, int]:
    """Which part of how many, counted from 0."""
    number, _, parts = os.environ.get("RINGRIFT_FAULTS_SHARE", "1/1").partition("/")
    if not 1 <= int(number) <= int(parts):
        raise ValueError(f"RINGRIFT_FAULTS_SHARE must be like 2/10, not {number}/{parts}")
    return int(number) - 1, int(parts)


def share_name() -> str:
    which, parts = share()
    return f"{which + 1}/{parts}"


def total(enough: int) -> int:
    """How many random cases all shares do of a test that thinks ``enough`` enough."""
    return int(os.environ.get("RINGRIFT_FAULTS_COUNT", str(enough)))


def wanted(enough: int) -> int:
    """How many of them this session does."""
    return -(-total(enough) // share()[1])


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


def recall(any_seed: bool = False) -> None:
    """Take what the ledger holds; the newest line about a case counts."""
    path = _ledger()
    for record in read_ledger(path) if path else ():
        if not any_seed and record.seed not in (None, seed()):
            raise LedgerError(
                f"{path} holds cases of seed {record.seed}, this session has seed {seed()}: "
                "go on with that seed, or name another ledger"
            )
        records[record.harness, record.part, record.name] = record


class Cases:
    """The cases of one test: ``part`` of a ``harness``.

    ``wanted`` is how many there are to be, of all shares together, and ``each`` how many of a kind,
    where that is not simply all that are asked for.
    """

    def __init__(
        self,
        harness: str,
        part: str,
        wanted: int | None = None,
        each: Mapping[str, int] | None = None,
    ) -> None:
        self.harness, self.part = harness, part
        self._asked = self._size = self._bad = self._done = 0
        self._began = self._told = time.monotonic()
        if not records:
            recall()
        self._wanted, self._each = wanted, dict(each or {})
        if wanted is not None:
            self.keep(WANTED, wanted, kinds=self._each)

    def run(
        self,
        name: str,
        work: Callable[[], int | Mapping[str, int] | None],
        ours: bool = False,
        size: int = 1,
    ) -> None:
        """Do a case, or ``size`` in one, if it is of our share and not done yet.

        ``work`` may return how many cases it was, or how many of which kind. What is ``ours`` is of
        our share anyway, and named so.
        """
        which, parts = share()
        self._asked += 1
        self._size += size
        if ours:
            name = f"share {share_name()}, {name}"
        elif (self._asked - 1) % parts != which:
            return
        known = records.get((self.harness, self.part, name))
        if known is not None and known.bad is None:
            return
        began, bad, told = time.monotonic(), None, None
        try:
            told = work()
        except (Exception, pytest.fail.Exception):  # pytest.raises raises the latter: no Exception
            bad = traceback.format_exc(limit=-4)
            self._bad += 1
        self._done += 1
        kinds = dict(told) if isinstance(told, Mapping) else {}
        count = sum(kinds.values()) if isinstance(told, Mapping) else told
        seconds = time.monotonic() - began
        self.keep(name, size if count is None else count, seconds, bad, kinds)
        self._tell(bad and f"BAD {name}: {bad}")
        if self._bad >= MOST_BAD:
            self._judge()

    def keep(
        self,
        name: str,
        count: int,
        seconds: float = 0.0,
        bad: str | None = None,
        kinds: Mapping[str, int] | None = None,
    ) -> None:
        """Note a finished case, or with a name that begins with ``#`` a number to be told of."""
        record = Record(
            self.harness, self.part, name, count, round(seconds, 2), bad, dict(kinds or {}),
            share_name(), seed(), commit(),
        )  # fmt: skip
        records[self.harness, self.part, name] = record
        if path := _ledger():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")

    def noted(self) -> list[Record]:
        """Its cases so far, those of the ledger included."""
        mine = (self.harness, self.part)
        return [one for one in records.values() if (one.harness, one.part) == mine and one.case]

    @property
    def counted(self) -> int:
        """Cases of this share that went well, those of the ledger included."""
        mine = (one for one in self.noted() if one.share == share_name())
        return sum(record.count for record in mine if record.bad is None)

    def settle(self) -> None:
        """Note that all of this share were done; fail if a case went wrong."""
        if self._wanted is None:
            self.keep(WANTED, self._size)
        self.keep(f"{ENDED} {share_name()}", self._done)
        self._judge()

    def _judge(self) -> None:
        bad = [record for record in self.noted() if record.bad]
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
    """A line a harness: cases of how many, how many went wrong, the numbers that it noted, and the
    parts that did not come to their end; then of which commit and seed they are.
    """
    lines = [
        _figure(name, [one for one in records.values() if one.harness == name])
        for name in sorted({record.harness for record in records.values()})
    ]
    made = Counter((one.commit, one.seed) for one in records.values() if one.case)
    for (commit, seed), count in sorted(made.items(), key=str):
        lines.append(
            f"{'MIXED: ' if len(made) > 1 else ''}{count} records of {commit}, seed {seed}"
        )
    return lines


def _figure(harness: str, mine: list[Record]) -> str:
    parts = sorted({record.part for record in mine})
    cases = [record for record in mine if record.case]
    wanted = {record.part: record for record in mine if record.name == WANTED}
    each, kinds, numbers = Counter[str](), Counter[str](), Counter[str]()
    for record in wanted.values():
        each.update(record.kinds)
    for record in cases:
        kinds.update(record.kinds)
    for record in mine:
        if not record.case and record.name != WANTED and not record.name.startswith(ENDED):
            numbers[record.name[1:].strip()] += record.count
    done = sum(record.count for record in cases if record.bad is None)
    known = wanted.keys() == set(parts) and not each
    said = [f"{done}{f' of {sum(one.count for one in wanted.values())}' if known else ''} cases"]
    said[0] += f" over {len(parts)} parts"
    numbered: dict[str, int] = {}  # kinds that a number at the end tells apart
    for kind in sorted({*kinds, *each}):
        if found := re.fullmatch(r"(.*) \d+", kind):
            numbered[found[1]] = numbered.get(found[1], 0) + 1
        else:
            said.append(f"{kinds[kind]}{f' of {each[kind]}' if each[kind] else ''} {kind}")
    said += [f"{stem}: {count} different" for stem, count in numbered.items()]
    said += [f"{count} {name}" for name, count in sorted(numbers.items())]
    if missed := sum(record.count == 0 and record.bad is None for record in cases):
        said.append(f"{missed} in vain")
    said.append(f"{sum(record.bad is not None for record in cases)} bad")
    if open_parts := [part for part in parts if not _ended(part, mine)]:
        said.append(f"NOT FINISHED: {'; '.join(open_parts)}")
    return f"{harness}: {', '.join(said)}"


def _ended(part: str, mine: list[Record]) -> bool:
    """Whether there are all shares, of one division, of a part."""
    shares: dict[str, set[str]] = {}
    for record in mine:
        if record.part == part and record.name.startswith(ENDED):
            number, _, parts = record.name.removeprefix(ENDED).strip().partition("/")
            shares.setdefault(parts, set()).add(number)
    return any(len(numbers) == int(parts) for parts, numbers in shares.items())
