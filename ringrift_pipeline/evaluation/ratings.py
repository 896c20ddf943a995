"""Ratings: one maximum-likelihood fit over all games, with covariance.

Two seats are Bradley-Terry (1952), more are Plackett-Luce (1975): the next best seat is chosen
among those left with probability proportional to 10 ** (rating / 400). Tied seats count every
order that the ranking allows, each with the same share of the game; for two seats that is the
usual half win.

*Anchor.* Ratings are relative, so one player is pinned: ``heuristic`` at 1200, where the reference
project has its one-ply heuristic, which makes our numbers comparable with its ladder. Random play
then has whatever rating the games give it.

*Prior.* Each pair of players that met adds one drawn game (``prior_draws``), so that a player that
won everything has a finite rating with an honestly wide interval.

*Covariance.* The inverse of the observed information, inflated by the dispersion of the rotated
sets where that exceeds 1: the games of a set share their opening, and the set is the unit of
evidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse
from scipy.special import ndtri

from ringrift_pipeline.store.kinds import RATING, RATING_OVER_RANDOM

__all__ = [
    "ANCHOR",
    "ANCHOR_RATING",
    "ANCHOR_RATINGS",
    "RANDOM",
    "RatingError",
    "Ratings",
    "expected_share",
    "fit_ratings",
    "shown_rating",
]

ANCHOR = "heuristic"
ANCHOR_RATING = 1200.0
RANDOM = "random"  # the anchor where the heuristic does not play
ANCHOR_RATINGS = {ANCHOR: ANCHOR_RATING, RANDOM: 0.0}
"""The rating that is given to whoever anchors a fit."""
ELO = 400.0 / math.log(10.0)  # Elo points per natural unit of log strength


class RatingError(ValueError):
    """Games that no ratings can be fitted to; the message says which and why."""


def shown_rating(ratings: Mapping[str, Mapping[str, Any]], player: str) -> dict[str, float]:
    """A player's rating as metadata, with ``_low`` and ``_high``: ``eval/elo`` where the heuristic,
    with 1200, is the anchor, ``eval/elo_over_random`` where it is random play, with 0. Nothing where
    it is anybody else: such numbers are on no scale that other ratings have.

    ``ratings``: rows of `Ratings.to_frame` by player.
    """
    anchor = next((name for name, row in ratings.items() if row["anchor"]), None)
    name = {ANCHOR: RATING, RANDOM: RATING_OVER_RANDOM}.get(anchor or "")
    if name is None:
        return {}
    row = ratings[player]
    return {name: row["rating"], f"{name}_low": row["low"], f"{name}_high": row["high"]}


def expected_share(difference: float, players: int = 2) -> float:
    """Share of the wins of one seat that is `difference` Elo above each of its opponents."""
    strength = 10.0 ** (difference / 400.0)
    return strength / (strength + players - 1)


@dataclass(frozen=True)
class Ratings:
    """Fitted ratings; arrays are aligned with `players`.

    Attributes:
        players: names, sorted from strongest to weakest.
        rating: float64 (K,), Elo.
        covariance: float64 (K, K), Elo squared; row and column of the anchor are 0.
        games: int64 (K,), games with the player in at least one seat.
        share: float64 (K,), share of the wins of the seats that the player held.
        anchor: name of the player whose rating was given.
        confidence: of the intervals.
        dispersion: factor, at least 1, that the covariance was inflated by.
        log_likelihood: of the games (prior left out), natural log.
    """

    players: tuple[str, ...]
    rating: np.ndarray
    covariance: np.ndarray
    games: np.ndarray
    share: np.ndarray
    anchor: str
    confidence: float
    dispersion: float
    log_likelihood: float

    def _index(self, player: str) -> int:
        try:
            return self.players.index(player)
        except ValueError:
            raise RatingError(
                f"no player {player!r}; rated are {', '.join(self.players)}"
            ) from None

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of each rating, Elo, (K,)."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 0.0))

    def __getitem__(self, player: str) -> float:
        return float(self.rating[self._index(player)])

    def interval(self, player: str) -> tuple[float, float]:
        """Interval of a rating, Elo."""
        i = self._index(player)
        half = _z(self.confidence) * float(self.standard_error[i])
        return float(self.rating[i]) - half, float(self.rating[i]) + half

    def difference(self, player: str, other: str) -> tuple[float, float, float]:
        """(difference, low, high) of two ratings, Elo, with their covariance taken in."""
        i, j = self._index(player), self._index(other)
        c = self.covariance
        error = math.sqrt(max(0.0, c[i, i] + c[j, j] - 2.0 * c[i, j]))
        gap = float(self.rating[i] - self.rating[j])
        return gap, gap - _z(self.confidence) * error, gap + _z(self.confidence) * error

    def expected_share(self, player: str, other: str, players: int = 2) -> float:
        """Expected share of the wins of one seat of `player` against `other` in all others."""
        return expected_share(self[player] - self[other], players)

    def to_frame(self) -> pl.DataFrame:
        """One row a player: player, rating, standard_error, low, high, games, share, anchor."""
        bounds = [self.interval(player) for player in self.players]
        return pl.DataFrame(
            {
                "player": list(self.players),
                "rating": self.rating,
                "standard_error": self.standard_error,
                "low": [low for low, _ in bounds],
                "high": [high for _, high in bounds],
                "games": self.games,
                "share": self.share,
                "anchor": [player == self.anchor for player in self.players],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "players": self.to_frame().to_dicts(),
            "covariance": self.covariance.tolist(),
            "anchor": self.anchor,
            "confidence": self.confidence,
            "dispersion": self.dispersion,
            "log_likelihood": self.log_likelihood,
        }


def _z(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2.0))


@dataclass(frozen=True)
class _Choices:
    """Choices that make up the rankings: who was next best among whom.

    seats: int64 (M, 4), player of each seat still in, -1 where none.
    chosen: int64 (M,), the player chosen.
    weight: float64 (M,), share of a game that the choice stands for.
    cluster: int64 (M,), set it came from; -1 for the prior.
    """

    seats: np.ndarray
    chosen: np.ndarray
    weight: np.ndarray
    cluster: np.ndarray


def _orders(ranks: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every order of the seats that a ranking with ties allows."""
    groups = [
        [seat for seat, rank in enumerate(ranks) if rank == level] for level in sorted(set(ranks))
    ]
    parts = [list(itertools.permutations(group)) for group in groups]
    return [tuple(itertools.chain.from_iterable(part)) for part in itertools.product(*parts)]


