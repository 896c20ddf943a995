"""The enhancements that a facade is made of, built from its config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from ringrift_pipeline.enhancements.checkpoint_averaging import CheckpointAverager
from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.gradient_management import (
    AdaptiveGradientClipper,
    GradientAccumulator,
)
from ringrift_pipeline.enhancements.hard_example_mining import HardExampleMiner
from ringrift_pipeline.enhancements.learning_rate_base import LearningRateSchedule
from ringrift_pipeline.enhancements.learning_rate_scheduling import build_scheduler
from ringrift_pipeline.enhancements.per_sample_loss import PerSampleLossTracker
from ringrift_pipeline.enhancements.training_stability import LossMonitor

ForwardContext = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass
class FacadeParts:
    """Each enhancement, or None where the config switches it off."""

    accumulator: GradientAccumulator
    clipper: AdaptiveGradientClipper | None
    scheduler: LearningRateSchedule | None
    miner: HardExampleMiner | None
    tracker: PerSampleLossTracker | None
    averager: CheckpointAverager | None
    monitor: LossMonitor | None
    scaler: Any  # torch.amp.GradScaler | None
    ewc: EWCRegularizer | None = None  # the caller's

    def present(self) -> dict[str, Any]:
        """The enhancements that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}


def build_parts(
    optimizer: torch.optim.Optimizer, config: FacadeConfig, device: torch.device
) -> tuple[FacadeParts, ForwardContext]:
    """The enhancements that a config asks for, and the context of the forward pass."""
    context, scaler = forward_precision(config.precision, device)
    parts = FacadeParts(
        accumulator=GradientAccumulator(
            config.gradient_accumulation_steps, config.max_grad_norm or None
        ),
        clipper=None,
        scheduler=None,
        miner=None,
        tracker=None,
        averager=None,
        monitor=None,
        scaler=scaler,
    )
    if config.enable_gradient_clipping:
        parts.clipper = AdaptiveGradientClipper(
            config.initial_max_norm,
            config.clip_percentile,
            config.clip_history,
            config.min_clip,
            config.max_clip,
            mode=config.clip_mode,
            clip_factor=config.clip_factor,
            agc_ratio=config.agc_ratio,
        )
    if config.schedule is not None:
        parts.scheduler = build_scheduler(optimizer, config.schedule, config.total_steps)
    if config.enable_hard_mining:
        parts.miner = HardExampleMiner(
            config.hard_buffer_size,
            config.hard_fraction,
            config.hard_loss_threshold_percentile,
            config.hard_uncertainty_weight,
            config.hard_decay_rate,
            config.hard_min_samples_before_mining,
            config.hard_max_times_sampled,
            surprise_weight=config.hard_surprise_weight,
            max_game_share=config.hard_max_game_share,
            seed=config.seed,
        )
    if config.track_per_sample_loss:
        parts.tracker = PerSampleLossTracker(
            config.loss_tracker_max_samples, config.loss_tracker_history_epochs
        )
    if config.enable_averaging:
        parts.averager = CheckpointAverager(
            half_life_samples=config.averaging_half_life_samples,
            warmup_fraction=config.averaging_warmup_fraction,
        )
    if config.enable_anomaly_detection:
        parts.monitor = LossMonitor(
            config.spike_factor, config.anomaly_window, config.divergence_patience
        )
    return parts, context


def forward_precision(wanted: str, device: torch.device) -> tuple[ForwardContext, Any]:
    """The context of the forward pass, and the loss scaler that float16 needs (or None).

    Args:
        wanted: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 on a CUDA device
            that has it, else float32.
        device: where the model is.
    """
    if wanted == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        wanted = "bfloat16" if bfloat16 else "float32"
    if wanted == "float32":
        return contextlib.nullcontext, None
    dtype = getattr(torch, wanted)
    scaler = torch.amp.GradScaler(device.type) if wanted == "float16" else None
    return lambda: torch.autocast(device.type, dtype=dtype), scaler


__all__ = ["FacadeParts", "ForwardContext", "build_parts", "forward_precision"]
