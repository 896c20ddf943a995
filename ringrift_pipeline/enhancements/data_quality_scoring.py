"""Quality of self-play games, and sampling in proportion to it.

`DataQualityScorer` turns facts about a game into six terms and a total, all in [0, 1]:

===============  ==================================================================================
length           1 at the optimal length, 1/2 at the least and greatest acceptable one; a Gaussian
                 in log length on either side, so it has no jumps and reaches every length
balance          how even the contest was: spread of the seats' ratings, or, where ratings are not
                 known, Simpson evenness of the seats' mean search value
diversity        mean entropy of the search policy, nats, over ``max_entropy``
decisiveness     from ``draw_penalty`` for a win shared by all seats to ``decisive_bonus`` for one
                 winner, over the larger of the two
freshness        2 ** (-age / half-life)
surprise         mean KL(search policy || prior), nats: 1 - 2 ** (-surprise / surprise_scale)
===============  ==================================================================================

A term that is not known counts 1/2. The total is the weighted mean of the terms.

`QualityWeightedSampler` (in `weighted_sampling`) draws in proportion to it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_keys,
    check_number,
    check_type,
    check_whole,
    number_array,
    shown,
    whole_state,
)
from ringrift_pipeline.enhancements.game_columns import check_columns
from ringrift_pipeline.enhancements.weighted_sampling import QualityWeightedSampler, score_weights

__all__ = ["DataQualityScorer", "GameQualityScore", "QualityWeightedSampler"]

TERMS = ("length", "balance", "diversity", "decisiveness", "freshness", "surprise")
_UNKNOWN = 0.5
_SLICE = 2**17  # games scored at a time: the memory for what lies between follows from it
# share of the total that each term gets of what freshness leaves over
_SHARES = {"length": 0.2, "balance": 0.2, "diversity": 0.2, "decisiveness": 0.2, "surprise": 0.2}


@dataclass(frozen=True)
class GameQualityScore:
    """Scores of one game, each in [0, 1]; ``elo_score`` is the balance term."""

    game_id: str
    total_score: float
    length_score: float
    elo_score: float
    diversity_score: float
    decisive_score: float
    freshness_score: float = 1.0
    surprise_score: float = _UNKNOWN

    @property
    def balance_score(self) -> float:
        """The balance term under its own name."""
        return self.elo_score

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of all fields."""
        return asdict(self)


def _seat_number(players: int, **facts: Sequence[float] | None) -> int:
    """Seats of a game, told by the facts that have one number a seat, or else by ``players``."""
    check_whole("players", players, 2, 5)
    seats = {
        name: len(_seats(name, values)) for name, values in facts.items() if values is not None
    }
    if len(set(seats.values())) > 1:
        told = ", ".join(f"{name} {number}" for name, number in seats.items())
        raise ValueError(f"per-seat arguments must have one number a seat: {told}")
    number = next(iter(seats.values()), players)
    if players not in (2, number):
        raise ValueError(f"players is {players}, the per-seat arguments have {number} seats")
    return number


def _seats(name: str, values: Sequence[float], low: float = -math.inf) -> list[float]:
    many = isinstance(values, Sequence) or (isinstance(values, np.ndarray) and values.ndim == 1)
    if not many or isinstance(values, np.ma.MaskedArray) or not 2 <= len(values) <= 4:
        raise ValueError(
            f"{name} must have one number for each of 2 to 4 seats, got {shown(values)}"
        )
    return [check_number(f"{name}[{seat}]", value, low) for seat, value in enumerate(values)]


