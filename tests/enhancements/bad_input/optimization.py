"""Rows of gradients, learning rates and averaged weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ringrift_pipeline.enhancements import TrainingConfig

from ..small_training import Net, adam
from .changes import Change, any_of, becomes, choice, flag, number, of_class, whole
from .row import Row, built, device, optimizer, state_row, with_gradients


def gradient_rows() -> list[Row]:
    above = number(0.0, above=True)
    gradients = any_of(
        Change("one parameter fewer", lambda good: good[:-1]),
        *map(becomes, (None, "rubbish", 3, [1, 2], [None] * 6, np.array(3))),
    )
    accumulator = "GradientAccumulator"
    clipper = "AdaptiveGradientClipper"
    return [
        built(
            accumulator,
            {
                "accumulation_steps": whole(1),
                "max_grad_norm": any_of(
                    *map(becomes, ("1", "", False, -1.0, math.nan, math.inf, [1.0]))
                ),
                "batch_size": whole(1),
            },
            accumulation_steps=2,
            max_grad_norm=1.0,
            batch_size=4,
        ),
        Row(
            f"{accumulator}.should_step",
            {"batch_idx": whole(0, 5, optional=True), "num_batches": whole(1, optional=True)},
            lambda it, folder: {"batch_idx": 3, "num_batches": 5},
            "accumulator",
        ),
        Row(
            f"{accumulator}.scale_loss",
            {
                "loss": any_of(
                    becomes(None),
                    becomes("rubbish"),
                    becomes(1.0),
                    becomes(torch.ones(2)),
                    becomes(torch.ones(0)),
                    becomes(torch.ones((), dtype=torch.int64)),
                ),
                "num_samples": whole(1, optional=True),
            },
            lambda it, folder: {"loss": torch.ones((), requires_grad=True), "num_samples": 3},
            "accumulator",
        ),
        Row(
            f"{accumulator}.step",
            {
                "optimizer": of_class(None, Net()),
                "model": of_class(optimizer(), optional=True),
                "scaler": of_class(1.0, optional=True),
                "clipper": of_class(optional=True),
            },
            lambda it, folder: {"optimizer": adam(with_gradients()), "model": None},
            "accumulator",
        ),
        state_row(accumulator, "accumulator"),
        built(
            clipper,
            {
                "initial_max_norm": above,
                "percentile": number(0.0, 100.0, above=True),
                "history_size": whole(1),
                "min_clip": above,
                "max_clip": above,
                "mode": choice(),
                "clip_factor": above,
                "agc_ratio": above,
                "agc_eps": above,
            },
            initial_max_norm=1.0,
            percentile=50.0,
            history_size=5,
            min_clip=0.1,
            max_clip=10.0,
            mode="agc",
            clip_factor=2.0,
            agc_ratio=0.1,
            agc_eps=1e-3,
        ),
        *(
            Row(
                f"{clipper}.update_and_clip:{mode}",
                {"parameters": gradients},
                lambda it, folder: {"parameters": list(with_gradients().parameters())},
                f"clipper-{mode}",
            )
            for mode in ("parameter", "agc", "global")
        ),
        state_row(clipper, "clipper-parameter"),
    ]


def schedule_rows() -> list[Row]:
    found = []
    for owner, use in (
        ("AdaptiveLRScheduler", "adaptive"),
        ("WarmRestartsScheduler", "warm-restarts"),
        ("ConstantScheduler", "constant"),
    ):
        figures = {
            "train_loss": number(),
            "val_loss": number(optional=True),
            "current_elo": number(optional=True),
        }
        found += [
            Row(
                f"{owner}.on_validation",
                figures,
                lambda it, folder: {"train_loss": 1.0, "val_loss": 1.0, "current_elo": 1.0},
                use,
            ),
            Row(
                f"{owner}.scale_lr",
                {"factor": number(0.0, above=True)},
                lambda it, folder: {"factor": 0.5},
                use,
            ),
            state_row(owner, use),
        ]
    warm = "WarmRestartsScheduler"
    adaptive = "AdaptiveLRScheduler"
    return [
        *found,
        Row(
            f"{adaptive}.step",
            {
                "train_loss": number(),
                "current_elo": number(optional=True),
                "val_loss": number(optional=True),
            },
            lambda it, folder: {"train_loss": 1.0, "current_elo": 1.0, "val_loss": 1.0},
            "adaptive",
        ),
        Row(
            f"{adaptive}.warm_restart",
            {"lr_factor": number(0.0, above=True)},
            lambda it, folder: {"lr_factor": 1.0},
            "adaptive",
        ),
        built(
            adaptive,
            {
                "optimizer": of_class(None, Net()),
                "base_lr": number(1e-5, 0.1),
                "min_lr": number(0.0, 0.01),
                "max_lr": number(1e-5),
                "elo_lookback": whole(2),
                "loss_lookback": whole(3),
                "elo_stagnation_threshold": number(0.0),
                "loss_oscillation_threshold": number(0.0, above=True),
                "lr_increase_factor": number(1.0),
                "lr_decrease_factor": number(0.0, 1.0, above=True),
                "warmup_epochs": whole(0),
                "plateau_patience": whole(1),
                "plateau_threshold": number(0.0),
                "warmup_steps": whole(0),
            },
            optimizer=optimizer(),
            min_lr=1e-5,
            base_lr=0.01,
            max_lr=0.1,
        ),
        built(
            "ConstantScheduler",
            {"optimizer": of_class(None, Net()), "warmup_steps": whole(0)},
            optimizer=optimizer(),
        ),
        built(
            warm,
            {
                "optimizer": of_class(None, Net()),
                "T_0": whole(1),
                "T_mult": whole(1),
                "eta_min": number(0.0, 0.01),
                "eta_max": number(0.0, above=True, optional=True),
                "last_epoch": whole(-1),
                "warmup_steps": whole(0),
            },
            optimizer=optimizer(),
            eta_min=1e-6,
        ),
        Row(
            f"{warm}.step",
            {"epoch": number(0.0, 2.0**63, optional=True)},
            lambda it, folder: {"epoch": 2.5},
            "warm-restarts",
        ),
        Row(
            "build_scheduler",
            {
                "optimizer": of_class(None, Net()),
                "schedule": of_class(None, TrainingConfig()),
                "total_steps": whole(1),
            },
            lambda it, folder: {
                "optimizer": optimizer(),
                "schedule": TrainingConfig().schedule,
                "total_steps": 20,
            },
        ),
    ]


def write_model(folder: Path, name: str = "m.safetensors") -> str:
    save_file(Net(3).state_dict(), folder / name)
    return str(folder / name)


def spoilt(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The last one NaN."""
    name = list(tensors)[-1]
    return {**tensors, name: torch.full_like(tensors[name], math.nan)}


