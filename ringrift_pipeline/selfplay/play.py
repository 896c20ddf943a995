"""The game loop: many games of one shard side by side, by heuristic or by network search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.game import get_rules, kernels, layout
from ringrift_pipeline.network.errors import NonFiniteOutputError
from ringrift_pipeline.selfplay import stepping
from ringrift_pipeline.selfplay.records import Decisions, Games, Recorder, owners_of
from ringrift_pipeline.selfplay.shards import compact_size
from ringrift_pipeline.selfplay.stopping import Reporter

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.search import GumbelSearch, SearchPool

# A kernel call plays at most this many decisions, so that a stop is heard within a second.
DECISIONS_PER_CALL = 32
# What one decision costs beside its search shrinks when many are made at once: as long as batches
# are full without them, ended searches wait until they are this share of the games.
ENDED_SHARE = 4
FULL_BATCH = 0.8


@dataclass(frozen=True)
class Opponent:
    """An earlier model in the first ``games`` games of a shard.

    The champion sits on seat ``(first_seat + game) % players``, the opponent on all others.
    """

    search: GumbelSearch
    games: int
    first_seat: int

    def moves_in(
        self, games: NDArray[np.int64], seats: NDArray[np.int64], players: int
    ) -> NDArray[np.bool_]:
        """Whether the opponent is to move, (G,), where seat ``seats`` (G,) moves in ``games``."""
        ours = (self.first_seat + games) % players
        return (games < self.games) & (seats != ours)


class _Shard:
    """Seeds, recorder and outcomes of the games of one shard."""

    def __init__(self, config: str, games: int, seed: int, reporter: Reporter) -> None:
        self.rules = get_rules(config)
        self.games = games
        # One independent stream a game; the number of games before it does not matter.
        self.seeds = np.array(
            [
                child.generate_state(1, np.uint64)[0]
                for child in np.random.SeedSequence(seed).spawn(games)
            ],
            np.uint64,
        )
        self.compact = compact_size(self.rules)
        self.recorder = Recorder(self.compact, self.rules.players)
        self.outcome = np.full((games, self.rules.players), np.nan, np.float32)
        self.plies = np.zeros(games, np.int32)
        self.reason = np.zeros(games, np.int8)
        self.owners = np.full((games, self.rules.size**2), -1, np.int8)
        self.eliminated = np.zeros((games, self.rules.players), np.int16)
        self.finished = 0
        self._reporter = reporter

    def fresh_state(self, state: NDArray[np.int64]) -> None:
        """Put the initial position into the row ``state`` (S,)."""
        kernels.initial_state(self.rules.constants, state, False)

    def finish(self, game: int, state: NDArray[np.int64], cut: bool) -> None:
        """Note the end of a game: its shares of the win, or equal ones when it was cut short."""
        shares = np.full(self.rules.players, 1.0 / self.rules.players)
        if not cut:
            kernels.ranking_points(self.rules.constants, state, shares)
        self.outcome[game] = shares
        self.plies[game] = state[layout.PLY]
        self.reason[game] = -1 if cut else state[layout.REASON]
        self.owners[game] = owners_of(self.rules, state)
        players = self.rules.players
        self.eliminated[game] = state[layout.ELIMINATED : layout.ELIMINATED + players]
        self.finished += 1

    def report(self) -> None:
        """Tell progress with rates, and hear whether to stop."""
        seconds = self._reporter.seconds
        self._reporter.positions = self.recorder.rows
        self._reporter.report(
            self.finished,
            self.games,
            f"{self.finished}/{self.games} games, {self.finished / seconds:.2f} games/s, "
            f"{self.recorder.rows / seconds:.0f} positions/s",
        )
        self._reporter.check(
            "selfplay: stopped in the middle of a shard, whose games are dropped; "
            "run again to go on with the shards that are left"
        )

    def result(self) -> tuple[Decisions, Games]:
        games = Games(self.outcome, self.plies, self.reason, self.owners, self.eliminated)
        return self.recorder.finish(), games


def play_heuristic_games(
    config: str, games: int, seed: int, settings: TrainingConfig, reporter: Reporter
) -> tuple[Decisions, Games]:
    """Play games of the one-ply heuristic with softmax exploration (generation 0).

    The recorded policy is the softmax of the heuristic's scores; there is neither a prior nor a
    value, so ``root_value`` and ``search_value`` are 1 / players and ``surprise`` is 0.

    Raises
    ------
    Interrupted
        if the reporter's ``should_stop`` says so; nothing is kept.
    """
    from ringrift_pipeline.selfplay.heuristic_games import HeuristicBuffers

    shard = _Shard(config, games, seed, reporter)
    rules = shard.rules
    buffers = HeuristicBuffers(rules, DECISIONS_PER_CALL)
    state = np.zeros(rules.state_size, np.int64)
    uniform = np.full((DECISIONS_PER_CALL, rules.players), 1.0 / rules.players, np.float32)
    for game in range(games):
        shard.fresh_state(state)
        decision = 0
        status = 1
        while status > 0:
            rows, status = buffers.play(state, shard.seeds[game], decision, settings)
            width = int(buffers.offsets[rows])
            shard.recorder.add(
                game=np.full(rows, game),
                decision=decision + np.arange(rows),
                state=buffers.states[:rows, : shard.compact].copy(),
                counts=np.diff(buffers.offsets[: rows + 1]),
                moves=buffers.moves[:width].copy(),
                policy=buffers.policy[:width].copy(),
                selected=buffers.selected[:rows].copy(),
                full_search=np.ones(rows, np.bool_),
                root_value=uniform[:rows],
                search_value=uniform[:rows],
                surprise=np.zeros(rows, np.float32),
            )
            decision += rows
            shard.report()
        shard.finish(game, state, status == stepping.CUT)
    shard.report()
    return shard.result()


def play_search_games(
    config: str,
    games: int,
    seed: int,
    settings: TrainingConfig,
    search: GumbelSearch,
    reporter: Reporter,
    opponent: Opponent | None = None,
) -> tuple[Decisions, Games]:
    """Play games by network search, ``selfplay.parallel_games`` of them side by side.

    Playout-cap randomisation (KataGo, Wu 2019): each decision is searched in full with
    probability ``full_search_fraction``, else cheaply; only the full ones train the policy. The
    first ``temperature_plies`` decisions of a game are drawn from the search policy, later ones
    take its maximum. Every game goes on at its own pace, and a finished game's place is taken by
    the next one, so batches stay full.

    Where an ``opponent`` is to move, its own search chooses, always a cheap one: what it plays
    never trains the policy. Its rows say ``opponent``, and hold its own policy and values.

    Raises
    ------
    Interrupted
        if the reporter's ``should_stop`` says so; nothing is kept.
    NonFiniteOutputError
        if a network gives a policy or value that is not finite; names the game and the position.
    """
    shard = _Shard(config, games, seed, reporter)
    table = _Table(shard, settings, min(settings.selfplay.parallel_games, games))
    most = max(settings.search.simulations, settings.search.cheap_simulations)
    searches = [search] if opponent is None else [search, opponent.search]
    pools = [one.pool(table.size, most) for one in searches]
    arrived = np.arange(table.size)
    while True:
        arrived = table.advance(arrived)
        theirs = table.opponent_moves(arrived, opponent)
        for pool, mine in zip(pools, (~theirs, theirs), strict=False):
            table.begin(pool, arrived[mine], opponent=pool is not pools[0])
        shard.report()
        if not table.live.any():
            return shard.result()
        try:
            ended = [_ended(pool, table.size // ENDED_SHARE) for pool in pools]
        except NonFiniteOutputError as error:
            raise NonFiniteOutputError(f"{table.named(error)}: {error}", error.rows) from None
        arrived = np.concatenate(
            [
                table.finish(pool, slots, opponent=pool is not pools[0])
                for pool, slots in zip(pools, ended, strict=True)
            ]
        )


def _ended(pool: SearchPool, enough: int) -> NDArray[np.int64]:
    """Search on until ``enough`` searches have ended, or a batch was not full any more."""
    parts = [pool.step()]
    while pool.last_batch > FULL_BATCH * pool.max_batch and sum(map(len, parts)) < enough:
        parts.append(pool.step())
    return np.concatenate(parts)


class _Table:
    """The games in play, one a slot, between two searches."""

    def __init__(self, shard: _Shard, settings: TrainingConfig, size: int) -> None:
        self.shard = shard
        self.settings = settings
        self.size = size
        self.states = np.zeros((size, shard.rules.state_size), np.int64)
        for state in self.states:
            shard.fresh_state(state)
        self.live = np.ones(size, np.bool_)
        self._game = np.arange(size)
        self._decisions = np.zeros(size, np.int64)
        self._seeds = np.zeros(size, np.uint64)
        self._full = np.zeros(size, np.bool_)
        self._started = size
        self._counts = np.zeros(size, np.int64)
        self._moves = np.zeros(shard.rules.max_moves, np.int64)

    def advance(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Play forced plies in ``slots`` (N,); those that have a decision to make now.

        Games that end make place for the next ones.
        """
        moving = slots
        while stepping.advance_games(
            self.shard.rules.constants,
            self.states,
            moving,
            self.settings.selfplay.max_plies,
            self._moves,
            self._counts,
        ):
            ended = np.sort(moving[self._counts[moving] <= 0])
            moving = ended[: max(0, self.shard.games - self._started)]
            for slot in map(int, ended):
                cut = bool(self._counts[slot] == stepping.CUT)
                self.shard.finish(int(self._game[slot]), self.states[slot], cut)
                self.live[slot] = self._started < self.shard.games
                if self.live[slot]:
                    self.shard.fresh_state(self.states[slot])
                    self._game[slot], self._decisions[slot] = self._started, 0
                    self._started += 1
        return slots[self.live[slots]]

    def opponent_moves(
        self, slots: NDArray[np.int64], opponent: Opponent | None
    ) -> NDArray[np.bool_]:
        """Whether the opponent is to move in each of ``slots`` (N,)."""
        if opponent is None:
            return np.zeros(len(slots), np.bool_)
        seats = self.states[slots, layout.PLAYER]
        return opponent.moves_in(self._game[slots], seats, self.shard.rules.players)

    def named(self, error: NonFiniteOutputError) -> str:
        """The games, and their decisions, whose searches met what is not finite."""
        found = sorted({(int(self._game[i]), int(self._decisions[i])) for i in error.slots})
        return " and ".join(f"game {game} at decision {number}" for game, number in found[:5])

    def begin(self, pool: SearchPool, slots: NDArray[np.int64], opponent: bool) -> None:
        """Begin the searches of the next decisions in ``slots`` (N,)."""
        if not len(slots):
            return
        seeds = np.empty(len(slots), np.uint64)
        full = np.empty(len(slots), np.bool_)
        games, decisions = self._game[slots], self._decisions[slots]
        stepping.decision_seeds(self.shard.seeds[games], decisions, seeds)
        stepping.full_searches(seeds, self.settings.selfplay.full_search_fraction, full)
        if opponent:
            full[:] = False
        self._seeds[slots], self._full[slots] = seeds, full
        search = self.settings.search
        simulations = np.where(full, search.simulations, search.cheap_simulations)
        pool.start(slots, self.states[slots], seeds, simulations)

    def finish(
        self, pool: SearchPool, slots: NDArray[np.int64], opponent: bool
    ) -> NDArray[np.int64]:
        """Record and play the decisions whose searches ended, in ``slots`` (N,); returns them."""
        if not len(slots):
            return slots
        shard, settings = self.shard, self.settings
        result = pool.take(slots)
        counts = result.counts.astype(np.int64)
        decisions = self._decisions[slots]
        index = np.empty(len(slots), np.int64)
        stepping.choose_moves(
            result.policy,
            counts,
            self._seeds[slots],
            decisions,
            settings.effective_temperature,
            settings.selfplay.temperature_plies,
            index,
        )
        chosen = result.moves[np.arange(len(slots)), index]
        legal = np.arange(result.moves.shape[1]) < counts[:, None]
        shard.recorder.add(
            game=self._game[slots],
            decision=decisions,
            state=self.states[slots, : shard.compact],
            counts=counts,
            moves=result.moves[legal],
            policy=result.policy[legal],
            selected=chosen,
            full_search=self._full[slots],
            root_value=result.root_value,
            search_value=result.search_value,
            surprise=result.surprise,
            opponent=opponent,
        )
        stepping.apply_moves(shard.rules.constants, self.states, slots, chosen)
        self._decisions[slots] += 1
        return slots