class DataQualityScorer:
    """Scores games for their worth as training data.

    Args:
        min_game_length: plies at which the length term has fallen to 1/2, below the optimum.
        max_game_length: plies at which it has fallen to 1/2, above the optimum.
        optimal_game_length: plies at which it is 1.
        max_elo_diff: rating spread between seats at which the balance term is 0.
        decisive_bonus: worth of a game with one winner.
        draw_penalty: worth of a game whose win is shared by all seats. Only the ratio to
            ``decisive_bonus`` counts; scores stay in [0, 1].
        freshness_decay_hours: half-life of freshness, hours (24 h old scores exactly 1/2 of new).
        freshness_weight: weight of freshness in the total; the other terms share the rest.
        weights: weight of each term by name, in place of the shares above; any positive scale.
        max_entropy: search-policy entropy, nats, from which diversity is 1.
        surprise_scale: surprise, nats, at which the surprise term is 1/2.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        min_game_length: int = 20,
        max_game_length: int = 500,
        optimal_game_length: int = 100,
        max_elo_diff: float = 400.0,
        decisive_bonus: float = 1.2,
        draw_penalty: float = 0.8,
        freshness_decay_hours: float = 24.0,
        freshness_weight: float = 0.2,
        *,
        weights: Mapping[str, float] | None = None,
        max_entropy: float = 3.0,
        surprise_scale: float = 0.5,
    ) -> None:
        self.min_game_length = check_number("min_game_length", min_game_length, 0.0, above=True)
        self.max_game_length = check_number("max_game_length", max_game_length, 0.0, above=True)
        self.optimal_game_length = check_number(
            "optimal_game_length", optimal_game_length, 0.0, above=True
        )
        if not self.min_game_length < self.optimal_game_length < self.max_game_length:
            raise ValueError(
                "lengths must satisfy min_game_length < optimal_game_length < max_game_length, "
                f"got {min_game_length}, {optimal_game_length}, {max_game_length}"
            )
        self.max_elo_diff = check_number("max_elo_diff", max_elo_diff, 0.0, above=True)
        self.decisive_bonus = check_number("decisive_bonus", decisive_bonus, 0.0)
        self.draw_penalty = check_number("draw_penalty", draw_penalty, 0.0)
        if self.decisive_bonus + self.draw_penalty == 0:
            raise ValueError("decisive_bonus and draw_penalty must not both be 0")
        self.freshness_decay_hours = check_number(
            "freshness_decay_hours", freshness_decay_hours, 0.0, above=True
        )
        self.freshness_weight = check_number("freshness_weight", freshness_weight, 0.0, 1.0)
        self.max_entropy = check_number("max_entropy", max_entropy, 0.0, above=True)
        self.surprise_scale = check_number("surprise_scale", surprise_scale, 0.0, above=True)
        if weights is None:
            rest = 1.0 - self.freshness_weight
            weights = {name: share * rest for name, share in _SHARES.items()}
            weights["freshness"] = self.freshness_weight
        check_type("weights", weights, Mapping)
        unknown = sorted(set(map(str, weights)) - set(TERMS))
        if unknown:
            raise ValueError(
                f"unknown term {unknown[0]!r} in weights; terms are {', '.join(TERMS)}"
            )
        checked = {
            name: check_number(f"weights[{name}]", weights.get(name, 0.0), 0.0) for name in TERMS
        }
        total = sum(checked.values())
        if total <= 0:
            raise ValueError("weights must not all be 0")
        self.weights = {name: weight / total for name, weight in checked.items()}

    @classmethod
    def for_lengths(
        cls, lengths: Sequence[int] | np.ndarray | pl.Series, **arguments: Any
    ) -> DataQualityScorer:
        """A scorer whose lengths fit a board: 5%, 50% and 95% quantiles of `lengths`.

        Boards differ tenfold in game length, so fixed bounds would score the board.

        Args:
            lengths: (N,) game lengths, plies, finite and above 0; any real dtype.
            arguments: the constructor's others.

        Raises:
            ValueError: no lengths, or one that is not finite and above 0.
        """
        values = number_array("lengths", lengths)
        if values.ndim != 1 or values.size == 0 or not (np.isfinite(values) & (values > 0)).all():
            raise ValueError("lengths must be a non-empty list of finite game lengths above 0")
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        middle = max(float(middle), 1.0)
        return cls(
            min_game_length=min(float(low), 0.9 * middle) or 0.1 * middle,  # type: ignore[arg-type]
            max_game_length=max(float(high), 1.1 * middle),  # type: ignore[arg-type]
            optimal_game_length=middle,  # type: ignore[arg-type]
            **arguments,
        )

    # -- one game ---------------------------------------------------------------------------

    def compute_freshness_score(
        self, game_timestamp: float | None = None, current_time: float | None = None
    ) -> float:
        """2 ** (-age / half-life); 1 for a time in the future, 1/2 where the time is not known.

        Args:
            game_timestamp: Unix time at which the game ended, seconds.
            current_time: Unix time that ages count from, seconds; default now.
        """
        if game_timestamp is None:
            return _UNKNOWN
        now = time.time() if current_time is None else check_number("current_time", current_time)
        age_hours = max(0.0, now - check_number("game_timestamp", game_timestamp)) / 3600.0
        return 2.0 ** (-age_hours / self.freshness_decay_hours)

    def score_game(
        self,
        game_id: str,
        game_length: int,
        winner: int | None = None,
        elo_p1: float | None = None,
        elo_p2: float | None = None,
        move_entropy: float | None = None,
        game_timestamp: float | None = None,
        pre_computed_quality: float | None = None,
        *,
        players: int = 2,
        elos: Sequence[float] | None = None,
        outcome: Sequence[float] | None = None,
        mean_values: Sequence[float] | None = None,
        surprise: float | None = None,
        current_time: float | None = None,
    ) -> GameQualityScore:
        """Score one game. For many games use `score_frame`, which gives the same numbers.

        Args:
            game_id: any name.
            game_length: plies, >= 0.
            winner: seat from 1 of the only winner; None or 0 for a draw.
            elo_p1: rating of seat 1, where seats are two.
            elo_p2: rating of seat 2.
            move_entropy: mean entropy of the search policy over the game's decisions, nats.
            game_timestamp: Unix time of the game, seconds.
            pre_computed_quality: quality in [0, 1] that replaces all terms but freshness.
            players: number of seats, 2 to 4, where no per-seat argument tells; those that do must
                agree.
            elos: rating of every seat, in place of elo_p1 and elo_p2.
            outcome: share of the win of every seat, in place of `winner`.
            mean_values: mean search value of every seat (probabilities of winning).
            surprise: mean KL(search policy || prior), nats.
            current_time: Unix time that age counts from; default now.

        Raises:
            ValueError: for a value out of range or not finite.
        """
        seats = _seat_number(players, elos=elos, outcome=outcome, mean_values=mean_values)
        if seats != 2 and not (elo_p1 is None and elo_p2 is None):
            raise ValueError(f"elo_p1 and elo_p2 are for two seats, there are {seats}: give elos")
        length = self._length(check_number("game_length", game_length, 0.0))
        pair = [
            None if elo is None else check_number(name, elo)
            for name, elo in (("elo_p1", elo_p1), ("elo_p2", elo_p2))
        ]
        if elos is None and None not in pair:
            elos = pair  # type: ignore[assignment]
        balance = _UNKNOWN
        if elos is not None:
            ratings = _seats("elos", elos)
            balance = max(0.0, 1.0 - (max(ratings) - min(ratings)) / self.max_elo_diff)
        elif mean_values is not None:
            values = _seats("mean_values", mean_values, 0.0)
            balance = self._evenness(values)
        diversity = _UNKNOWN
        if move_entropy is not None:
            diversity = min(1.0, check_number("move_entropy", move_entropy, 0.0) / self.max_entropy)
        seat = 0 if winner is None else check_whole("winner", winner, 0, seats + 1)
        if outcome is not None:
            shares = _seats("outcome", outcome, 0.0)
            if sum(shares) <= 0:
                raise ValueError(f"outcome must have a positive share, got {outcome!r}")
            even = 1.0 / len(shares)
            clear = max(0.0, (max(shares) / sum(shares) - even) / (1.0 - even))
        else:
            clear = 1.0 if seat > 0 else 0.0
        decisive = self.draw_penalty + (self.decisive_bonus - self.draw_penalty) * clear
        decisive /= max(self.decisive_bonus, self.draw_penalty)
        freshness = self.compute_freshness_score(game_timestamp, current_time)
        surprised = _UNKNOWN
        if surprise is not None:
            surprised = 1.0 - 2.0 ** (
                -check_number("surprise", surprise, 0.0) / self.surprise_scale
            )
        w = self.weights
        if pre_computed_quality is None:
            total = (
                w["length"] * length
                + w["balance"] * balance
                + w["diversity"] * diversity
                + w["decisiveness"] * decisive
                + w["freshness"] * freshness
                + w["surprise"] * surprised
            )
        else:
            quality = check_number("pre_computed_quality", pre_computed_quality, 0.0, 1.0)
            total = (1.0 - w["freshness"]) * quality + w["freshness"] * freshness
        return GameQualityScore(
            game_id=str(game_id),
            total_score=min(1.0, max(0.0, total)),
            length_score=length,
            elo_score=balance,
            diversity_score=diversity,
            decisive_score=decisive,
            freshness_score=freshness,
            surprise_score=surprised,
        )

    def _length(self, plies: float) -> float:
        if plies <= 0:
            return 0.0
        optimum = self.optimal_game_length
        bound = self.min_game_length if plies < optimum else self.max_game_length
        return 2.0 ** -((math.log(plies / optimum) / math.log(bound / optimum)) ** 2)

    @staticmethod
    def _evenness(values: list[float]) -> float:
        total = sum(values)
        if total <= 0:
            raise ValueError(f"mean_values must have a positive entry, got {values!r}")
        concentration = sum((value / total) ** 2 for value in values)
        return min(1.0, max(0.0, (1.0 - concentration) / (1.0 - 1.0 / len(values))))

    # -- many games -------------------------------------------------------------------------

    def expression(self, columns: Sequence[str], current_time: float) -> pl.Expr:
        """All scores as one polars expression: a struct of ``<term>_score`` and ``total_score``.

        Args:
            columns: the columns that the frame has. Read are ``length`` (plies; required),
                ``winner`` (seat from 1; 0 or null for a draw) or ``outcome`` (list of the seats'
                shares of the win), ``elos`` and ``mean_values`` (lists over seats; for two seats
                ``elo_p1`` and ``elo_p2`` will do), ``policy_entropy`` (nats), ``surprise`` (nats),
                ``timestamp`` (Unix seconds).
                A column that is missing, or a null in it, counts as not known.
            current_time: Unix time that ages count from, seconds (a plan's time stamp, never
                the clock: the same plan must give the same scores).
        """
        check_type("columns", columns, Sequence)
        if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
            raise ValueError(f"columns must be a list of names, got {shown(columns)}")
        terms = self._terms(columns, current_time)
        total = self._total(terms)
        return pl.struct(
            *[term.alias(name) for name, term in terms.items()], total.alias("total_score")
        ).alias("quality")

    def _total(self, terms: Mapping[str, pl.Expr]) -> pl.Expr:
        total = pl.lit(0.0)
        for name in TERMS:
            total = total + self.weights[name] * terms[f"{name}_score"]
        return total.clip(0.0, 1.0)

    def _terms(self, columns: Sequence[str], current_time: float) -> dict[str, pl.Expr]:
        """Every term's score by the name of its column; nothing costly is computed twice."""
        have = set(columns)
        if "length" not in have:
            raise ValueError(f"the frame needs a column 'length' (plies), it has {sorted(have)}")
        now = check_number("current_time", current_time)

        # 2 ** -(log(plies / optimum) / log(bound / optimum)) ** 2, the bound by the side
        plies = pl.col("length").cast(pl.Float64)
        low, high = (
            -math.log(2.0) / math.log(bound / self.optimal_game_length) ** 2
            for bound in (self.min_game_length, self.max_game_length)
        )
        factor = pl.when(plies < self.optimal_game_length).then(low).otherwise(high)
        relative = (plies.clip(lower_bound=1e-300) / self.optimal_game_length).log()
        length = (factor * relative.pow(2)).exp()

        unknown = pl.lit(None, dtype=pl.Float64)
        balance = diversity = surprise = freshness = unknown
        if "mean_values" in have:
            values = pl.col("mean_values").cast(pl.List(pl.Float64))
            squares = values.list.eval(pl.element().pow(2)).list.sum() / values.list.sum().pow(2)
            balance = ((1.0 - squares) / (1.0 - 1.0 / values.list.len())).clip(0.0, 1.0)
        if "elos" in have:
            elos = pl.col("elos").cast(pl.List(pl.Float64))
            spread = elos.list.max() - elos.list.min()
            rated = (1.0 - spread / self.max_elo_diff).clip(lower_bound=0.0)
            balance = pl.coalesce(rated, balance) if "mean_values" in have else rated
        elif {"elo_p1", "elo_p2"} <= have:
            gap = (pl.col("elo_p1") - pl.col("elo_p2")).cast(pl.Float64).abs()
            rated = (1.0 - gap / self.max_elo_diff).clip(lower_bound=0.0)
            balance = pl.coalesce(rated, balance) if "mean_values" in have else rated

        if "policy_entropy" in have:
            entropy = pl.col("policy_entropy").cast(pl.Float64)
            diversity = (entropy / self.max_entropy).clip(0.0, 1.0)
        if "surprise" in have:
            nats = pl.col("surprise").cast(pl.Float64)
            surprise = 1.0 - (-math.log(2.0) / self.surprise_scale * nats).exp()
        if "timestamp" in have:
            since = (pl.col("timestamp").cast(pl.Float64) - now).clip(upper_bound=0.0)
            freshness = (math.log(2.0) / (3600.0 * self.freshness_decay_hours) * since).exp()

        best = max(self.decisive_bonus, self.draw_penalty)
        shared, won = self.draw_penalty / best, self.decisive_bonus / best
        decisive = pl.lit(shared)
        if "outcome" in have:
            shares = pl.col("outcome").cast(pl.List(pl.Float64))
            even = 1.0 / shares.list.len()
            clear = ((shares.list.max() / shares.list.sum() - even) / (1.0 - even)).clip(0.0, 1.0)
            decisive = shared + (won - shared) * clear
        elif "winner" in have:
            decisive = pl.when(pl.col("winner") > 0).then(won).otherwise(shared)

        terms = {
            "length": length,
            "balance": balance,
            "diversity": diversity,
            "decisiveness": decisive,
            "freshness": freshness,
            "surprise": surprise,
        }
        return {f"{name}_score": term.fill_null(_UNKNOWN) for name, term in terms.items()}

    def score_frame(self, games: pl.DataFrame, current_time: float) -> pl.DataFrame:
        """`games` with the columns ``<term>_score`` and ``total_score`` (float64) added.

        Args:
            games: one row a game, columns as `expression` reads them.
            current_time: Unix time that ages count from, seconds.

        Raises:
            ValueError: naming the column and the first row that is out of range.
        """
        check_type("games", games, pl.DataFrame)
        terms = self._terms(games.columns, current_time)
        total = self._total({name: pl.col(name) for name in terms}).alias("total_score")
        scored = []
        for number, part in enumerate(games.iter_slices(_SLICE)):  # checked and scored in cache
            try:
                check_columns(part, number * _SLICE)
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"games: a column does not hold numbers: {error}") from error
            # in two steps, so that the total is made of the terms and not of their making
            scores = part.with_columns(term.alias(name) for name, term in terms.items())
            scored.append(scores.with_columns(total))
        if not scored:
            return games.with_columns(self.expression(games.columns, current_time)).unnest(
                "quality"
            )
        return pl.concat(scored)

    def compute_sample_weights(
        self,
        scores: Sequence[GameQualityScore] | np.ndarray | torch.Tensor | pl.Series,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Sampling weights: score ** (1 / temperature), normalised.

        A game twice as good is drawn twice as often at temperature 1, four times at 1/2; a large
        temperature makes all equal. Scores below 0.01 count as 0.01, so that every game can be
        drawn and importance corrections stay finite.

        Args:
            scores: (N,) total scores in [0, 1], of any real dtype, or records that have them.
            temperature: above 0.

        Returns:
            (N,) float64, summing to 1.

        Raises:
            ValueError: for scores outside [0, 1] or not finite, or a temperature not > 0.
        """
        return score_weights(scores, temperature)

    def state_dict(self) -> dict[str, Any]:
        """The constructor's arguments, for a checkpoint."""
        names = (
            "min_game_length",
            "max_game_length",
            "optimal_game_length",
            "max_elo_diff",
            "decisive_bonus",
            "draw_penalty",
            "freshness_decay_hours",
            "freshness_weight",
            "max_entropy",
            "surprise_scale",
        )
        return {name: getattr(self, name) for name in names} | {"weights": dict(self.weights)}

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the arguments that `state_dict` gave; ValueError changes nothing."""
        check_keys(state, self.state_dict(), "DataQualityScorer")
        forms.mapping(forms.number(0.0))("weights", state["weights"])
        self.__init__(**dict(state))  # type: ignore[misc]
