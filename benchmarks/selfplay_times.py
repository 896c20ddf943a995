"""One shard of selfplay, taken apart: what its time goes to, and what its searches did."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import get_rules, kernels
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.network import Evaluator, NetworkConfig, RingRiftNetwork
from ringrift_pipeline.search import GumbelSearch, SearchPool, SearchResult
from ringrift_pipeline.search.slots import DONE, IDLE, STAGE
from ringrift_pipeline.search.tree import VISITS, inline_settle
from ringrift_pipeline.selfplay import stepping
from ringrift_pipeline.selfplay.play import play_search_games
from ringrift_pipeline.selfplay.stopping import Interrupted, Reporter

CONFIG = "square8_2p"
BATCH = 128


class Clock:
    """Adds up the processor time of calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed by this clock."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **named)
            self.seconds += time.process_time() - started
            return result

        return timed


class Watched:
    """An evaluator that counts and times what it is asked, and keeps some of the positions."""

    KEEP = 40
    unseen = Evaluator.unseen  # without it selfplay would remember no evaluation

    def __init__(self, model: RingRiftNetwork, precision: str, backend: str = "auto") -> None:
        self.rules = get_rules(CONFIG)
        self.evaluator = Evaluator(
            model, self.rules, "cpu", precision=precision, backend=backend, threads=1
        )
        self.network = self.evaluator._board
        self.encode = self.evaluator._encoder.encode
        self.whole, self.encoding = Clock(), Clock()
        self.evaluator._encoder.encode = self.encoding.around(self.encode)  # type: ignore[method-assign]
        self._timed = self.whole.around(self.evaluator.evaluate)
        self.positions = 0
        self.batches = 0
        self.kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self.positions += len(states)
        self.batches += 1
        if self.batches % 16 == 8 and len(states) > 100 and len(self.kept) < self.KEEP:
            self.kept.append((states.copy(), moves.copy(), counts.copy()))
        return self._timed(states, moves, counts)

    def positions_once(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``count`` of the positions kept: states, moves, counts."""
        width = max(moves.shape[1] for _, moves, _ in self.kept)
        padded = [np.pad(m, ((0, 0), (0, width - m.shape[1]))) for _, m, _ in self.kept]
        states, counts = (np.concatenate([part[k] for part in self.kept]) for k in (0, 2))
        index = np.resize(np.arange(len(states)), count)
        return states[index], np.concatenate(padded)[index], counts[index]


class Searches:
    """Counts the simulations of selfplay, and those that its next searches could have kept.

    ``shares``: of each full search's simulations, those below the move that was played.
    """

    def __init__(self, full: int) -> None:
        self.full = full
        self.shares: list[float] = []
        self.clock = Clock()  # of the searches, their evaluations included
        self._pools: dict[int, SearchPool] = {}
        self._ended = 0
        self._visits = np.zeros((0, 0), np.int32)

    @property
    def simulations(self) -> int:
        """All so far, those of searches that have not ended included."""
        going = 0
        for pool in self._pools.values():
            stages = pool._slots[:, STAGE]
            roots = np.flatnonzero((stages != IDLE) & (stages != DONE)) * (pool.simulations + 1)
            going += int(np.maximum(pool._tree.nodes[roots, VISITS] - 1, 0).sum())
        return self._ended + going

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts."""
        start, step, take = SearchPool.start, SearchPool.step, SearchPool.take
        choose_moves = stepping.choose_moves
        timed = self.clock.around(take)

        def taken(pool: SearchPool, which: np.ndarray, *more: Any) -> SearchResult:
            result: SearchResult = timed(pool, which, *more)
            self._pools[id(pool)] = pool
            self._visits = result.visits
            self._ended += int(result.visits.sum())
            return result

        def chosen(*arguments: Any) -> None:
            choose_moves(*arguments)
            index = arguments[-1]
            full = np.flatnonzero(self._visits.sum(axis=1) == self.full)
            self.shares += (self._visits[full, index[full]] / self.full).tolist()

        SearchPool.start = self.clock.around(start)  # type: ignore[method-assign]
        SearchPool.step = self.clock.around(step)  # type: ignore[method-assign]
        SearchPool.take, stepping.choose_moves = taken, chosen  # type: ignore[method-assign]
        try:
            yield
        finally:
            SearchPool.start, SearchPool.step = start, step  # type: ignore[method-assign]
            SearchPool.take, stepping.choose_moves = take, choose_moves  # type: ignore[method-assign]


@kernel
def _engine_work(b, states, moves, counts, scratch, buffer):  # type: ignore[no-untyped-def]
    """What the engine does for one leaf, for every row: copy, move, forced moves, legal moves."""
    total = 0
    for i in range(states.shape[0]):
        scratch[:] = states[i]
        kernels.apply_move(b, scratch, moves[i, i % counts[i]])
        total += inline_settle(b, scratch, buffer)
    return total


def engine_seconds(watched: Watched) -> float:
    """Seconds of processor time a leaf."""
    rules = watched.rules
    states, moves, counts = watched.positions_once(4000)
    scratch = np.empty(rules.state_size, dtype=np.int64)
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    times = []
    for _ in range(7):
        started = time.process_time()
        _engine_work(rules.constants, states, moves, counts, scratch, buffer)
        times.append((time.process_time() - started) / len(states))
    return statistics.median(times[1:])


def bare_rates(watched: Watched, seconds: float) -> list[float]:
    """Positions a second of the network alone on one encoded batch, call by call."""
    features = watched.encode(*watched.positions_once(BATCH))
    planes, globals_ = (features[k].copy() for k in ("planes", "globals"))
    rates = []
    with torch.inference_mode():
        watched.network(planes, globals_)
        until = time.process_time() + seconds
        while time.process_time() < until:
            started = time.process_time()
            watched.network(planes, globals_)
            rates.append(BATCH / (time.process_time() - started))
    return rates


@functools.cache
def some_positions() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of a shard that a tiny network begins; this also compiles what there is."""
    tiny = Watched(RingRiftNetwork(NetworkConfig(1, 8)), "float32")
    settings = TrainingConfig().with_overrides({"selfplay.max_plies": 60})
    search = GumbelSearch(tiny.rules, tiny, settings.search)
    play_search_games(CONFIG, 128, 1, settings, search, Reporter())
    return tiny.kept


def play(
    model: RingRiftNetwork, precision: str, games: int, most_seconds: float, backend: str
) -> dict[str, float]:
    """Play one shard (or, cut short, a part of one) and take its time apart; microseconds."""
    settings = TrainingConfig()
    watched = Watched(model, precision, backend)
    search = GumbelSearch(watched.rules, watched, settings.search)
    watched.kept = some_positions()
    before = bare_rates(watched, 1.5)
    watched.encoding.seconds = 0.0  # the bare call's batch was encoded, too
    searches = Searches(settings.search.simulations)
    started = time.process_time()
    stop = Reporter(None, lambda: time.process_time() - started > most_seconds)
    with searches.watched(), suppress(Interrupted):
        play_search_games(CONFIG, games, 2, settings, search, stop)
    seconds = time.process_time() - started
    asked, batches = watched.positions, watched.batches
    simulations = searches.simulations
    bare = statistics.median(before + bare_rates(watched, 1.5))
    each = 1e6 / simulations
    engine = engine_seconds(watched) * 1e6
    encoding, whole = watched.encoding.seconds * each, watched.whole.seconds * each
    searching = searches.clock.seconds * each
    return {
        "evaluations": asked / seconds,
        "bare": bare,
        "simulations": simulations / seconds,
        "asked": asked / simulations,
        **({"kept": statistics.fmean(searches.shares)} if searches.shares else {}),
        "batch": asked / batches,
        "engine": engine,
        "tree": searching - whole - engine,
        "recording": seconds * each - searching,
        "encoding": encoding,
        "inference": whole - encoding,
    }
