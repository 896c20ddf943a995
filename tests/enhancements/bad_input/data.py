"""Rows of what chooses and weighs samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import torch

from ringrift_pipeline.enhancements import GameQualityScore

from ..small_training import BATCH
from .changes import (
    DEEP,
    EMPTY,
    FRACTIONS,
    META,
    NONE,
    TRUTHS,
    WORDS,
    Change,
    Kind,
    any_of,
    becomes,
    flag,
    holding,
    number,
    rows,
    text,
    values,
    whole,
)
from .row import Row, built, indices, losses, state_row, unit


def games_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "length": [50, 60],
            "winner": [1, 0],
            "policy_entropy": [1.0, 2.0],
            "surprise": [0.1, 0.2],
            "timestamp": [0.0, 5.0],
            "elos": [[1200.0, 1300.0], [1.0, 2.0]],
            "mean_values": [[0.5, 0.5], [0.2, 0.8]],
        }
    )


def column(name: str, *entries: Any) -> Change:
    series = pl.Series(name, entries, strict=False)
    return Change(f"{name} = {entries}", lambda good: good.with_columns(series))


def frame_changes() -> Kind:
    bad = [
        column("length", -1, 5),
        column("length", None, 5),
        column("length", math.nan, 5.0),
        column("length", "a", "b"),
        column("winner", 1, 5),
        column("winner", -1, 0),
        column("winner", 1.5, 1.0),
        column("policy_entropy", -0.1, 1.0),
        column("surprise", math.inf, 1.0),
        column("timestamp", math.nan, 1.0),
        column("elos", [1.0, math.nan], [1.0, 2.0]),
        column("elos", [1.0], [1.0, 2.0]),
        column("mean_values", [0.0, 0.0], [0.5, 0.5]),
        column("mean_values", [-1.0, 2.0], [0.5, 0.5]),
        column("outcome", [1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0]),
        Change("has no length", lambda good: good.drop("length")),
        Change("has no rows", lambda good: good.head(0), fine=True),
    ]
    return any_of(*bad, *map(becomes, (None, "rubbish", {"length": [1]})))


def quality_rows() -> list[Row]:
    owner = "DataQualityScorer"
    above = number(0.0, above=True)
    seats = [[], [0.5], [0.5] * 5, [0.5, math.nan], [0.5, math.inf], ["a", "b"], 3, "rubbish"]
    seats += [np.array(3), np.ones((2, 2)), np.ma.masked_array([0.5, 0.5], [True, False])]
    ratings = any_of(*map(becomes, seats), becomes(None, fine=True))
    parts = any_of(*map(becomes, [*seats, [0.0, 0.0], [-1.0, 2.0]]), becomes(None, fine=True))
    scores = values(0.0, 1.0, any_length=True)
    game = {
        "game_id": "g",
        "game_length": 50,
        "winner": 1,
        "elo_p1": 1200.0,
        "elo_p2": 1300.0,
        "move_entropy": 1.0,
        "game_timestamp": 0.0,
        "pre_computed_quality": None,
        "players": 2,
        "surprise": 0.3,
        "current_time": 10.0,
    }
    return [
        built(
            owner,
            {
                "min_game_length": above,
                "max_game_length": above,
                "optimal_game_length": above,
                "max_elo_diff": above,
                "decisive_bonus": number(0.0),
                "draw_penalty": number(0.0),
                "freshness_decay_hours": above,
                "freshness_weight": number(0.0, 1.0),
                "weights": any_of(
                    *map(
                        becomes,
                        (3, "rubbish", [], {}, {"lenght": 1.0}, {"length": -1.0}, {"length": 0.0}),
                    ),
                    becomes({"length": math.nan}),
                    becomes(None, fine=True),
                ),
                "max_entropy": above,
                "surprise_scale": above,
            },
            min_game_length=20,
        ),
        Row(
            f"{owner}.for_lengths",
            {"lengths": values(0.0, any_length=True)},
            lambda it, folder: {"lengths": np.arange(20.0, 60.0)},
        ),
        Row(
            f"{owner}.compute_freshness_score",
            {"game_timestamp": number(optional=True), "current_time": number(optional=True)},
            lambda it, folder: {"game_timestamp": 0.0, "current_time": 9.0},
            "scorer",
        ),
        Row(
            f"{owner}.score_game",
            {
                "game_id": text(),
                "game_length": number(0.0),
                "winner": any_of(
                    *map(becomes, (-1, 3, 1.5, "1", math.nan, [])), becomes(None, fine=True)
                ),
                "elo_p1": number(optional=True),
                "elo_p2": number(optional=True),
                "move_entropy": number(0.0, optional=True),
                "game_timestamp": number(optional=True),
                "pre_computed_quality": number(0.0, 1.0, optional=True),
                "players": whole(2, 5),
                "surprise": number(0.0, optional=True),
                "current_time": number(optional=True),
            },
            lambda it, folder: dict(game),
            "scorer",
        ),
        Row(
            f"{owner}.score_game:seats",
            {"elos": ratings, "outcome": parts, "mean_values": parts},
            lambda it, folder: {
                "game_id": "g",
                "game_length": 50,
                "elos": None,
                "outcome": [1.0, 0.0],
                "mean_values": [0.5, 0.5],
            },
            "scorer",
        ),
        Row(
            f"{owner}.expression",
            {
                "columns": any_of(
                    *map(
                        becomes, ([], ["winner"], None, 3, "length", ["length", 3], ["length", []])
                    )
                ),
                "current_time": number(),
            },
            lambda it, folder: {"columns": ["length"], "current_time": 0.0},
            "scorer",
            says={"columns": "column"},
        ),
        Row(
            f"{owner}.score_frame",
            {"games": frame_changes(), "current_time": number()},
            lambda it, folder: {"games": games_frame(), "current_time": 100.0},
            "scorer",
            says={"games": "games|column"},
        ),
        Row(
            f"{owner}.compute_sample_weights",
            {"scores": scores, "temperature": number(0.0, above=True)},
            lambda it, folder: {"scores": unit(), "temperature": 1.0},
            "scorer",
        ),
        Row(
            f"{owner}.compute_sample_weights:records",
            {"scores": any_of(becomes([GameQualityScore("g", math.nan, 1, 1, 1, 1)]), EMPTY)},
            lambda it, folder: {"scores": [GameQualityScore("g", 0.5, 1, 1, 1, 1)] * 3},
            "scorer",
        ),
        state_row(owner, "scorer", "state"),
    ]


def sampler_rows() -> list[Row]:
    owner = "QualityWeightedSampler"
    return [
        built(
            owner,
            {
                "scores": values(0.0, 1.0, any_length=True),
                "num_samples": whole(1, optional=True),
                "replacement": flag(),
                "temperature": number(0.0, above=True),
                "seed": whole(0, 2**128),
                "rank": whole(0, 2),
                "world_size": whole(1),
            },
            scores=unit(),
            num_samples=5,
            temperature=1.0,
            world_size=2,
        ),
        Row(
            f"{owner}.__init__:weights",
            {
                "weights": values(0.0, any_length=True, others=(becomes(np.zeros(4)),)),
                "num_samples": whole(1, 9, optional=True),
            },
            lambda it, folder: {
                "scores": None,
                "weights": torch.from_numpy(unit()),
                "num_samples": 3,
                "replacement": False,
            },
        ),
        Row(f"{owner}.set_epoch", {"epoch": whole(0)}, lambda it, folder: {"epoch": 3}, "sampler"),
        Row(
            f"{owner}.draw",
            {"epoch": whole(0, optional=True)},
            lambda it, folder: {"epoch": 3},
            "sampler",
        ),
        Row(
            f"{owner}.importance_weights",
            {
                "indices": any_of(
                    FRACTIONS,
                    TRUTHS,
                    META,
                    WORDS,
                    holding(-1.0),
                    becomes("rubbish"),
                    becomes(np.array([20])),
                    becomes(np.array([-1])),
                    becomes(torch.tensor([20])),
                    becomes(np.array([[3]]), fine=True),
                    becomes(None, fine=True),
                ),
                "beta": number(0.0, 1.0),
            },
            lambda it, folder: {"indices": np.arange(5), "beta": 0.5},
            "sampler",
        ),
        Row(
            f"{owner}.state_dict",
            {"consumed": whole(0, 16)},
            lambda it, folder: {"consumed": 3},
            "sampler",
        ),
        state_row(owner, "sampler", "state"),
    ]


def miner_rows() -> list[Row]:
    owner = "HardExampleMiner"
    share = number(0.0, 1.0, above=True)
    facts = values(finite=False, optional=True)
    return [
        built(
            owner,
            {
                "buffer_size": whole(1, 2**30 + 1),
                "hard_fraction": number(0.0, 1.0),
                "loss_threshold_percentile": number(0.0, 100.0),
                "uncertainty_weight": number(0.0, 1e6),
                "decay_rate": share,
                "min_samples_before_mining": whole(0),
                "max_times_sampled": whole(1),
                "surprise_weight": number(0.0, 1e6),
                "max_game_share": share,
                "smoothing": share,
                "seed": any_of(*map(becomes, ("rubbish", -1, 1.5, object(), math.nan))),
            },
            buffer_size=10,
        ),
        Row(
            f"{owner}.record_batch",
            {
                "indices": rows(),
                "losses": values(finite=False),
                "uncertainties": facts,
                "surprises": facts,
                "reference_losses": facts,
                "games": rows(optional=True),
            },
            lambda it, folder: {
                "indices": torch.from_numpy(indices()),
                "losses": losses(),
                "uncertainties": unit(),
                "surprises": unit(),
                "reference_losses": unit(),
                "games": indices(),
            },
            "miner",
        ),
        Row(
            f"{owner}.load_examples",
            {
                "indices": rows(changes=(becomes([1] * BATCH),)),
                "hardness": values(0.0, others=(holding(1e300),)),
                "games": rows(optional=True),
            },
            lambda it, folder: {"indices": indices(), "hardness": losses(), "games": indices()},
            "miner",
        ),
        Row(
            f"{owner}.get_hard_indices",
            {"num_samples": whole(0), "return_scores": flag()},
            lambda it, folder: {"num_samples": 2},
            "miner",
        ),
        Row(f"{owner}.hardest", {"n": whole(0)}, lambda it, folder: {"n": 2}, "miner"),
        Row(
            f"{owner}.get_sample_weights",
            {
                # any number of rows, also none
                "indices": any_of(
                    DEEP,
                    META,
                    WORDS,
                    FRACTIONS,
                    TRUTHS,
                    NONE,
                    becomes(3),
                    becomes([-1]),
                    becomes([2**31]),
                    Change("empty", lambda good: good[:0], fine=True),
                ),
                "base_weight": number(0.0),
                "hard_weight": number(0.0),
                "count": flag(),
            },
            lambda it, folder: {"indices": indices(), "base_weight": 1.0, "hard_weight": 2.0},
            "miner",
        ),
        Row(
            f"{owner}.create_mixed_batch_indices",
            {
                "batch_size": whole(1, 2**24 + 1),
                "all_indices": any_of(
                    *map(becomes, (0, -5, None, 1.5, "rubbish", [], 2**40, [1.0, 2.0])),
                    becomes(np.ones((2, 2), dtype=int)),
                    becomes(torch.arange(9, device="meta")),
                    becomes(range(-3, 4)),
                    becomes(np.array([5, -1, *range(9)])),
                    becomes(range(3), fine=True),
                    becomes(torch.arange(40), fine=True),
                ),
            },
            lambda it, folder: {"batch_size": 4, "all_indices": 40},
            "miner",
        ),
        state_row(owner, "miner", "state"),
    ]


def tracker_rows() -> list[Row]:
    owner = "PerSampleLossTracker"
    row = whole(0, 2**30 + 1)
    parts = values(finite=False, optional=True)
    return [
        built(
            owner,
            {
                "max_samples": whole(1, 2**30 + 1),
                "history_epochs": whole(1, 10_001),
                "percentile_hard": number(0.0, 100.0),
                "learned_loss": number(optional=True),
                "early_epochs": whole(1),
            },
            max_samples=10,
        ),
        Row(
            f"{owner}.record_batch",
            {
                "batch_indices": rows(),
                "losses": values(finite=False),
                "epoch": whole(0),
                "batch_idx": whole(0),
                "policy_losses": parts,
                "value_losses": parts,
            },
            lambda it, folder: {
                "batch_indices": indices(),
                "losses": losses(),
                "epoch": 3,
                "batch_idx": 2,
                "policy_losses": unit(),
                "value_losses": unit(),
            },
            "tracker",
            says={"batch_indices": "batch_indices|losses"},
        ),
        Row(
            f"{owner}.get_hardest_samples", {"n": whole(0)}, lambda it, folder: {"n": 3}, "tracker"
        ),
        *(
            Row(
                f"{owner}.{name}",
                {"sample_idx": row},
                lambda it, folder: {"sample_idx": 3},
                "tracker",
            )
            for name in (
                "get_sample_history",
                "get_record",
                "get_learning_curve",
                "get_forgetting_count",
            )
        ),
        state_row(owner, "tracker", "state"),
    ]