def _expand(
    seats: np.ndarray, ranks: np.ndarray, clusters: np.ndarray, depth: int | None
) -> _Choices:
    """Choices of all games; equal line-ups with equal rankings are expanded once."""
    patterns, which, counts = np.unique(
        np.hstack([seats, ranks]), axis=0, return_inverse=True, return_counts=True
    )
    games = np.split(np.argsort(which.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    pieces = []
    width = seats.shape[1]
    for pattern, rows in zip(patterns, games, strict=True):
        count = int((pattern[:width] >= 0).sum())
        line_up = [int(player) for player in pattern[:count]]
        orders = _orders(tuple(int(rank) for rank in pattern[width : width + count]))
        stages: dict[tuple[tuple[int, ...], int], float] = {}
        for order in orders:
            for stage in range(min(count - 1, depth or count)):
                left = [line_up[seat] for seat in order[stage:]]
                key = (tuple(sorted(left)), left[0])
                stages[key] = stages.get(key, 0.0) + 1.0 / len(orders)
        for (left_seats, best), weight in stages.items():
            padded = list(left_seats) + [-1] * (4 - len(left_seats))
            pieces.append(
                (
                    np.tile(np.array(padded, dtype=np.int64), (rows.size, 1)),
                    np.full(rows.size, best, dtype=np.int64),
                    np.full(rows.size, weight),
                    clusters[rows],
                )
            )
    return _Choices(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def _merge(choices: _Choices) -> _Choices:
    """Equal choices of one set made one, their weights added."""
    keys = np.column_stack([choices.seats, choices.chosen, choices.cluster])
    unique, which = np.unique(keys, axis=0, return_inverse=True)
    weight = np.bincount(which.ravel(), weights=choices.weight, minlength=len(unique))
    return _Choices(unique[:, :4], unique[:, 4], weight, unique[:, 5])


def _likelihood(theta: np.ndarray, choices: _Choices) -> tuple[float, sparse.csr_array, np.ndarray]:
    """Log-likelihood, score of each choice (M, K), and information (K, K) at log strengths.

    A choice has no more than four players, so that its score is mostly zeros.
    """
    shape = (choices.weight.size, theta.size)
    present = choices.seats >= 0
    strength = np.where(present, theta[np.maximum(choices.seats, 0)], -np.inf)
    top = strength.max(axis=1, keepdims=True)
    share = np.exp(strength - top)
    total = share.sum(axis=1, keepdims=True)
    share /= total
    log_p = theta[choices.chosen] - (top + np.log(total))[:, 0]
    # probability that the next best is each player, over all seats it holds
    at = (np.nonzero(present)[0], choices.seats[present])
    weight = choices.weight
    probability = sparse.csr_array((share[present], at), shape)
    chosen = sparse.csr_array((weight, (np.arange(weight.size), choices.chosen)), shape)
    weighted = sparse.csr_array(((weight[:, None] * share)[present], at), shape)
    information = np.diag(weight @ probability) - (probability.T @ weighted).toarray()
    return float((weight * log_p).sum()), chosen - weighted, information


def _fit(choices: _Choices, size: int, anchor: int) -> tuple[np.ndarray, np.ndarray]:
    """Log strengths (anchor at 0) by damped Newton, and the information there."""
    free = np.arange(size) != anchor
    theta = np.zeros(size)
    value, score, information = _likelihood(theta, choices)
    for _ in range(200):
        gradient = score.sum(axis=0)[free]
        if np.abs(gradient).max(initial=0.0) < 1e-10 * max(1.0, choices.weight.sum()):
            return theta, information
        step = np.linalg.solve(information[np.ix_(free, free)], gradient)
        step *= min(1.0, 3.0 / np.abs(step).max())
        scale = 1.0
        while True:
            trial = theta.copy()
            trial[free] += scale * step
            new_value, new_score, new_information = _likelihood(trial, choices)
            if new_value >= value - 1e-12 * abs(value) or scale < 1e-8:
                break
            scale /= 2.0
        theta, value, score, information = trial, new_value, new_score, new_information
        if scale * np.abs(step).max() < 1e-12:
            return theta, information
    raise RatingError("the rating fit did not converge; are there non-finite counts in the games?")


def _check(results: pl.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, seats (G, 4) and ranks (G, 4), padded with -1."""
    for column in ("players", "ranks"):
        if column not in results.columns:
            raise RatingError(
                f"results need a column {column!r} (a list over seats), have {results.columns}"
            )
    if not results.height:
        raise RatingError("there are no games to rate")
    lengths = results["players"].list.len()
    wrong = ~lengths.is_between(2, 4) | (lengths != results["ranks"].list.len())
    wrong = (wrong | results["ranks"].list.eval(pl.element().is_null()).list.any()).fill_null(True)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise RatingError(
            f"game {row} has players {results['players'][row]!r} and ranks "
            f"{results['ranks'][row]!r}: both must be lists of 2 to 4 seats"
        )
    flat = results["players"].explode()
    if flat.null_count():
        raise RatingError("a seat has no player's name")
    places = results["ranks"].explode().cast(pl.Float64, strict=False)
    whole = (places.is_finite() & (places == places.floor())).fill_null(False)
    if not whole.all():
        seat = int((~whole).arg_max() or 0)
        game = int(np.searchsorted(np.cumsum(lengths.to_numpy()), seat, side="right"))
        raise RatingError(
            f"game {game} has ranks {results['ranks'][game].to_list()}: ranks are whole numbers"
        )
    names = sorted(flat.unique().to_list())
    number = {name: i for i, name in enumerate(names)}
    seats = np.full((results.height, 4), -1, dtype=np.int64)
    ranks = np.full((results.height, 4), -1, dtype=np.int64)
    held = np.arange(4)[None, :] < lengths.to_numpy()[:, None]
    seats[held] = [number[name] for name in flat.to_list()]
    ranks[held] = results["ranks"].explode().to_numpy()
    return names, seats, ranks


def _connected(seats: np.ndarray, names: Sequence[str], anchor: int) -> set[tuple[int, int]]:
    """Pairs that met; RatingError if somebody has no chain of games to the anchor."""
    pairs: set[tuple[int, int]] = set()
    for row in np.unique(np.sort(seats, axis=1), axis=0):
        pairs.update(itertools.combinations(sorted({int(p) for p in row if p >= 0}), 2))
    reached = {anchor}
    while True:
        grown = reached | {p for pair in pairs if reached & set(pair) for p in pair}
        if grown == reached:
            break
        reached = grown
    if len(reached) < len(names):
        lost = [name for i, name in enumerate(names) if i not in reached]
        raise RatingError(
            f"no chain of games connects {', '.join(lost)} with the anchor {names[anchor]}: "
            "play them against a rated player"
        )
    return pairs


def fit_ratings(
    results: pl.DataFrame,
    *,
    anchor: str = ANCHOR,
    anchor_rating: float = ANCHOR_RATING,
    prior_draws: float = 1.0,
    depth: int | None = None,
    confidence: float = 0.95,
) -> Ratings:
    """Fit ratings to games by maximum likelihood.

    Args:
        results: one row a game: ``players`` (list of names, by seat; a player may hold several
            seats), ``ranks`` (list of ints by seat, less is better, equal is tied) and optionally
            ``set`` (any id; games of one rotated set). Games of two to four seats may be mixed.
        anchor: player whose rating is given.
        anchor_rating: its rating, Elo.
        prior_draws: drawn games added to each pair that met; > 0.
        depth: how many places count; None for all, 1 for "who won" alone (what players that
            maximise their share of the win play for).
        confidence: of the intervals, in (0, 1).

    Raises:
        RatingError: for games that cannot be rated: bad columns, ranks that are no whole numbers,
            a number out of its range, an anchor that did not play,
            players that nothing connects with it.
    """
    if not prior_draws > 0 or not math.isfinite(prior_draws):
        raise RatingError(f"prior_draws must be > 0, got {prior_draws}")
    if not math.isfinite(anchor_rating):
        raise RatingError(f"anchor_rating must be finite, got {anchor_rating}")
    if not 0 < confidence < 1:
        raise RatingError(f"confidence must lie in (0, 1), got {confidence}")
    if depth is not None and depth < 1:
        raise RatingError(f"depth must be at least 1, got {depth}")
    names, seats, ranks = _check(results)
    if anchor not in names:
        raise RatingError(f"the anchor {anchor!r} played no game; players are {', '.join(names)}")
    pinned = names.index(anchor)
    pairs = _connected(seats, names, pinned)
    clusters = np.arange(results.height)
    if "set" in results.columns:
        clusters = np.unique(results["set"].cast(pl.String).to_numpy(), return_inverse=True)[1]
    games = _merge(_expand(seats, ranks, clusters.astype(np.int64), depth))

    prior_rows = [(i, j, -1, -1, best) for i, j in sorted(pairs) for best in (i, j)]
    prior = np.array(prior_rows, dtype=np.int64).reshape(-1, 5)
    together = _merge(
        _Choices(
            np.concatenate([games.seats, prior[:, :4]]),
            np.concatenate([games.chosen, prior[:, 4]]),
            np.concatenate([games.weight, np.full(len(prior), prior_draws / 2.0)]),
            np.concatenate([games.cluster, np.full(len(prior), -1, dtype=np.int64)]),
        )
    )
    theta, information = _fit(together, len(names), pinned)
    free = np.arange(len(names)) != pinned
    covariance = np.zeros((len(names), len(names)))
    inverse = np.linalg.inv(information[np.ix_(free, free)])
    value, score, _ = _likelihood(theta, games)
    dispersion = 1.0
    if "set" in results.columns:
        dispersion = _dispersion(score[:, free], games.cluster, inverse)
    covariance[np.ix_(free, free)] = inverse * dispersion * ELO**2

    order = np.argsort(-theta, kind="stable")
    there = seats >= 0
    best = np.where(there, ranks, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    won = (ranks == best) & there
    shares = won / won.sum(axis=1, keepdims=True)
    taken = np.bincount(seats[there], shares[there], minlength=len(names))
    share = taken / np.bincount(seats[there], minlength=len(names))
    # once a game, however many seats of it a player holds
    played = np.unique(np.nonzero(there)[0] * len(names) + seats[there]) % len(names)
    return Ratings(
        players=tuple(names[i] for i in order),
        rating=(theta * ELO + anchor_rating)[order],
        covariance=covariance[np.ix_(order, order)],
        games=np.bincount(played, minlength=len(names))[order],
        share=share[order],
        anchor=anchor,
        confidence=confidence,
        dispersion=dispersion,
        log_likelihood=value,
    )


def _dispersion(score: sparse.csr_array, cluster: np.ndarray, inverse: np.ndarray) -> float:
    """Mean ratio of the variance of the sets' scores to the model's, at least 1."""
    _, which = np.unique(cluster, return_inverse=True)
    sets = int(which.max()) + 1
    if sets < 2 or not inverse.size:
        return 1.0
    member = (np.ones(which.size), (which.ravel(), np.arange(which.size)))
    total = sparse.csr_array(member, (sets, which.size)) @ score
    mean = total.sum(axis=0) / sets
    observed = ((total.T @ total).toarray() - sets * np.outer(mean, mean)) * sets / (sets - 1)
    return max(1.0, float((inverse * observed).sum()) / inverse.shape[0])  # both are symmetric
