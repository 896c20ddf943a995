"""Rows of seeds, configuration, feedback and the facade."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ringrift_pipeline.enhancements import FacadeConfig, TrainingConfig

from ..small_training import BATCH, ROWS, Net, adam, make_batch
from .changes import (
    ARRAYS,
    COMPLEX,
    DEEP,
    EMPTY,
    FLAT,
    FRACTIONS,
    META,
    NONE,
    SHORT,
    TRUTHS,
    UNREADABLE,
    WORDS,
    Change,
    Kind,
    any_of,
    becomes,
    choice,
    flag,
    holding,
    number,
    of_class,
    rows,
    tensor,
    text,
    values,
    whole,
)
from .models import SHAPES, loss_kinds
from .row import Row, built, device, indices, losses, optimizer, state_row, unit


def seed_rows() -> list[Row]:
    owner = "SeedManager"
    word = whole(0, 2**32)
    return [
        built(
            owner,
            {"seed": whole(0, 2**128, optional=True), "deterministic": flag(), "benchmark": flag()},
            seed=3,
        ),
        *(
            Row(f"{owner}.{name}", {"offset": word}, lambda it, folder: {"offset": 3}, "seeds")
            for name in ("seed_sequence", "get_numpy_generator", "fork")
        ),
        Row(
            f"{owner}.get_generator",
            {"offset": word, "device": device()},
            lambda it, folder: {"offset": 3, "device": "cpu"},
            "seeds",
        ),
        Row(f"{owner}.advance", {"steps": whole(0, 2**32)}, lambda it, folder: {"steps": 3}, "seeds"),
        state_row(owner, "seeds"),
        state_row(owner, "seeds", "state", "load_state"),
        Row(
            "set_reproducible_seed",
            {"seed": whole(0, 2**128), "deterministic": flag()},
            lambda it, folder: {"seed": 3, "deterministic": False},
        ),
    ]  # fmt: skip


def config_rows() -> list[Row]:
    owner = "TrainingConfig"
    settings = any_of(
        *map(
            becomes,
            (
                3,
                "rubbish",
                [1],
                {"training.batch_size": -4},
                {"training": {"batch_size": math.nan}},
                {"training": 3},
                {"seed": []},
                {"rubbish": 1},
                {3: 4},
                {"optimizer.betas": (1.0,)},
                {"optimizer.learning_rate": math.inf},
                [],
                0,
                *ARRAYS,
            ),
        )
    )
    named = "settings|training|batch_size|seed|rubbish|3|betas|learning_rate"
    config = any_of(*map(becomes, (3, [], object(), *ARRAYS)), becomes(None, fine=True))
    presets = any_of(*map(becomes, ("rubbish", "", 3, [], object())))
    bounds = {
        "policy_weight": number(0.0),
        "gradient_accumulation_steps": whole(1),
        "hard_fraction": number(0.0, 1.0),
        "lr_backoff": number(0.0, 1.0, above=True),
        "precision": choice(),
        "value_kind": choice(),
        "clip_mode": choice(),
        "schedule": of_class(TrainingConfig(), optional=True),
        "total_steps": whole(1),
        "validate_targets": Kind((*flag().changes[1:], becomes(None, fine=True))),
        "enable_hard_mining": flag(),
        "hard_buffer_size": whole(1, 2**30 + 1),
        "hard_uncertainty_weight": number(0.0, 1e6),
        "loss_tracker_history_epochs": whole(1, 10_001),
        "seed": whole(0),
        "min_clip": number(0.0, 10.0, above=True),
    }
    return [
        Row(
            f"{owner}.load",
            {
                "preset": any_of(*map(becomes, ("rubbish", "", 3, [])), becomes(None, fine=True)),
                "file": any_of(
                    *map(becomes, ("nothing.toml", __file__, 3, [])), becomes(None, fine=True)
                ),
                "environ": any_of(
                    *map(
                        becomes,
                        (
                            3,
                            "rubbish",
                            {"RINGRIFT_TRAINING__BATCH_SIZE": "-4"},
                            {"RINGRIFT_TRAINING__BATCH_SIZES": "4"},
                            {"RINGRIFT_SEED": "x"},
                        ),
                    ),
                    becomes({"RINGRIFT": "x"}, fine=True),
                ),
                "overrides": settings,
                "base": of_class(FacadeConfig(), optional=True),
                "config": config,
                "origin": text(),
            },
            lambda it, folder: {"preset": "smoke", "environ": {}, "overrides": {"seed": 3}},
            says={
                "file": "file",
                "environ": "environ|batch_size|BATCH_SIZE|seed",
                "overrides": f"overrides|{named}",
            },
        ),
        Row(f"{owner}.preset", {"name": presets, "config": config}, lambda it, folder: {"name": "smoke"},
            says={"name": "preset"}),
        Row(
            f"{owner}.from_dict",
            {"data": settings},
            lambda it, folder: {"data": {"seed": 3}},
            says={"data": f"data|{named}"},
        ),
        Row(
            f"{owner}.with_overrides",
            {"overrides": settings},
            lambda it, folder: {"overrides": {"seed": 3}},
            says={"overrides": f"overrides|{named}"},
            call=lambda it, arguments: TrainingConfig().with_overrides(**arguments),
        ),
        built(
            "FacadeConfig",
            bounds,
            says={"total_steps": "total_steps"},
            schedule=TrainingConfig().schedule,
            total_steps=10,
        ),
        Row(
            "FacadeConfig.from_training_config",
            {"config": of_class(None, FacadeConfig()), "total_steps": whole(1)},
            lambda it, folder: {"config": TrainingConfig(), "total_steps": 10},
        ),
    ]  # fmt: skip


def feedback_rows() -> list[Row]:
    owner = "EvaluationFeedbackHandler"
    above = number(0.0, above=True)
    share = number(0.0, 1.0, above=True)
    settings = {
        "optimizer": of_class(Net(), optional=True),
        "config_key": any_of(*map(becomes, (None, 3, "", []))),
        "min_lr": number(0.0, 1e-3),
        "max_lr": number(1e-6),
        "elo_history_window": whole(2),
        "lr_increase_factor": number(1.0),
        "lr_decrease_factor": share,
        "lr_plateau_factor": share,
        "elo_rising_threshold": number(0.0),
        "elo_falling_threshold": number(high=0.0),
        "exploration_plateau_factor": above,
        "selfplay_plateau_factor": above,
        "selfplay_falling_factor": above,
        "confidence": share,
        "min_evaluations": whole(2, 6),
        "plateau_slack": number(1.0),
    }
    good = {"optimizer": optimizer(), "config_key": "hex8_2p"}
    wide = 1e7  # Elo
    return [
        built(owner, settings, **good),
        Row(
            "create_evaluation_feedback_handler",
            {name: settings[name] for name in good},
            lambda it, folder: dict(good),
        ),
        Row(
            f"{owner}.on_evaluation",
            {
                "evaluation_id": any_of(*map(becomes, (None, 3, "", []))),
                "elo": number(-wide, wide),
                "low": number(-wide, 1200.0),
                "high": number(1200.0, wide),
                "number": whole(0, optional=True),
                "confidence": share,
            },
            lambda it, folder: {
                "evaluation_id": "new",
                "elo": 1200.0,
                "low": 1190.0,
                "high": 1210.0,
                "number": 9,
                "confidence": 0.95,
            },
            "feedback",
        ),
        Row(
            "fit_trend",
            {
                "numbers": values(others=(becomes(np.ones(BATCH)),)),
                "ratings": values(),
                "errors": values(0.0, others=(becomes(np.zeros(BATCH)),)),
                "confidence": share,
            },
            lambda it, folder: {
                "numbers": np.arange(BATCH),
                "ratings": unit(),
                "errors": unit(),
                "confidence": 0.9,
            },
        ),
        Row(
            "bounded_scale",
            {
                "factor": above,
                "smallest": number(0.0, 2.0, above=True),
                "largest": number(1.0),
                "low": number(0.0, 4.0),
                "high": number(0.5),
            },
            lambda it, folder: {
                "factor": 2.0,
                "smallest": 1.0,
                "largest": 2.0,
                "low": 0.5,
                "high": 4.0,
            },
        ),
        Row(
            f"{owner}.apply_lr_adjustment",
            {"current_epoch": whole(0)},
            lambda it, folder: {"current_epoch": 3},
            "feedback",
        ),
        state_row(owner, "feedback"),
    ]


def renamed(name: str, wrong: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Gives an entry of a mapping another name."""
    return lambda good: {wrong if key == name else key: value for key, value in good.items()}


