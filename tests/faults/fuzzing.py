"""Random damage to everything that is read: files, records, settings, requests.

    python -m faults.fuzzing [--executions N] [--seed N] [--only TARGET,…] [--keep] [--faults DIR]

(from ``tests/``). Each execution changes an input that is known to be good, or one of the corpus, and
hands it to a reader, which may accept it or refuse it with an error of its own; any other exception,
memory beyond a bound, more than some seconds, and a crash of the interpreter are faults. Inputs that
are refused at a place where none was refused before are kept as the corpus (``--keep`` writes them);
those that led to faults are written to ``--faults``.

One JSON line a target, and one for all: executions, how many were accepted, places of refusal, faults.
A worker process does the reading; what it was reading when it died lies in memory that it shares with the first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
LARGEST_KEPT = 2048  # bytes of an input that goes into the corpus
LARGEST_CORPUS = 200_000  # bytes of all of it
KEPT_OF_TARGET = 12_000  # bytes of a target's new inputs; small ones go first
MEMORY = 1 << 30  # bytes that a reader may take beyond what was there before
SECONDS = 20  # that an execution may take
START = 120  # that a worker may take to begin
LARGEST = 1 << 22  # bytes of an input
HEAD = 16  # bytes before the input in the shared memory

Run = Callable[[bytes], Any]


@dataclass(frozen=True)
class Target:
    """A reader: good inputs, what reads them, the errors it may raise, and whether it is JSON."""

    seeds: tuple[bytes, ...]
    run: Run
    errors: tuple[type[BaseException], ...]
    text: bool = False


@dataclass
class Outcome:
    """What became of a target's executions."""

    executions: int = 0
    accepted: int = 0
    places: Counter[str] = field(default_factory=Counter)
    faults: dict[str, bytes] = field(default_factory=dict)  # what happened -> the first input
    kept: dict[str, bytes] = field(default_factory=dict)  # place -> an input refused there


# --- damage -------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63))
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    -1e-320,
    10**400,
    "",
    "x",
    "\x00",
    "../../etc/passwd",
    "/",
    "NaN",
    "1" * 5000,
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"$": "dict", "items": []},
)


def damaged(seed: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """``seed`` with a few random changes of its bytes."""
    data = bytearray(seed)
    for _ in range(1 + int(rng.expovariate(0.7))):
        kind = rng.randrange(8)
        place = rng.randrange(len(data) + 1)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del data[place : place + rng.randrange(1, 17)]
        elif kind == 4:
            piece = data[place : place + rng.randrange(1, 65)]
            where = rng.randrange(len(data) + 1)
            data[where:where] = piece
        elif kind == 5:
            number = rng.choice(NUMBERS)
            form = rng.choice(("<i", "<q", ">i", "<h"))
            bits = 8 * struct.calcsize(form)
            packed = struct.pack(form.upper(), number % (1 << bits))
            data[place : place + len(packed)] = packed
        elif kind == 6:
            del data[place:]
        else:
            other = rng.choice(others)
            data[place:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data[:LARGEST])


def reworded(seed: bytes, rng: random.Random) -> bytes:
    """JSON with a few of its values, keys or items changed, so that it still is JSON."""
    try:
        value = json.loads(seed)
    except (ValueError, RecursionError):
        return seed
    try:
        for _ in range(1 + int(rng.expovariate(0.9))):
            value = _changed(value, rng)
        return json.dumps(value).encode()
    except (ValueError, RecursionError, UnicodeEncodeError):
        return seed


def _changed(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0 and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", "", "__class__", "config"))] = holder.pop(key)
    elif kind == 1:
        del holder[key]
    elif kind == 2:
        other, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[name])) if other is not holder else None
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = rng.choice(
            (holder[key] + 1, -holder[key], holder[key] * 1000, str(holder[key]))
        )
    else:
        holder[key] = rng.choice(VALUES)
    return value


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth > 40:
        return
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield value, key
        yield from _places(item, depth + 1)


# --- one worker ---------------------------------------------------------------------------------


def place_of(error: BaseException) -> str:
    """Where in our code an error was raised: its type, file and line; or what it says itself."""
    if hasattr(error, "place"):
        return str(error.place)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ringrift_pipeline" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno}"


class LateError(BaseException):
    """No error that a reader could take for one of its own."""


def _late(number: int, frame: Any) -> None:
    raise LateError(f"more than {SECONDS} s")


