"""The columns that quality scores are made of: what may stand in them."""

from __future__ import annotations

import polars as pl

__all__ = ["check_columns"]


def check_columns(games: pl.DataFrame, first_row: int = 0) -> None:
    """Refuse facts about games that no score can be made of.

    Args:
        games: one row a game, columns as ``DataQualityScorer.expression`` reads them.
        first_row: number of the first of them, for messages about a part of a frame.

    Raises:
        ValueError: naming the column and the first row that is out of range.
    """
    have = set(games.columns)
    numbers = (
        "length",
        "policy_entropy",
        "surprise",
        "timestamp",
        "winner",
        "elo_p1",
        "elo_p2",
    )
    finite: list[str] = [name for name in numbers if name in have]
    lists: list[str] = [name for name in ("outcome", "elos", "mean_values") if name in have]
    whole = "winner" in have and games.schema["winner"].is_integer()
    if not games.height or all(games.select(_all_in_range(have, finite, lists, whole)).row(0)):
        return
    bad: list[pl.Expr] = []  # by row, to say which
    for name in finite:
        value = pl.col(name).cast(pl.Float64)
        wrong = ~value.is_finite()
        if name == "winner":
            wrong = wrong | (value < 0) | (value > 4) | (value != value.floor())
        elif name in ("length", "policy_entropy", "surprise"):
            wrong = wrong | (value < 0)
        if name == "length":
            wrong = wrong | value.is_null()
        bad.append(wrong.fill_null(False).alias(name))
    for name in lists:
        value = pl.col(name).cast(pl.List(pl.Float64))
        wrong = ~value.list.len().is_between(2, 4)
        wrong = wrong | ~value.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        if name != "elos":
            wrong = wrong | (value.list.min() < 0) | (value.list.sum() <= 0)
        bad.append(wrong.fill_null(False).alias(name))
    for name, differs in _seats_differ(have, lists):
        bad.append(differs.fill_null(False).alias(f"{name} (seats)"))
    checks = games.select(bad)
    for name in checks.columns:
        if checks[name].any():
            row = int(checks[name].arg_max() or 0)
            name, _, seats = name.partition(" ")
            if seats:
                raise ValueError(
                    f"column {name!r} does not fit the seats of {lists[0]!r} in row "
                    f"{first_row + row}: {games[name][row]!r}"
                )
            raise ValueError(
                f"column {name!r} is out of range in row {first_row + row}: {games[name][row]!r} "
                "(lengths, entropies, surprises, shares and values are finite and >= 0; "
                "lists have 2 to 4 seats; winner is a whole number from 0 to 4)"
            )


def _seats_differ(have: set[str], lists: list[str]) -> list[tuple[str, pl.Expr]]:
    """By column, the rows that tell another number of seats than the first list, null unknown."""
    if not lists:
        return []
    seats = pl.col(lists[0]).list.len()
    found = [(name, pl.col(name).list.len() != seats) for name in lists[1:]]
    if "winner" in have:
        found.append(("winner", pl.col("winner").cast(pl.Float64) > seats))
    return found


def _all_in_range(
    have: set[str], numbers: list[str], lists: list[str], whole: bool
) -> list[pl.Expr]:
    """One truth a column, by its extremes: cheap where, as nearly always, all is well.

    ``whole``: the winner's column holds integers.
    """
    found = []
    for name in numbers:
        value = pl.col(name).cast(pl.Float64)
        fine = value.sum().is_finite()  # NaN and infinity spread; too large a sum is looked into
        if name not in ("timestamp", "elo_p1", "elo_p2"):
            fine = fine & (value.min() >= 0).fill_null(True)
        if name == "winner":
            fine = fine & (value.max() <= 4).fill_null(True)
            if not whole:
                fine = fine & (value == value.floor()).all()
        if name == "length":
            fine = fine & (value.null_count() == 0)
        found.append(fine.alias(name))
    for name in lists:
        seats = pl.col(name).cast(pl.List(pl.Float64))
        width, value = seats.list.len(), seats.explode()
        fine = (width.min() >= 2).fill_null(True) & (width.max() <= 4).fill_null(True)
        # an exploded null list is one null; any more are nulls within lists
        fine = fine & value.sum().is_finite() & (value.null_count() == seats.null_count())
        if name != "elos":
            fine = fine & (value.min() >= 0).fill_null(True)
            fine = fine & (seats.list.sum().min() > 0).fill_null(True)
        found.append(fine.alias(name))
    for name, differs in _seats_differ(have, lists):
        found.append((~differs.any()).fill_null(True).alias(f"{name} (seats)"))
    return found
