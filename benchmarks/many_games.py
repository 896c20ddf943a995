"""What many games cost: scored, made a training window, mined for hard examples.

    python benchmarks/many_games.py [--quick] [--json] [--config CONFIG] [--games N ...]
        [--plies N ...] [--parent N ...] [--disk GB] [--folder DIR]

A few hundred games of the heuristic are played and written as often as is needed, under ids of their
own, by the project's own writer, in shards of a thousand games: one generation of ``--games`` games.
Then each stage runs on it in a process of its own:

- ``score``: `training.score_games`, every game;
- ``window``: `training.build_window`, every decision of every game;
- ``mine``: `training.mine_hard_examples`, every decision in full: by its surprise, as there is no
  model yet; for sizes of ``--parent`` also by a small network (1 block of 8 channels).

Claims, by size:

- the processor time of a game (the wall time beside it), against that at the size before it: linear
  means a ratio of 1, or more where what does not depend on the number of games (a picture) weighs at
  the smaller size; a game may cost a quarter more than there, no more. Against the smallest size alone,
  where that weighs most, a cost that grows faster would be hidden;
- the most memory beyond what the process had when it began, against a bound that is the same for all
  sizes, some megabytes and so many bytes a game and a decision. Memory is what is the process's own
  (``RssAnon``; Linux): pages of a mapped file are the kernel's to take back.

The window is uncompressed: a whole game of square8_2p takes 100 kB and more of it, a million of them
more than most disks have. ``--plies`` cuts games after so many plies (0: none is cut), and what would
take more than ``--disk`` at a time is left out, with what it would need. In a loop
``training.window_games`` and its growth bound the window, whatever the number of games played.
Everything is written below a temporary folder of ``--folder`` and removed when its size is done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = "square8_2p"
GAMES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_GAMES = (100, 400)
PLIES = (0, 4)
PARENT = (1_000, 10_000)
SAMPLE = 200  # games that are played
SHARD = 1_000  # games in one file
FEW = 20  # games that a stage is tried on before it is measured
DISK = 20.0  # GB
LINEAR = 0.8  # least ratio of the cost of a game at the size before to that at another
# What a stage may take beyond its beginning: MB, bytes a game, bytes a decision.
BOUNDS = {
    "score": (150.0, 3_000.0, 0.0),
    "window": (150.0, 700.0, 2.0),
    "mine": (400.0, 300.0, 150.0),
    "mine with a network": (500.0, 300.0, 150.0),
}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Claim = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What a stage came to: wall time, processor time of all threads, and MB (10^6 bytes) beyond
    those the process had before.
    """

    seconds: float
    cpu: float
    megabytes: float


# --- the games ----------------------------------------------------------------------------------


def settings_for(games: int, plies: int) -> Any:
    """Settings of a generation of so many games."""
    from ringrift_pipeline.enhancements import TrainingConfig

    return TrainingConfig().with_overrides(
        {
            "device": "cpu",
            "selfplay.games": games,
            "selfplay.games_per_shard": min(games, SHARD),
            "selfplay.max_plies": plies,
            "network.blocks": 1,
            "network.channels": 8,
            "training.window_games": games,
            "training.precision": "float32",
            "training.threads": 1,
        }
    )


def sample(config: str, games: int, settings: Any) -> tuple[Any, Any]:
    """Games of the heuristic: `Decisions` and `Games` of so many."""
    from ringrift_pipeline.selfplay.play import play_heuristic_games
    from ringrift_pipeline.selfplay.stopping import Reporter

    return play_heuristic_games(config, games, 7, settings, Reporter())


