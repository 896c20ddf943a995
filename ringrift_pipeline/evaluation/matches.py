"""Matches in rotated sets: many games side by side, the same bytes whatever plays them.

A *line-up* names the player of every seat. A *rotated set* is one random opening played once for
each rotation of the line-up, so that every player holds every seat and meets the same position;
it is the unit of evidence. The opening, and the seed of every decision, depend on the match seed
and the number of the set alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ringrift_pipeline.evaluation import tables
from ringrift_pipeline.game import State, get_rules, kernels, layout
from ringrift_pipeline.selfplay import stepping
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.training.tables import polars_schema

__all__ = ["GAMES_SCHEMA", "OPENING_DECISIONS", "MatchError", "play_sets", "set_scores"]

OPENING_DECISIONS = 6
"""Random decisions (plies with a choice) that open a set."""

GAMES_SCHEMA: dict[str, Any] = polars_schema(tables.GAMES)
"""Columns of a table of games, as polars types."""


class MatchError(ValueError):
    """A match that cannot be played as asked; the message says why."""


class BatchPlayer(Protocol):
    """What a match needs of a player."""

    def choose_batch(
        self, states: NDArray[np.int64], seeds: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Packed moves (G,) for states (G, S), each with a choice, with a seed each."""
        ...


def play_sets(
    config: str,
    players: Mapping[str, BatchPlayer],
    line_up: Sequence[str],
    sets: Sequence[int],
    seed: int,
    *,
    match: str = "",
    opening_decisions: int = OPENING_DECISIONS,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> pl.DataFrame:
    """Play rotated sets, all games side by side.

    Args:
        config: board and player count.
        players: name -> player.
        line_up: name of the player of each seat in rotation 0; in rotation r, seat s is held by
            ``line_up[s - r]``.
        sets: numbers of the sets to play; a set's games depend on its number and the seed (and,
            for a network, on the other games of the batch through rounding).
        seed: of openings and decisions.
        match: name written to every row.
        opening_decisions: random decisions at the start, shared by the games of a set.
        progress: called with games finished and planned.
        should_stop: asked at every decision; raises Interrupted.

    Returns:
        One row a game, by set and rotation, columns `GAMES_SCHEMA`.

    Raises:
        MatchError: for a line-up that does not fit, an unknown name, or a move that is not legal.
        Interrupted: if asked to stop; nothing is kept.
    """
    rules = get_rules(config)
    seats = rules.players
    if len(line_up) != seats:
        raise MatchError(f"{config} has {seats} seats, the line-up {list(line_up)} {len(line_up)}")
    unknown = [name for name in line_up if name not in players]
    if unknown:
        raise MatchError(f"no player {unknown[0]!r} among {', '.join(players)}")
    if opening_decisions < 0:
        raise MatchError(f"opening_decisions must be >= 0, got {opening_decisions}")
    numbers = np.repeat(np.asarray(sets, dtype=np.int64), seats)
    rotations = np.tile(np.arange(seats), len(sets))
    games = len(numbers)
    reporter = Reporter(progress, should_stop)

    states, seeds, openings = _open(rules, sets, seed, opening_decisions)
    names = list(dict.fromkeys(line_up))
    order = np.array([names.index(name) for name in line_up])
    # player (index into names) of each game's seats, (games, seats)
    held = order[(np.arange(seats)[None, :] - rotations[:, None]) % seats]
    decisions = np.zeros(games, np.int64)
    live = np.ones(games, np.bool_)
    counts = np.zeros(games, np.int64)
    buffer = np.zeros(rules.max_moves, np.int64)
    while True:
        rows = np.flatnonzero(live)
        stepping.advance_games(rules.constants, states, rows, 0, buffer, counts)
        live &= counts > 0
        finished = games - int(live.sum())
        reporter.report(finished, games, f"{finished}/{games} games")
        if not live.any():
            break
        mover = held[np.arange(games), np.maximum(states[:, layout.PLAYER], 0)]
        for index, name in enumerate(names):
            reporter.check("evaluation: stopped in the middle of a match; run again to repeat it")
            rows = np.flatnonzero(live & (mover == index))
            if not rows.size:
                continue
            fresh = np.empty(rows.size, np.uint64)
            stepping.decision_seeds(seeds[rows], decisions[rows], fresh)
            played = np.ascontiguousarray(states[rows])
            chosen = np.asarray(players[name].choose_batch(played, fresh), dtype=np.int64)
            _check_moves(rules, played, chosen, name)
            stepping.apply_moves(rules.constants, states, rows, chosen)
            decisions[rows] += 1
    shares = np.zeros((games, seats))
    for game in range(games):
        kernels.ranking_points(rules.constants, states[game], shares[game])
    return pl.DataFrame(
        {
            "match": [match] * games,
            "set": numbers,
            "rotation": rotations,
            "players": [[names[player] for player in row] for row in held],
            "ranks": [_ranks(config, states[game], seats) for game in range(games)],
            "shares": shares.tolist(),
            "winner": states[:, layout.WINNER] + 1,
            "plies": states[:, layout.PLY],
            "decisions": decisions + [len(moves) for moves in openings],
            "reason": states[:, layout.REASON],
            "opening": openings,
        },
        schema=GAMES_SCHEMA,
    )


def _open(
    rules: Any, sets: Sequence[int], seed: int, opening_decisions: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64], list[list[int]]]:
    """Positions after the openings (G, S), a seed for each game (G,), the openings' moves."""
    seats = rules.players
    states = np.zeros((len(sets) * seats, rules.state_size), np.int64)
    seeds = np.zeros(len(states), np.uint64)
    openings: list[list[int]] = []
    buffer = np.zeros(rules.max_moves, np.int64)
    for place, number in enumerate(sets):
        sequence = np.random.SeedSequence(seed, spawn_key=(int(number),))
        words = sequence.generate_state(seats + 1, np.uint64)
        row = states[place * seats]
        kernels.initial_state(rules.constants, row, False)
        stream = words[:1].copy()
        moves: list[int] = []
        for _ in range(opening_decisions):
            count = stepping.advance(rules.constants, row, 0, buffer)
            if count <= 0:
                break
            moves.append(int(buffer[kernels.random_below(stream, count)]))
            kernels.apply_move(rules.constants, row, moves[-1])
        first = place * seats
        states[first : first + seats] = row
        seeds[first : first + seats] = words[1:]
        openings += [moves] * seats
    return states, seeds, openings


