"""Rows of calibration, its reports and temperatures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements.calibration import calibration_report, fit_temperature

from ..small_training import BATCH, SEATS, Net, make_batch
from .changes import (
    ARRAYS,
    COMPLEX,
    DEEP,
    EMPTY,
    QUANTIZED,
    RAGGED,
    SPARSE,
    Broken,
    Change,
    Kind,
    any_of,
    becomes,
    holding,
    labels,
    number,
    of_class,
    tensor,
    values,
    whole,
)
from .models import NO_ITERABLES
from .row import Arguments, Row, built, device, indices, shares, state_row, unit


def calibration_rows() -> list[Row]:
    owner = "CalibrationAutomation"
    names = labels()

    between = Kind((*number(0.0, 1.0, above=True).changes, becomes(0.0), becomes(1.0), becomes(2)))
    odd_logits = (holding(math.nan), holding(math.inf), RAGGED, *map(becomes, ([], None, [None])))

    def logits_of(it: Any, folder: Path) -> Arguments:
        targets = torch.from_numpy(shares()).float()
        model = torch.randn(BATCH, SEATS, generator=torch.Generator().manual_seed(0))
        return {"model": model, "dataloader": targets, "games": indices() // 10}

    def loader_of(it: Any, folder: Path) -> Arguments:
        batches = [make_batch(i) for i in range(2)]
        pairs = [(b["features"], b["value_targets"]) for b in batches]
        return {"model": Net(), "dataloader": pairs, "device": None, "games": np.arange(16) // 2}

    options = {
        "bins": whole(1, 1001),
        "bootstrap": whole(20, 100_001),
        "confidence": between,
        "seed": whole(0, 2**128),
    }
    return [
        Row(
            "calibration_report",
            {
                "predictions": values(0.0, 1.0),
                "outcomes": values(0.0, 1.0),
                "games": names,
                "phases": names,
                **options,
            },
            lambda it, folder: {
                "predictions": unit(),
                "outcomes": torch.from_numpy(unit().round()),
                "games": torch.from_numpy(indices()),
                "phases": np.array(["a"] * BATCH),
                "bootstrap": 20,
            },
        ),
        Row(
            "draw_reliability",
            {
                "reports": any_of(
                    *map(becomes, (None, 3, "rubbish", [], {}, {"a": 3}, {"a": {}}, {3: {}})),
                    Change("lacks bins", lambda good: {"a": {**good["a"], "bins": []}}),
                ),
                "path": any_of(*map(becomes, (None, 3, [], "", object(), *ARRAYS))),
                "dpi": whole(1, 1001),
            },
            lambda it, folder: {
                "reports": {"a": calibration_report(unit(), unit().round(), bootstrap=20)},
                "path": folder / "reliability.png",
                "dpi": 50,
            },
        ),
        Row(
            "fit_temperature",
            {
                "logits": any_of(
                    *tensor().changes[4:], *odd_logits, becomes("rubbish"), becomes(3)
                ),
                "targets": any_of(
                    *tensor().changes[4:], *odd_logits, EMPTY, becomes("rubbish"), becomes(3)
                ),
                "games": names,
                "judged_fraction": between,
                **options,
            },
            lambda it, folder: {
                "logits": logits_of(it, folder)["model"],
                "targets": logits_of(it, folder)["dataloader"],
                "games": indices() // 10,
                "bootstrap": 20,
            },
            says={"logits": "logits", "targets": "targets"},
        ),
        Row(
            "value_probabilities",
            {
                "logits": any_of(
                    *map(becomes, (None, 3, "rubbish", [1.0], *ARRAYS[:3], torch.ones(()))),
                    *(DEEP, SPARSE, QUANTIZED, COMPLEX),
                    *map(becomes, (torch.ones(2, dtype=torch.int64), torch.ones(2, 2, 2))),
                ),
                "temperature": number(0.0, above=True),
            },
            lambda it, folder: {"logits": torch.zeros(3, 2), "temperature": 2.0},
        ),
        Row(
            "TemperatureFit.from_dict",
            {
                "data": any_of(
                    *map(becomes, (None, 3, "rubbish", [], {})),
                    Change("no number", lambda good: {**good, "temperature": "1"}),
                    Change("no pair", lambda good: {**good, "log_loss_gain_interval": 3}),
                    Change("no report", lambda good: {**good, "before": {}}),
                )
            },
            lambda it, folder: {
                "data": fit_temperature(
                    logits_of(it, folder)["model"],
                    logits_of(it, folder)["dataloader"],
                    bootstrap=20,
                ).to_dict()
            },
            says={"data": "data|temperature_fit"},
        ),
        built(
            owner,
            {
                "deviation_threshold": number(0.0, 1.0, above=True),
                "check_interval": whole(1),
                "min_samples": whole(1),
                "window_size": whole(1),
                "min_games": whole(1),
                **options,
                "value_range": any_of(
                    *map(
                        becomes, (None, 1, "ab", (1.0, 0.0), (0.0,), (0.0, math.nan), (0, math.inf))
                    )
                ),
            },
            deviation_threshold=0.05,
            min_samples=10,
            window_size=100,
        ),
        Row(
            f"{owner}.add_samples",
            {
                "predictions": values(0.0, 1.0),
                "outcomes": values(0.0, 1.0),
                "games": names,
                "phases": names,
            },
            lambda it, folder: {
                "predictions": torch.from_numpy(unit()),
                "outcomes": torch.from_numpy(unit().round()),
                "games": indices(),
                "phases": np.array(["a"] * BATCH),
            },
            "calibration",
        ),
        Row(
            f"{owner}.should_recalibrate",
            {"epoch": whole(0, optional=True)},
            lambda it, folder: {"epoch": 30},
            "calibration",
        ),
        Row(
            f"{owner}.compute_optimal_temperature:logits",
            {
                "model": tensor(holding(math.nan), holding(math.inf)),
                "dataloader": tensor(holding(math.nan), holding(-1.0), holding(2.0), becomes([])),
                "games": names,
                "device": device(),
            },
            logits_of,
            "calibration",
        ),
        Row(
            f"{owner}.compute_optimal_temperature:model",
            {
                "model": of_class(None, Broken(), Broken((torch.ones(BATCH, 5),) * 3)),
                "dataloader": any_of(
                    *map(becomes, ([], None, 3, "rubbish", [1], [{}], [{"features": 1}], [()])),
                    *map(becomes, NO_ITERABLES),
                ),
                "device": device(),
                "games": names,
            },
            loader_of,
            "calibration",
            says={"model": "model|dataloader"},  # what is no module may be logits
        ),
        Row(
            f"{owner}.report",
            {"path": any_of(becomes(3), becomes([]), becomes(None, fine=True))},
            lambda it, folder: it.add_samples(unit(), unit().round()) or {"path": None},
            "calibration",
        ),
        state_row(owner, "calibration", "state"),
    ]