def repeated(decisions: Any, games: Any, count: int) -> tuple[Any, Any]:
    """The first ``count`` games of the sample played over and over."""
    from ringrift_pipeline.selfplay.ragged import flat_positions, offsets_of

    size = len(games.plies)
    of = np.arange(count) % size
    ends = offsets_of(np.bincount(decisions.game, minlength=size))
    lengths = np.diff(ends)[of]
    rows = flat_positions(ends[of], lengths)
    counts = decisions.counts[rows]
    moves = flat_positions(decisions.offsets[rows], counts)
    told: dict[str, Any] = {}
    for name in decisions.__dataclass_fields__:
        column = getattr(decisions, name)
        if name == "offsets":
            told[name] = offsets_of(counts)
        elif name == "game":
            told[name] = np.repeat(np.arange(count, dtype=np.int32), lengths)
        else:
            told[name] = column[moves if name in ("moves", "policy") else rows]
    ended = {name: getattr(games, name)[of] for name in games.__dataclass_fields__}
    return replace(decisions, **told), replace(games, **ended)


def write_generation(
    root: Path, config: str, games: int, plies: int, played: tuple[Any, Any], parent: bool
) -> tuple[int, int]:
    """Plan a generation of so many games, and write its shards; its number and its decisions."""
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model
    from ringrift_pipeline.selfplay import plan_generation
    from ringrift_pipeline.selfplay.shards import (
        SHARD_FILE,
        shard_kind,
        shard_metadata,
        write_shard,
    )
    from ringrift_pipeline.store import Store

    store, settings = Store(root), settings_for(games, plies)
    if parent:
        plan_generation(store, config, 0, settings_for(1, plies), NOW)
        rules = get_rules(config)
        shape = NetworkConfig(1, 8, 8, rules.geometry, rules.players)
        with store.create(config, 0, "ema_model") as draft:
            save_model(draft, RingRiftNetwork(shape, seed=1), {})
    plan = plan_generation(store, config, int(parent), settings, NOW)
    made: dict[int, tuple[Any, Any]] = {}
    rows = 0
    for shard in plan.shards:
        size = shard["games"]
        if size not in made:
            made[size] = repeated(*played, size)
        decisions, ended = made[size]
        rows += len(decisions)
        about = {"plan": plan.digest, "games": size, "positions": len(decisions)}
        about |= {"player": "heuristic", "started": 0.0, "seconds": 1.0}
        kind = shard_kind(shard["index"])
        with store.create(config, plan.generation, kind, about) as draft:
            write_shard(draft / SHARD_FILE, decisions, ended, shard_metadata(plan, shard["index"]))
    return plan.generation, rows


# --- the stages ---------------------------------------------------------------------------------


def own_memory() -> float:
    """MB that are this process's own, without pages of files."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def work(root: Path, config: str, generation: int, name: str) -> None:
    """One stage."""
    from ringrift_pipeline import training
    from ringrift_pipeline.selfplay import load_plan
    from ringrift_pipeline.store import Store

    store = Store(root)
    plan = load_plan(store, config, generation)
    if name == "score":
        training.score_games(store, plan)
    elif name == "window":
        training.build_window(store, plan)
    else:
        training.mine_hard_examples(store, plan, in_full=True)


def run_stage(root: Path, few: Path, config: str, generation: int, name: str) -> Stage:
    """One stage, in the process that calls this, which has done it on a few games before: what it
    takes to load the libraries does not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(few, folder, dirs_exist_ok=True)
        work(Path(folder), config, generation, name)
    before = peak = own_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, spent = time.perf_counter(), time.process_time()
    try:
        work(root, config, generation, name)
    finally:
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        done.set()
        watcher.join()
    return Stage(seconds, cpu, max(peak, own_memory()) - before)


