"""Columns of the evaluation room's tables, as plain data."""

from __future__ import annotations

from ringrift_pipeline.training.tables import Column

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
