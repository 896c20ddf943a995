"""Quality scores: how much each game of the window is worth as training data."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.selfplay.plan import Plan, load_plan
from ringrift_pipeline.selfplay.ragged import offsets_of
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.training.inputs import reuse, sealed_inputs

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.enhancements.config_groups import QualityConfig
    from ringrift_pipeline.store import Artefact, Store

KIND = "quality_scores"
TABLE = "scores.parquet"

_COLUMNS = ("game_id", "ply", "policy", "outcome", "search_value", "surprise", "game_plies")


def score_games(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Score every game of the plan's window into ``scores.parquet``.

    Freshness counts whole hours from the plan's time stamp back to that of the generation that
    played the game, so that a loop which is a minute slower scores, samples and trains the same.
    Games of the heuristic have neither a prior nor search values, so their surprise and
    balance count as unknown. The table's columns are :data:`tables.QUALITY_SCORES`.

    Returns
    -------
    Artefact
        kind ``quality_scores``, metadata with ``games`` and ``selfplay/quality_…`` means; the
        current one if it was made from the same shards and plan.

    Raises
    ------
    MissingArtefactError
        if a shard of the plan has not been played.
    ShardError
        if a number in one is not finite or out of its range, naming game and ply.
    """
    import polars as pl

    from ringrift_pipeline.selfplay import iter_shards
    from ringrift_pipeline.training import tables
    from ringrift_pipeline.training.pictures import draw_scores

    shards = list(iter_shards(store, plan, progress=progress, should_stop=should_stop))
    inputs = sealed_inputs(plan, KIND, shards)
    existing = reuse(store, plan, KIND, inputs, TABLE)
    if existing is not None:
        return existing
    reporter = Reporter(progress, should_stop)
    now = plan.created_at.timestamp()
    played: dict[int, float] = {}
    frames = []
    for number, shard in enumerate(shards):
        reporter.check("quality scores: stopped while reading shards; nothing was kept")
        if shard.generation not in played:
            made = load_plan(store, plan.config, shard.generation).created
            age = plan.created_at - datetime.fromisoformat(made)
            played[shard.generation] = now - math.floor(age.total_seconds() / 3600.0) * 3600.0
        frames.append(_games_of(shard, played[shard.generation]))
        reporter.report(number + 1, len(shards), f"{sum(map(len, frames))} games read")
    games = pl.concat(frames)
    scorer = _scorer(plan.settings.quality, games["length"])
    scored = (
        scorer.score_frame(games, now)
        .rename({"total_score": "score"})
        .sort("game_id")
        .select([column.name for column in tables.QUALITY_SCORES])
        .cast(tables.polars_schema(tables.QUALITY_SCORES))
    )
    own = scored.filter(pl.col("generation") == plan.generation)
    metadata: dict[str, Any] = {
        "inputs": inputs,
        "games": scored.height,
        "own_games": own.height,
        "selfplay/quality_mean": float(own["score"].mean()),  # type: ignore[arg-type]
        "selfplay/quality_min": float(own["score"].min()),  # type: ignore[arg-type]
        "selfplay/quality_max": float(own["score"].max()),  # type: ignore[arg-type]
        "selfplay/length_mean": float(own["length"].mean()),  # type: ignore[arg-type]
    }
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        tables.write_table(draft / TABLE, scored, tables.QUALITY_SCORES)
        draw_scores(draft, scored, plan.generation)
    return draft.artefact


def game_scores(artefact: Artefact) -> dict[str, float]:
    """Score of every game of a ``quality_scores`` artefact by its id."""
    from ringrift_pipeline.training import tables

    frame = tables.read_table(artefact.file(TABLE), tables.QUALITY_SCORES)
    return dict(zip(frame["game_id"].to_list(), frame["score"].to_list(), strict=True))


def _scorer(settings: QualityConfig, lengths: pl.Series) -> Any:
    from ringrift_pipeline.enhancements.data_quality_scoring import DataQualityScorer

    return DataQualityScorer.for_lengths(
        lengths,
        max_elo_diff=settings.max_elo_diff,
        decisive_bonus=settings.decisive_bonus,
        draw_penalty=settings.draw_penalty,
        max_entropy=settings.max_entropy,
        surprise_scale=settings.surprise_scale,
        freshness_decay_hours=settings.freshness_half_life_hours,
        weights={
            "length": settings.length_weight,
            "balance": settings.balance_weight,
            "diversity": settings.diversity_weight,
            "decisiveness": settings.decisiveness_weight,
            "freshness": settings.freshness_weight,
            "surprise": settings.surprise_weight,
        },
    )


def _games_of(shard: Artefact, played_at: float) -> pl.DataFrame:
    """One row a game of a shard, with the columns that the scorer reads."""
    import polars as pl
    import pyarrow as pa

    from ringrift_pipeline.selfplay.shards import (
        SHARD_FILE,
        ShardError,
        column,
        ragged_column,
        read_shard,
    )
    from ringrift_pipeline.selfplay.soundness import first_fault

    table = read_shard(shard.file(SHARD_FILE), _COLUMNS)
    heuristic = json.loads(table.schema.metadata[b"player"]) == "heuristic"
    number = json.loads(table.schema.metadata[b"shard"])
    fault = first_fault(table)
    if fault is not None:
        raise ShardError(f"{shard.kind} of generation {shard.generation:04d}: {fault}")
    ids = table.column("game_id")
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    encoded = ids.dictionary_encode()
    game = encoded.indices.to_numpy(zero_copy_only=False)
    names = encoded.dictionary.to_pylist()
    size = len(names)
    decisions = np.bincount(game, minlength=size)
    first = np.unique(game, return_index=True)[1]

    counts, policy = ragged_column(table, "policy")
    policy = policy.astype(np.float64)
    terms = np.where(policy > 0.0, -policy * np.log(np.maximum(policy, 1e-300)), 0.0)
    entropy = np.add.reduceat(terms, offsets_of(counts)[:-1])

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(game, weights=values, minlength=size) / decisions

    values = column(table, "search_value").astype(np.float64)
    unknown = [None] * size
    return pl.DataFrame(
        {
            "game_id": names,
            "generation": [shard.generation] * size,
            "shard": [number] * size,
            "length": column(table, "game_plies")[first],
            "decisions": decisions,
            "outcome": column(table, "outcome")[first].astype(np.float64).tolist(),
            "policy_entropy": np.maximum(mean(entropy), 0.0),
            "surprise": unknown
            if heuristic
            else np.maximum(mean(column(table, "surprise").astype(np.float64)), 0.0).tolist(),
            "mean_values": unknown
            if heuristic
            else np.stack([mean(values[:, seat]) for seat in range(values.shape[1])], 1).tolist(),
            "timestamp": [played_at] * size,
        },
        schema_overrides={
            "surprise": pl.Float64,
            "mean_values": pl.List(pl.Float64),
            "outcome": pl.List(pl.Float64),
            "decisions": pl.Int32,
        },
    )