def in_its_own_process(root: Path, few: Path, config: str, generation: int, name: str) -> Stage:
    """`run_stage` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_stage, root, few, config, generation, name).result()


# --- claims -------------------------------------------------------------------------------------


def series(config: str, arguments: Any, plies: int) -> Iterator[Claim]:
    """All sizes of games that are cut after so many plies."""
    from ringrift_pipeline.store.retention import used_bytes

    played = sample(config, arguments.sample, settings_for(arguments.sample, plies))
    length = "whole games" if plies == 0 else f"games of {plies} plies"
    before: dict[str, float] = {}
    each = 0.0  # bytes that a game takes on the disk
    for games in sorted(arguments.games):
        what = f"many games: {config}, {games:,} {length}"
        needed = each * games / 1e9
        if needed > arguments.disk:
            yield {
                "claim": f"{what}: left out, they need more disk than --disk {arguments.disk:g}",
                "value": round(needed, 1),
                "unit": "GB",
                "reference": arguments.disk,
                "ratio": None,
                "target": None,
            }
            continue
        for parent in (False, True) if games in arguments.parent else (False,):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                root, few = Path(folder) / "many", Path(folder) / "few"
                write_generation(few, config, FEW, plies, played, parent)
                began, spent = time.perf_counter(), time.process_time()
                made, rows = write_generation(root, config, games, plies, played, parent)
                cpu = time.process_time() - spent
                writing = Stage(time.perf_counter() - began, cpu, 0.0)
                if not parent:
                    yield cost(f"{what}, write", writing, games, rows, before)
                stages = ("mine with a network",) if parent else ("score", "window", "mine")
                if parent:  # the window that is mined is there already in the loop
                    in_its_own_process(root, few, config, made, "window")
                for name in stages:
                    stage = in_its_own_process(root, few, config, made, name)
                    yield cost(f"{what}, {name}", stage, games, rows, before)
                    yield memory(f"{what}, {name}", name, stage.megabytes, games, rows)
                each = max(each, used_bytes(root) / games)
        yield {
            "claim": f"{what}: disk, shards and window",
            "value": round(each / 1e3, 3),
            "unit": "kB a game",
            "reference": None,
            "ratio": None,
            "target": None,
        }


def cost(what: str, stage: Stage, games: int, rows: int, before: dict[str, float]) -> Claim:
    """Processor time of a game, against that at the size before.

    ``before`` holds each stage's, seconds by the stage's name, which ends ``what``; it is kept.
    """
    name, value = what.rpartition(", ")[2], stage.cpu / games
    reference, before[name] = before.get(name, value), value
    return {
        "claim": f"{what}: processor time of a game",
        "value": round(value * 1e6, 2),
        "unit": "microseconds",
        "reference": round(reference * 1e6, 2),
        "ratio": round(reference / value, 3),
        "target": LINEAR,
        "seconds": round(stage.seconds, 2),
        "decisions": rows,
    }


def memory(what: str, name: str, megabytes: float, games: int, rows: int) -> Claim:
    """The most memory, against the bound."""
    fixed, per_game, per_decision = BOUNDS[name]
    bound = fixed + (per_game * games + per_decision * rows) / 1e6
    return {
        "claim": f"{what}: most memory",
        "value": round(megabytes, 1),
        "unit": "MB",
        "reference": round(bound, 1),
        "ratio": round(bound / max(megabytes, 0.1), 3),
        "target": 1.0,
        "bytes_a_game": round(megabytes * 1e6 / games, 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="hundreds of games, which say little")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    parser.add_argument("--config", default=CONFIG, help="board and player count")
    parser.add_argument("--games", type=int, nargs="+", default=list(GAMES), help="sizes")
    parser.add_argument("--plies", type=int, nargs="+", default=list(PLIES), help="0: whole games")
    parser.add_argument("--parent", type=int, nargs="*", default=list(PARENT), help="sizes")
    parser.add_argument("--disk", type=float, default=DISK, help="GB that may be used")
    parser.add_argument("--folder", type=Path, help="where the temporary folders are made")
    arguments = parser.parse_args()
    arguments.sample = SAMPLE
    if arguments.quick:
        arguments.games, arguments.parent = list(QUICK_GAMES), [QUICK_GAMES[0]]
        arguments.plies, arguments.sample = [0], 20
    for plies in arguments.plies:
        for claim in series(arguments.config, arguments, plies):
            print(json.dumps(claim), flush=True)


if __name__ == "__main__":
    main()