def _shared(path: Path) -> mmap.mmap:
    """What worker and parent see: executions so far, size of the input, the input."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), LARGEST + HEAD)


def _worker(name: str, folder: Path, seed: int, budget: int, inbox: Any, place: Path) -> None:
    """Execute up to ``budget`` inputs; send an :class:`Outcome`."""
    from . import fuzz_targets

    memory = _shared(place)
    target = fuzz_targets.target(name, folder)
    rng = random.Random(f"{name} {seed}")
    pool = [*target.seeds, *corpus(name)]
    outcome = Outcome()
    for data in target.seeds:
        target.run(data)  # good ones are accepted
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.signal(signal.SIGALRM, _late)
    while outcome.executions < budget:
        origin = rng.choice(pool)
        if target.text and rng.random() < 0.6:
            data = reworded(origin, rng)[:LARGEST]
        else:
            data = damaged(origin, pool, rng)
        outcome.executions += 1
        memory[:HEAD] = struct.pack("<qq", outcome.executions, len(data))
        memory[HEAD : HEAD + len(data)] = data
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            target.run(data)
            outcome.accepted += 1
        except target.errors as error:
            where = place_of(error)
            if where not in outcome.places:
                outcome.kept[where] = data
                if len(pool) < 400:
                    pool.append(data)
            outcome.places[where] += 1
        except BaseException as error:
            outcome.faults.setdefault(f"{place_of(error)}: {str(error)[:200]}", data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, before)
    inbox.send(outcome)


def corpus(name: str) -> list[bytes]:
    """Inputs that were kept of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name.replace(" ", "_")).glob("*"))]


def fuzz(name: str, folder: Path, seed: int, executions: int, batch: int = 20_000) -> Outcome:
    """Execute a target ``executions`` times in worker processes, one after the other."""
    whole = Outcome()
    place = folder / "shared"
    place.write_bytes(bytes(LARGEST + HEAD))
    memory = _shared(place)
    context = processes()
    while whole.executions < executions:
        budget = min(batch, executions - whole.executions)
        inbox, outbox = context.Pipe(duplex=False)
        worker = context.Process(
            target=_worker, args=(name, folder, seed + whole.executions, budget, outbox, place)
        )
        memory[:HEAD] = bytes(HEAD)
        worker.start()
        outbox.close()
        part = _result(worker, inbox, memory)
        if part is None:
            worker.join()
            executed, length = struct.unpack("<qq", memory[:HEAD])
            what = f"the interpreter died: {worker.exitcode}"
            whole.faults[what] = memory[HEAD : HEAD + length]
            whole.executions += executed
            if not executed:  # it does not even accept what is good
                break
            continue
        worker.join()
        whole.executions += part.executions
        whole.accepted += part.accepted
        whole.places += part.places
        whole.faults = {**part.faults, **whole.faults}
        whole.kept = {**part.kept, **whole.kept}
    return whole


def processes() -> Any:
    """Processes forked from one that has the rooms loaded and has used none of their threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults.fuzz_targets", "faults.stages"])
    return context


def _result(worker: Any, inbox: Any, memory: mmap.mmap) -> Outcome | None:
    """What a worker sends; None if it dies, or makes no execution for too long and is killed."""
    seen, since = memory[:HEAD], time.monotonic()
    while not inbox.poll(1.0):
        if memory[:HEAD] != seen:
            seen, since = memory[:HEAD], time.monotonic()
        elif time.monotonic() - since > START + SECONDS:
            worker.kill()
            return None
    try:
        found: Outcome = inbox.recv()
    except EOFError:
        return None
    return found


def keep(name: str, outcome: Outcome) -> None:
    """Write the inputs that were refused at new places into the corpus."""
    folder = CORPUS / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    left = KEPT_OF_TARGET - sum(path.stat().st_size for path in folder.iterdir())
    for data in sorted(outcome.kept.values(), key=len):
        if len(data) <= min(LARGEST_KEPT, left):
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            left -= len(data)


def main() -> int:
    from . import fuzz_targets

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--executions", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=20_260_101)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--faults", type=Path, help="folder for the inputs that led to faults")
    parser.add_argument("--keep", action="store_true", help="write to the corpus")
    arguments = parser.parse_args()
    names = [name for name in fuzz_targets.SHARES if not arguments.only or name in arguments.only]
    whole: Counter[str] = Counter()
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="ringrift-fuzz-"))
    try:
        prepared = processes().Process(target=fuzz_targets.prepare, args=(folder,))
        prepared.start()
        prepared.join()
        for name, share in fuzz_targets.executions(names, arguments.executions).items():
            began = time.monotonic()
            outcome = fuzz(name, folder, arguments.seed, share)
            if arguments.keep:
                keep(name, outcome)
            for number, (what, data) in enumerate(outcome.faults.items()):
                print(f"{name}: {what}", file=sys.stderr, flush=True)
                if arguments.faults:
                    arguments.faults.mkdir(parents=True, exist_ok=True)
                    place = arguments.faults / f"{name.replace(' ', '_')}-{number}"
                    place.write_bytes(data)
            counts = {
                "executions": outcome.executions,
                "accepted": outcome.accepted,
                "places_of_refusal": len(outcome.places),
                "faults": len(outcome.faults),
            }
            whole.update(counts)
            _say({"target": name, **counts}, began)
        _say({"target": "all", **whole}, started)
    finally:
        shutil.rmtree(folder)
    return 1 if whole["faults"] else 0


def _say(line: dict[str, Any], began: float) -> None:
    print(json.dumps(line | {"seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
