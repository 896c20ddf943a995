"""The game loop: many games of one shard side by side, by heuristic or by network search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.game import get_rules, kernels, layout
from ringrift_pipeline.selfplay import stepping
from ringrift_pipeline.selfplay.ragged import unpad
from ringrift_pipeline.selfplay.records import Decisions, Games, Recorder
from ringrift_pipeline.selfplay.shards import compact_size
from ringrift_pipeline.selfplay.stopping import Reporter

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.game import Rules
    from ringrift_pipeline.search import GumbelSearch

# A kernel call plays at most this many decisions, so that a stop is heard within a second.
DECISIONS_PER_CALL = 32


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
        return self.recorder.finish(), Games(self.outcome, self.plies, self.reason)


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
                state=buffers.states[:rows, : shard.compact],
                counts=np.diff(buffers.offsets[: rows + 1]),
                moves=buffers.moves[:width],
                policy=buffers.policy[:width],
                selected=buffers.selected[:rows],
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
    take its maximum. A finished game's place is taken by the next one, so batches stay full.

    Where an ``opponent`` is to move, its own search chooses, always a cheap one: what it plays
    never trains the policy. Its rows say ``opponent``, and hold its own policy and values.

    Raises
    ------
    Interrupted
        if the reporter's ``should_stop`` says so; nothing is kept.
    """
    shard = _Shard(config, games, seed, reporter)
    rules, selfplay = shard.rules, settings.selfplay
    slots = min(selfplay.parallel_games, games)
    states = np.zeros((slots, rules.state_size), np.int64)
    for slot in range(slots):
        shard.fresh_state(states[slot])
    game_of = np.arange(slots)
    decisions = np.zeros(slots, np.int64)
    started = slots
    live = np.ones(slots, np.bool_)
    moves = np.zeros(rules.max_moves, np.int64)
    counts = np.zeros(slots, np.int64)
    while True:
        stepping.advance_games(rules.constants, states, live, selfplay.max_plies, moves, counts)
        ended = np.flatnonzero(live & (counts <= 0))
        if len(ended):
            for slot in map(int, ended):
                shard.finish(int(game_of[slot]), states[slot], counts[slot] == stepping.CUT)
                live[slot] = started < games
                if live[slot]:
                    shard.fresh_state(states[slot])
                    game_of[slot], decisions[slot] = started, 0
                    started += 1
            continue
        shard.report()
        active = np.flatnonzero(live)
        if not len(active):
            return shard.result()
        chosen = np.empty(len(active), np.int64)
        for rows, player, theirs in _movers(rules, search, opponent, states, game_of, active):
            those = active[rows]
            chosen[rows] = _search_once(
                shard,
                settings,
                player,
                states[those],
                game_of[those],
                decisions[those],
                theirs,
            )
        played = states[active]
        stepping.apply_moves(rules.constants, played, chosen)
        states[active] = played
        decisions[active] += 1


def _movers(
    rules: Rules,
    search: GumbelSearch,
    opponent: Opponent | None,
    states: NDArray[np.int64],
    game_of: NDArray[np.int64],
    active: NDArray[np.int64],
) -> list[tuple[NDArray[np.int64], GumbelSearch, bool]]:
    """Who searches which of the ``active`` slots: (places in it, search, is the opponent's)."""
    if opponent is None:
        return [(np.arange(len(active)), search, False)]
    seats = states[active, layout.PLAYER]
    theirs = opponent.moves_in(game_of[active], seats, rules.players)
    parts = [
        (np.flatnonzero(~theirs), search, False),
        (np.flatnonzero(theirs), opponent.search, True),
    ]
    return [part for part in parts if len(part[0])]


def _search_once(
    shard: _Shard,
    settings: TrainingConfig,
    search: GumbelSearch,
    states: NDArray[np.int64],
    games: NDArray[np.int64],
    decisions: NDArray[np.int64],
    opponent: bool,
) -> NDArray[np.int64]:
    """Search one decision of each game, record it, and return the moves to play (G,)."""
    size = len(games)
    seeds = np.empty(size, np.uint64)
    stepping.decision_seeds(shard.seeds[games], decisions, seeds)
    full = np.empty(size, np.bool_)
    stepping.full_searches(seeds, settings.selfplay.full_search_fraction, full)
    if opponent:
        full[:] = False
    simulations = np.where(
        full, settings.search.simulations, settings.search.cheap_simulations
    ).astype(np.int32)
    result: Any = search.search(states, seeds, simulations)
    counts = result.counts.astype(np.int64)
    index = np.empty(size, np.int64)
    stepping.choose_moves(
        result.policy,
        counts,
        seeds,
        decisions,
        settings.effective_temperature,
        settings.selfplay.temperature_plies,
        index,
    )
    chosen = result.moves[np.arange(size), index]
    shard.recorder.add(
        game=games,
        decision=decisions,
        state=states[:, : shard.compact],
        counts=counts,
        moves=unpad(result.moves, counts),
        policy=unpad(result.policy, counts),
        selected=chosen,
        full_search=full,
        root_value=result.root_value,
        search_value=result.search_value,
        surprise=result.surprise,
        opponent=opponent,
    )
    return chosen