def _check_moves(
    rules: Any, states: NDArray[np.int64], chosen: NDArray[np.int64], name: str
) -> None:
    """Kernels do not check moves, so a player's mistake must not get to them."""
    if chosen.shape != (len(states),):
        raise MatchError(f"{name} chose moves of shape {chosen.shape} for {len(states)} states")
    buffer = np.zeros(rules.max_moves, np.int64)
    for state, move in zip(states, chosen, strict=True):
        count = kernels.legal_moves(rules.constants, state, buffer)
        if not (buffer[:count] == move).any():
            raise MatchError(f"{name} chose the move {int(move)}, which is not legal")


def _ranks(config: str, state: NDArray[np.int64], seats: int) -> list[int]:
    ranks = [0] * seats
    for rank, group in enumerate(State.from_array(config, state).ranking()):
        for seat in group:
            ranks[seat - 1] = rank
    return ranks


def set_scores(games: pl.DataFrame, player: str) -> NDArray[np.float64]:
    """Mean share of the win of a player's seats in each rotated set, by match and set.

    Raises:
        MatchError: if a set is incomplete, or the player was not in all of them.
    """
    seats = (
        games.with_row_index("game")
        .with_columns(seats=pl.col("players").list.len())
        .explode("players", "shares")
        .filter(pl.col("players") == player)
    )
    each = seats.group_by("game").agg(
        pl.col("match", "set", "seats").first(), pl.col("shares").mean()
    )
    if each.height != games.height:
        raise MatchError(f"{player} did not play in every game")
    sets = (
        each.group_by("match", "set")
        .agg(pl.col("shares").mean(), pl.col("seats").first(), pl.len().alias("games"))
        .sort("match", "set")
    )
    if (sets["games"] != sets["seats"]).any():
        raise MatchError("a rotated set is incomplete: its games do not count one by one")
    return sets["shares"].to_numpy()
