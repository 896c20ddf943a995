"""Columns of the evaluation room's tables, as plain data."""

from __future__ import annotations

from ringrift_pipeline.training.tables import Column

GAMES: tuple[Column, ...] = (
    Column("match", "String", "Name of the match: the opponent's."),
    Column("set", "Int32", "Rotated set, the unit of evidence.", 0),
    Column("rotation", "Int8", "By how many seats the line-up was turned.", 0, 3),
    Column("players", "List(String)", "Who held each seat."),
    Column("ranks", "List(Int64)", "Rank of each seat, 0 is best, equal is tied."),
    Column("shares", "List(Float64)", "Share of the win of each seat."),
    Column("winner", "Int8", "Seat of the winner, from 1; 0 where nobody won alone.", 0, 4),
    Column("plies", "Int32", "Plies of the game.", 1),
    Column("decisions", "Int32", "Plies with a choice, the opening's included.", 0),
    Column("reason", "Int8", "How the game ended, see `game.layout.REASON_NAMES`.", 0),
    Column("opening", "List(Int64)", "Packed moves of the random opening."),
)

RATINGS: tuple[Column, ...] = (
    Column("player", "String", "Player rated.", unique=True),
    Column("rating", "Float64", "Rating, Elo; the heuristic is at 1200."),
    Column("standard_error", "Float64", "Standard error of the rating, Elo.", 0.0),
    Column("low", "Float64", "Lower end of the rating's interval, Elo."),
    Column("high", "Float64", "Upper end of the rating's interval, Elo."),
    Column("games", "Int64", "Games with the player in a seat.", 1),
    Column("share", "Float64", "Share of the wins of the seats the player held.", 0.0, 1.0),
    Column("anchor", "Boolean", "Whether the rating was given, not fitted."),
)

RATING_LIST: tuple[Column, ...] = (
    *RATINGS,
    Column("generation", "Int64", "Generation rated, null for a baseline.", 0, nullable=True),
    Column(
        "promoted",
        "Boolean",
        "Whether its gate let it through, null for a baseline.",
        nullable=True,
    ),
)

ABLATION: tuple[Column, ...] = (
    Column("enhancement", "String", "What is tried."),
    Column("setting", "String", "Beside what.", choices=("off in turn", "on alone")),
    Column(
        "measure",
        "String",
        "What is compared, on held-out games; less is better.",
        choices=("policy_loss", "value_log_loss", "calibration_error"),
    ),
    Column("with_it", "Float64", "The measure with the enhancement, mean over seeds."),
    Column("without_it", "Float64", "The measure without it."),
    Column("difference", "Float64", "With it minus without it, mean over paired seeds and games."),
    Column("seeds_error", "Float64", "Its standard error over the seeds drawn.", 0.0),
    Column("games_error", "Float64", "Its standard error over the games drawn.", 0.0),
    Column("low", "Float64", "Lower end of the difference's interval."),
    Column("high", "Float64", "Upper end of the difference's interval."),
    Column("low_all", "Float64", "Lower end, intervals of all comparisons together."),
    Column("high_all", "Float64", "Upper end, intervals of all comparisons together."),
    Column("p", "Float64", "Chance of such a difference without an effect.", 0.0, 1.0),
    Column("p_corrected", "Float64", "The same, for all comparisons (Holm).", 0.0, 1.0),
    Column("verdict", "String", "Of this difference.", choices=("better", "worse", "undecided")),
)
