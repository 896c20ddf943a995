"""Batched play without the GIL, and the kernels' cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ringrift_pipeline
from ringrift_pipeline.game import get_rules, kernels
from ringrift_pipeline.game.playout import random_games

PACKAGE = Path(ringrift_pipeline.__file__).resolve().parent


def batch(config: str, seeds: np.ndarray, swap_rule: int = 0) -> tuple[np.ndarray, ...]:
    rules = get_rules(config)
    row = np.zeros(rules.state_size, dtype=np.int64)
    out = np.empty(rules.max_moves, dtype=np.int64)
    results = tuple(np.zeros(len(seeds), dtype=np.int64) for _ in range(3))
    random_games(rules.constants, row, seeds, out, swap_rule, *results)
    return results


@pytest.mark.parametrize("config", ["square8_2p", "hex8_4p"])
def test_batched_play_in_threads_equals_sequential_play(config: str) -> None:
    seeds = np.arange(200, dtype=np.uint64)
    alone = batch(config, seeds)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda part: batch(config, part), np.array_split(seeds, 8)))
    for expected, *found in zip(alone, *parts, strict=True):
        assert (np.concatenate(found) == expected).all()
    assert (alone[0] > 0).all()
    assert set(alone[1].tolist()) <= set(range(get_rules(config).players))
    assert (alone[2] > 0).all()


def test_kernels_run_without_the_gil() -> None:
    """This thread gets on with its work in the very middle of a kernel's run."""
    seeds = np.arange(3000, dtype=np.uint64)
    batch("square8_2p", seeds[:1])

    def timed() -> tuple[float, float]:
        started = time.perf_counter()
        batch("square8_2p", seeds)
        return started, time.perf_counter()

    ticks = []
    with ThreadPoolExecutor(1) as pool:
        games = pool.submit(timed)
        while not games.done():
            ticks.append(time.perf_counter())
    started, stopped = games.result()
    middle = (started + 0.2 * (stopped - started), stopped - 0.2 * (stopped - started))
    # With the GIL held no tick falls inside the call.
    assert any(middle[0] < tick < middle[1] for tick in ticks)


def test_random_play_is_uniform_over_the_legal_moves() -> None:
    rng = np.array([7], dtype=np.uint64)
    draws = np.array([kernels.random_below(rng, 6) for _ in range(6000)])
    counts = np.bincount(draws, minlength=6)
    assert len(counts) == 6
    # Chi-square with 5 degrees of freedom: 20.5 is the 0.1% point.
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5


def test_the_pie_rule_in_batches() -> None:
    seeds = np.arange(60, dtype=np.uint64)
    plain, pie = batch("square8_2p", seeds), batch("square8_2p", seeds, swap_rule=1)
    assert not (plain[0] == pie[0]).all()


def test_statistics_of_random_play_match_the_reference() -> None:
    """Reference engine, uniformly random: square8_2p 128 plies a game, hex8_2p 163."""
    for config, mean in (("square8_2p", 128), ("hex8_2p", 163)):
        plies, winners, _ = batch(config, np.arange(1500, dtype=np.uint64))
        assert abs(plies.mean() - mean) < 0.05 * mean
        # No seat advantage under random play.
        assert abs((winners == 0).mean() - 0.5) < 0.06


# --- the cache -----------------------------------------------------------------------------------
CALLER = """
    from ringrift_pipeline.game.callee import offset
    from ringrift_pipeline.game.compile import kernel


    @kernel
    def shifted(x):
        return x + offset()
"""
CALLEE = """
    from ringrift_pipeline.game.compile import kernel


    @kernel
    def offset():
        return {value}
"""
PROGRAM = """
    import glob
    import os

    from ringrift_pipeline.game.caller import shifted

    print(shifted(10), shifted.stats.cache_hits[next(iter(shifted.stats.cache_hits), None)]
          if shifted.stats.cache_hits else 0)
"""


@pytest.fixture
def small_package(tmp_path: Path) -> Path:
    """A copy of the package's skeleton with two kernels of its own and the real compile.py."""
    game = tmp_path / "source" / "ringrift_pipeline" / "game"
    game.mkdir(parents=True)
    (game.parent / "__init__.py").touch()
    (game / "__init__.py").touch()
    shutil.copy(PACKAGE / "game" / "compile.py", game)
    shutil.copytree(PACKAGE / "libraries", game.parent / "libraries")
    (game / "caller.py").write_text(textwrap.dedent(CALLER))
    (game / "callee.py").write_text(textwrap.dedent(CALLEE.format(value=1)))
    return game


def run(game: Path, cache: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={
            **os.environ,
            "PYTHONPATH": str(game.parent.parent),
            "RINGRIFT_KERNEL_CACHE": str(cache),
        },
        cwd=game.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_edit_of_a_callee_in_another_file_is_seen(small_package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run(small_package, cache) == ["11", "0"]
    # The second process takes the compiled kernel from the cache.
    assert run(small_package, cache) == ["11", "1"]
    folders = set((cache / "kernels").iterdir())
    callee = small_package / "callee.py"
    callee.write_text(textwrap.dedent(CALLEE.format(value=2)))
    # caller.py itself has not changed; its cached code would still answer 11.
    assert run(small_package, cache) == ["12", "0"]
    assert len(set((cache / "kernels").iterdir()) - folders) == 1


def test_a_kernels_reach_decides_what_recompiles(tmp_path: Path) -> None:
    """Editing a room below changes that room's key, not those above it."""
    program = (
        "from ringrift_pipeline.game import compile as c; "
        "print(c.source_hash('game'), c.source_hash('search'))"
    )

    def keys() -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout.split()

    game = tmp_path / "ringrift_pipeline" / "game"
    search = tmp_path / "ringrift_pipeline" / "search"
    for room in (game, search):
        room.mkdir(parents=True)
        (room / "__init__.py").touch()
    (game.parent / "__init__.py").touch()
    shutil.copy(PACKAGE / "game" / "compile.py", game)
    shutil.copytree(PACKAGE / "libraries", game.parent / "libraries")
    before = keys()
    (search / "tree.py").write_text("value = 1\n")
    after = keys()
    assert after[0] == before[0]
    assert after[1] != before[1]
    (game / "rules.py").write_text("value = 1\n")
    assert keys()[0] != after[0]
    assert keys()[1] != after[1]


def test_first_use_is_announced_once(tmp_path: Path) -> None:
    program = (
        "import time\n"
        "from ringrift_pipeline.game import compile\n"
        "compile.TELL_TIME = 0.05\n"
        "compile.cache_folder('game').mkdir(parents=True, exist_ok=True)\n"
        "for _ in range(2):\n"
        "    with compile.announced('the rules', 'game', 'legal_moves'):\n"
        "        time.sleep(0.5)\n"
        "time.sleep(0.2)\n"
    )
    environment = {**os.environ, "RINGRIFT_KERNEL_CACHE": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stderr
        for _ in range(2)
    ]
    assert said[0].count("Compiling the rules") == 1
    assert said[0].count("Compiled the rules") == 1
    assert said[0].count("Compiling still: the rules, 0 s ...") >= 1  # and none once it is over
    assert said[0].splitlines()[-1].startswith("Compiled the rules")
    assert said[1] == ""