def spoilt_net() -> nn.Module:
    model = Net()
    model.load_state_dict(spoilt(model.state_dict()))
    return model


def averaging_rows() -> list[Row]:
    owner = "CheckpointAverager"
    broken_weights = any_of(
        Change("lacks a tensor", lambda good: dict(list(good.items())[1:])),
        Change("another shape", lambda good: {**good, "body.bias": torch.ones(2)}),
        Change("NaN", lambda good: {**good, "body.bias": torch.full((7,), math.nan)}),
        Change("on meta", lambda good: {**good, "body.bias": torch.ones(7, device="meta")}),
        *map(becomes, (None, "rubbish", 3, {}, [1], {"a": 1}, {3: torch.ones(1)})),
    )
    return [
        built(
            owner,
            {
                "num_checkpoints": whole(1),
                "checkpoint_dir": any_of(becomes(3), becomes(object()), becomes(None, fine=True)),
                "keep_on_disk": flag(),
                "half_life_samples": number(0.0, above=True),
                "warmup_fraction": number(0.0, 1.0, above=True),
                "device": device(),
            },
            num_checkpoints=2,
        ),
        Row(
            f"{owner}.update",
            {
                "model": of_class(None, nn.Linear(2, 2), nn.Identity(), optimizer(), spoilt_net()),
                "num_samples": whole(1),
                "check_finite": flag(),
            },
            lambda it, folder: {"model": Net(), "num_samples": 4, "check_finite": True},
            "averager-memory",
        ),
        Row(
            f"{owner}.check_state",
            {
                "state_dict": any_of(
                    *map(becomes, (None, "rubbish", 3, [], {})),
                    Change("NaN", lambda good: {**good, "ema": spoilt(good["ema"])}),
                ),
                "model": of_class(None, nn.Linear(2, 2)),
            },
            lambda it, folder: {"state_dict": it.state_dict(), "model": Net()},
            "averager-memory",
            says={"state_dict": "state_dict|ema", "model": "model|ema"},
        ),
        Row(
            f"{owner}.decay",
            {"num_samples": whole(1)},
            lambda it, folder: {"num_samples": 4},
            "averager-memory",
        ),
        *(
            Row(
                f"{owner}.add_checkpoint:{where}",
                {"state_dict": broken_weights, "epoch": whole(0, optional=True)},
                lambda it, folder: {"state_dict": Net().state_dict(), "epoch": 4},
                f"averager-{where}",
                says={"state_dict": "state_dict|checkpoint"},
            )
            for where in ("memory", "disk")
        ),
        Row(
            f"{owner}.get_averaged_state_dict",
            {"kind": choice(optional=True)},
            lambda it, folder: {"kind": "ema"},
            "averager-memory",
        ),
        state_row(owner, "averager-memory"),
        Row(
            "average_checkpoints",
            {
                "checkpoint_paths": any_of(
                    *map(becomes, ([], None, 3, "nothing", ["nothing"], [3], [__file__]))
                ),
                "device": device(),
            },
            lambda it, folder: {"checkpoint_paths": [write_model(folder)], "device": "cpu"},
            says={"checkpoint_paths": "checkpoint"},
        ),
    ]