def facade_rows() -> list[Row]:
    owner = "TrainingEnhancementsFacade"
    weights = values(0.0, lists=False, optional=True, others=(becomes(torch.zeros(BATCH)),))
    facts = values(finite=False, optional=True)
    return [
        Row(
            f"{owner}.__init__",
            {
                "model": of_class(None, nn.Identity(), optimizer()),
                "optimizer": of_class(None, Net(), optimizer()),
                "config": of_class(TrainingConfig(), optional=True),
                "loss_fn": any_of(becomes(3), becomes("rubbish"), becomes(None, fine=True)),
                "ewc": of_class(optional=True),
                "replicas": of_class(optional=True),
            },
            lambda it, folder: (lambda model: {"model": model, "optimizer": adam(model)})(Net()),
        ),
        Row(
            f"{owner}.train_step:parts",
            {
                "features": any_of(SHORT, META, NONE, EMPTY),
                "policy_targets": tensor(becomes(torch.full((BATCH,), 99)), FRACTIONS),
                "value_targets": tensor(holding(math.nan), holding(-0.5)),
                "indices": rows(optional=True, changes=(becomes(np.full(BATCH, ROWS)),)),
                "weights": weights,
                "legal_mask": loss_kinds()["legal_mask"],
                "games": rows(optional=True),
                "surprise": facts,
                "reference_loss": facts,
            },
            lambda it, folder: make_batch(3),
            "facade",
            says={**SHAPES, "features": "features|policy_targets|legal_mask"},
            call=lambda it, arguments: it.train_step(arguments),
        ),
        Row(
            f"{owner}.train_step",
            {
                "batch": any_of(
                    *map(becomes, (None, 3, "rubbish", [], {}, (1, 2), {"features": torch.ones(1)})),
                    *(
                        Change(f"{wrong} in place of {name}", renamed(name, wrong))
                        for name, wrong in (
                            ("weights", "weight"),
                            ("indices", "index"),
                            ("legal_mask", "mask"),
                            ("games", "extra"),
                        )
                    ),
                    Change("a tuple", lambda b: tuple(list(b.values())[:3]), fine=True),
                )
            },
            lambda it, folder: {"batch": make_batch(3)},
            "facade",
        ),
        Row(
            f"{owner}.set_total_epochs",
            {"total_epochs": whole(1)},
            lambda it, folder: {"total_epochs": 3},
            "facade",
        ),
        Row(
            f"{owner}.get_curriculum_lr_scale",
            {"progress": any_of(*map(becomes, ("1", math.nan, [1.0], True)),
                                *(becomes(x, fine=True) for x in (-1.0, 2.0, None)))},
            lambda it, folder: {"progress": 0.5},
            "facade",
        ),
        Row(
            f"{owner}.set_quality_scores",
            {"scores": values(0.0, 1.0, optional=True, any_length=True), "temperature": number(0.0, above=True, optional=True)},
            lambda it, folder: {"scores": np.linspace(0.1, 0.9, ROWS), "temperature": 2.0},
            "facade",
        ),
        Row(
            f"{owner}.get_hard_indices",
            {"num_samples": whole(0)},
            lambda it, folder: {"num_samples": 2},
            "facade",
        ),
        Row(
            f"{owner}.create_mixed_batch_indices",
            {"batch_size": whole(1, 2**24 + 1), "all_indices": any_of(*map(becomes, (0, -5, None, "rubbish", [])))},
            lambda it, folder: {"batch_size": 4, "all_indices": ROWS},
            "facade",
        ),
        *(
            Row(
                f"{owner}.{method}",
                {
                    "what": any_of(*map(becomes, (3, None, ["no data"], object(), b"no data"))),
                    "rows": any_of(
                        *(FLAT, DEEP, *UNREADABLE, WORDS, COMPLEX, FRACTIONS, TRUTHS),
                        *map(becomes, ("rubbish", 7, None, [-1], [None], [2**70])),
                    ),
                },
                lambda it, folder: {"what": "no data", "rows": np.arange(3)},
                "facade",
            )
            for method in ("refuse_batch", "roll_back")
        ),
        Row(f"{owner}.get_hardest_samples", {"n": whole(0)}, lambda it, folder: {"n": 2}, "facade"),
        Row(
            f"{owner}.get_weighted_loss",
            {
                "per_sample_losses": tensor(EMPTY),
                "batch_indices": rows(optional=True),
                "weights": weights,
            },
            lambda it, folder: {
                "per_sample_losses": losses(),
                "batch_indices": indices(),
                "weights": torch.ones(BATCH),
            },
            "facade",
            says={"per_sample_losses": "per_sample_losses|batch_indices",
                  "batch_indices": "batch_indices"},
        ),
        Row(
            f"{owner}.record_batch",
            {
                "batch_indices": rows(),
                "per_sample_losses": values(finite=False),
                "uncertainties": facts,
            },
            lambda it, folder: {
                "batch_indices": indices(),
                "per_sample_losses": losses(),
                "uncertainties": unit(),
            },
            "facade",
            says={"batch_indices": "batch_indices|per_sample_losses"},
        ),
        Row(
            f"{owner}.on_epoch_end",
            {
                "val_loss": any_of(*map(becomes, ("1", [1.0], 1j, True, 10**400, np.complex64(1j))),
                                   *(becomes(x, fine=True) for x in (math.nan, math.inf, None))),
                "current_elo": number(optional=True),
            },
            lambda it, folder: {"val_loss": 1.0, "current_elo": 1200.0},
            "facade",
        ),
        Row(
            f"{owner}.on_validation",
            {
                "val_loss": any_of(*map(becomes, ("1", [1.0], 1j, True, 10**400, np.complex64(1j))),
                                   *(becomes(x, fine=True) for x in (math.nan, math.inf, None))),
                "current_elo": number(optional=True),
            },
            lambda it, folder: {"val_loss": 1.0, "current_elo": 1200.0},
            "facade",
        ),
        Row(
            f"{owner}.state_dict",
            {"include_model": flag()},
            lambda it, folder: {"include_model": True},
            "facade",
        ),
        state_row(owner, "facade", "state"),
    ]  # fmt: skip
