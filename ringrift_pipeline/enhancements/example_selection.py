"""Choosing rows of a data set: by position, by membership, and by score with a limit a group."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringrift_pipeline.enhancements.argument_checks import COUNTABLE, check_whole, host_array
from ringrift_pipeline.enhancements.sample_slots import MAX_INDEX, run_starts


def as_population(all_indices: Any) -> np.ndarray | range:
    """A data set as its rows: of a size N the rows 0 .. N-1; a range or an array as it is.

    Raises:
        ValueError: empty, not whole numbers (N,), or a range or size out of bounds.
    """
    if isinstance(all_indices, (int, np.integer)):
        return range(check_whole("all_indices", all_indices, 1, MAX_INDEX + 1))
    if isinstance(all_indices, range):
        population: np.ndarray | range = all_indices
        if all_indices:
            low, high = sorted((all_indices[0], all_indices[-1]))
            _check_rows(low, high + 1)  # one more: a range has a length only up to there
    else:
        population = host_array("all_indices", all_indices)
        if population.ndim != 1 or (population.size and population.dtype.kind not in "iu"):
            raise ValueError(
                f"all_indices must be integers (N,), got {population.dtype} {population.shape}"
            )
    if len(population) == 0:
        raise ValueError("all_indices is empty: there is nothing to draw a batch from")
    if isinstance(population, np.ndarray):
        unsigned = population.dtype.kind == "u"
        _check_rows(int(population.min()), int(population.max()) if unsigned else 0)
        if unsigned:
            population = population.astype(np.int64)
    return population


def _check_rows(low: int, high: int) -> None:
    if low < 0:
        raise ValueError(f"all_indices must not be negative, got {low}")
    if high >= COUNTABLE:
        raise ValueError(f"all_indices must be below 2**63, got {high}")


def filled_up(
    chosen: np.ndarray, population: np.ndarray | range, number: int, generator: np.random.Generator
) -> np.ndarray:
    """``number`` rows, int64: the ``chosen`` distinct ones and others drawn uniformly, shuffled.

    The others do not repeat, unless the population is smaller than ``number``.
    """
    size, missing = len(population), number - chosen.size
    # distinct positions in random order; those chosen already fall out
    enough = min(size, missing + chosen.size)
    others = rows_at(population, distinct_positions(size, enough, generator))
    others = others[~np.isin(others, chosen)][:missing]
    parts = [chosen, others]
    missing -= others.size
    if missing > 0:  # whole passes over the population, and a part of one
        passes, rest = divmod(missing, size)
        again = [np.tile(np.arange(size), passes), distinct_positions(size, rest, generator)]
        parts.append(rows_at(population, np.concatenate(again)))
    return generator.permutation(np.concatenate(parts))


def rows_at(population: np.ndarray | range, positions: np.ndarray) -> np.ndarray:
    """The rows (K,) int64 that stand at ``positions`` (K,) of a population of rows."""
    if isinstance(population, range):
        return population.start + population.step * positions.astype(np.int64)
    return population[positions].astype(np.int64)


def is_member(rows: np.ndarray, population: np.ndarray | range) -> np.ndarray:
    """Which rows (K,) occur in the population, (K,) bool.

    O(K) for a range and where row i stands at position i; else O(K + size of the population).
    """
    if isinstance(population, range):
        low, high = sorted((population[0], population[-1])) if len(population) else (1, 0)
        return (rows >= low) & (rows <= high) & ((rows - low) % abs(population.step) == 0)
    member = np.zeros(rows.size, dtype=bool)
    inside = rows < population.size
    member[inside] = population[rows[inside]] == rows[inside]
    if not member.all():
        member[~member] = np.isin(rows[~member], population)
    return member


def first_of_each(values: np.ndarray) -> np.ndarray:
    """Values (K,) without those that have come before, in their order."""
    order = np.argsort(values, kind="stable")
    first = np.empty(values.size, dtype=bool)
    first[order] = run_starts(values[order])
    return values[first]


def distinct_positions(size: int, number: int, generator: np.random.Generator) -> np.ndarray:
    """``number`` <= ``size`` distinct positions in [0, size), int64, uniform, in random order.

    O(number) where that is a small part of ``size``.
    """
    if 16 * number >= size:
        return generator.permutation(size)[:number]
    found = np.zeros(0, dtype=np.int64)
    while found.size < number:
        again = generator.integers(0, size, number - found.size + 16)
        found = first_of_each(np.concatenate([found, again]))
    return found[:number]


def top_with_limit(scores: np.ndarray, groups: np.ndarray, number: int, limit: int) -> np.ndarray:
    """Positions of the highest scores, highest first: at most ``number`` of them, at most
    ``limit`` of any one group; members of group -1 are not limited.

    Args:
        scores: (N,) floating point.
        groups: (N,) int64.
        number: positions wanted.
        limit: most positions of a group, at least 1.
    """
    pool = np.arange(0)
    for size in (8 * number, scores.size):  # mostly a few times the number is enough
        if size < scores.size:
            pool = np.argpartition(-scores, size)[:size]
        else:
            pool = np.arange(scores.size)
        pool = pool[np.argsort(-scores[pool], kind="stable")]
        if limit < number:
            group = groups[pool]
            by_group = np.argsort(group, kind="stable")
            starts = run_starts(group[by_group])
            first = np.maximum.accumulate(np.where(starts, np.arange(pool.size), 0))
            rank = np.empty(pool.size, dtype=np.int64)  # within the group, by score
            rank[by_group] = np.arange(pool.size) - first
            pool = pool[(rank < limit) | (group < 0)]
        if pool.size >= number or size >= scores.size:
            break
    return pool[:number]


__all__ = [
    "as_population",
    "distinct_positions",
    "filled_up",
    "first_of_each",
    "is_member",
    "rows_at",
    "top_with_limit",
]
