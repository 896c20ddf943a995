"""Who analyses: many positions at once, by a network's search or by a player without a tree."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ringrift_pipeline.analysis.jobs import Findings, Job, Line
from ringrift_pipeline.analysis.limits import LINE_DEPTH, MAX_VISITS, SLOTS, TREE_BYTES
from ringrift_pipeline.game import Rules, kernels
from ringrift_pipeline.game.compile import announced
from ringrift_pipeline.search import (
    HeuristicPlayer,
    NetworkPlayer,
    Player,
    RandomPlayer,
    RolloutPlayer,
    SearchResult,
)
from ringrift_pipeline.search.noise import hash_row
from ringrift_pipeline.search.schedule import round_widths
from ringrift_pipeline.search.value_temperature import tempered

Found = list[tuple[Job, Findings]]
Treeless = RandomPlayer | HeuristicPlayer | RolloutPlayer


class Analyst(Protocol):
    """Takes positions of one config and player, as many as there is room for."""

    @property
    def room(self) -> int:
        """Jobs that may be started now."""
        ...

    def start(self, jobs: list[Job]) -> None:
        """Take on at most ``room`` jobs."""
        ...

    def drop(self, jobs: list[Job]) -> None:
        """Give up jobs that were started and have not ended."""
        ...

    def step(self) -> Found:
        """Work for a moment; the jobs that ended with it."""
        ...


def capacity(visits: int) -> int:
    """The simulations that a search of ``visits`` shares trees with: the next power of two."""
    return min(max(64, 1 << (visits - 1).bit_length()), MAX_VISITS)


def slots_for(rules: Rules, visits: int, max_considered: int) -> int:
    """How many searches of ``visits`` simulations fit into ``TREE_BYTES``, 1 to ``SLOTS``."""
    rounds = len(round_widths(max_considered, visits))
    edges = min(4 * len(rules.cells), rounds // 2 + 1)  # stored behind a leaf, about the most
    node = 8 * rules.state_size + 32 * edges + 16 * rules.players + 40
    return int(min(max(1, TREE_BYTES // (node * (visits + 1))), SLOTS))


class SearchAnalyst:
    """Gumbel search by a network player, positions coming and going.

    A position's findings depend on it and on its own simulations alone, to the rounding of the
    evaluator (see ``docs/analysis_engine.md``). With one legal move there is no search: the
    chances are the network's at the next real decision, or the result.
    """

    def __init__(self, player: NetworkPlayer, visits: int) -> None:
        self.player = player
        self.rules = player.rules
        slots = slots_for(self.rules, visits, player.search.settings.max_considered)
        self._pool = player.search.pool(slots, visits)
        self._idle = list(range(slots))
        self._job_in: dict[int, Job] = {}
        self._forced: list[tuple[Job, int]] = []
        self._moves = np.empty(self.rules.max_moves, dtype=np.int64)

    @property
    def room(self) -> int:
        """Idle slots of the pool; positions with one move take none but count until a step."""
        return max(0, len(self._idle) - len(self._forced))

    def start(self, jobs: list[Job]) -> None:
        """See :class:`Analyst`."""
        searched = []
        for job in jobs:
            if kernels.legal_moves(self.rules.constants, job.row, self._moves) == 1:
                self._forced.append((job, int(self._moves[0])))
            else:
                searched.append(job)
        if not searched:
            return
        which = [self._idle.pop() for _ in searched]
        self._job_in.update(zip(which, searched, strict=True))
        self._pool.start(
            np.array(which, dtype=np.int64),
            np.stack([job.row for job in searched]),
            np.zeros(len(searched), dtype=np.uint64),  # a search without noise draws nothing
            np.array([job.visits for job in searched], dtype=np.int64),
        )

    def drop(self, jobs: list[Job]) -> None:
        """See :class:`Analyst`."""
        given_up = set(map(id, jobs))
        which = [slot for slot, job in self._job_in.items() if id(job) in given_up]
        self._pool.drop(np.array(which, dtype=np.int64))
        for slot in which:
            del self._job_in[slot]
            self._idle.append(slot)
        self._forced = [pair for pair in self._forced if id(pair[0]) not in given_up]

    def step(self) -> Found:
        """Evaluate one batch; see :class:`Analyst`."""
        forced, self._forced = self._forced, []
        if forced:
            values = self.player.values_after_forced_moves(np.stack([j.row for j, _ in forced]))
            return [
                (job, _only_move(move, value))
                for (job, move), value in zip(forced, values, strict=True)
            ]
        if not self._job_in:
            return []
        with announced("Gumbel search", "search", "gumbel"):
            ended = self._pool.step()
            if not ended.size:
                return []
            result = self._pool.take(ended, depth=LINE_DEPTH)
        found = []
        for place, slot in enumerate(ended.tolist()):
            found.append((self._job_in.pop(slot), self._findings(result, place)))
            self._idle.append(slot)
        return found

    def _findings(self, result: SearchResult, place: int) -> Findings:
        count = int(result.counts[place])
        policy = result.policy[place, :count].astype(np.float64)
        visits = result.visits[place, :count].astype(np.int64)
        temperature = self.player.value_temperature
        read = result.readout
        assert read is not None
        lines = []
        for k in np.flatnonzero(read.actions[place] >= 0).tolist():
            value = read.values[place, k]
            if not read.exact[place, k]:
                value = tempered(value, temperature)
            decisions = read.lines[place, k, : read.lengths[place, k]].tolist()
            lines.append(Line(int(read.actions[place, k]), value, tuple(decisions), True))
        best = int(result.selected_index[place])
        lines.sort(
            key=lambda line: (
                line.action != best, -visits[line.action], -policy[line.action], line.action,
            )
        )  # fmt: skip
        return Findings(
            moves=result.moves[place, :count],
            policy=policy,
            prior=result.prior[place, :count].astype(np.float64),
            visits=visits,
            root_visits=1 + int(visits.sum()),
            value=tempered(result.search_value[place].astype(np.float64), temperature),
            raw=tempered(result.root_value[place].astype(np.float64), temperature),
            lines=lines,
        )


def _only_move(move: int, value: np.ndarray) -> Findings:
    one = np.ones(1, dtype=np.float64)
    return Findings(
        moves=np.array([move], dtype=np.int64),
        policy=one,
        prior=one,
        visits=np.zeros(1, dtype=np.int64),
        root_visits=0,
        value=value,
        raw=None,
        lines=[Line(0, value, (move,), True)],
    )


class OpinionAnalyst:
    """Players without a tree to read: random, heuristic, rollout.

    What chance decides is drawn from a hash of the position: the same position gets the same
    answer. They know no chances behind a move, and no line beyond it.
    """

    def __init__(self, player: Treeless) -> None:
        self.player = player
        self._batch = 1 if isinstance(player, RolloutPlayer) else SLOTS
        self._jobs: list[Job] = []

    @property
    def room(self) -> int:
        """See :class:`Analyst`."""
        return self._batch - len(self._jobs)

    def start(self, jobs: list[Job]) -> None:
        """See :class:`Analyst`."""
        self._jobs += jobs

    def drop(self, jobs: list[Job]) -> None:
        """See :class:`Analyst`."""
        self._jobs = [job for job in self._jobs if all(job is not other for other in jobs)]

    def step(self) -> Found:
        """See :class:`Analyst`."""
        jobs, self._jobs = self._jobs, []
        if not jobs:
            return []
        rows = np.stack([job.row for job in jobs])
        base = np.uint64(self.player.seed % (1 << 64))
        seeds = np.array([hash_row(row, base) for row in rows], dtype=np.uint64)
        opinion = self.player.opinions(rows, seeds)
        found = []
        for i, job in enumerate(jobs):
            count = int(opinion.counts[i])
            policy = opinion.policy[i, :count].astype(np.float64)
            visits = opinion.visits[i, :count].astype(np.int64)
            unknown = isinstance(self.player, RolloutPlayer) and count == 1
            findings = Findings(
                moves=opinion.moves[i, :count],
                policy=policy,
                prior=None,
                visits=visits,
                root_visits=int(visits.sum()),
                value=None if unknown else opinion.value[i].astype(np.float64),
                raw=None,
                lines=_ranked(opinion.moves[i], policy, visits, int(opinion.chosen[i])),
            )
            found.append((job, findings))
        return found


def _ranked(moves: np.ndarray, policy: np.ndarray, visits: np.ndarray, chosen: int) -> list[Line]:
    """The moves that the player might play, the one it would play first."""
    likely = np.flatnonzero((policy > 0) | (visits > 0)).tolist()
    likely.sort(key=lambda a: (a != chosen, -visits[a], -policy[a], a))
    return [Line(action, None, (int(moves[action]),), False) for action in likely]


def analyst_for(player: Player, visits: int) -> Analyst:
    """Who analyses for ``player`` positions of at most ``visits`` simulations.

    Raises:
        TypeError: a kind of player that is not known here.
    """
    if isinstance(player, NetworkPlayer):
        return SearchAnalyst(player, visits)
    if isinstance(player, Treeless):
        return OpinionAnalyst(player)
    raise TypeError(f"{type(player).__name__} has no analyst")
