"""Which enhancements a training run uses, and how: the facade's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from ringrift_pipeline.enhancements.argument_checks import (
    COUNTABLE,
    check_choice,
    check_flag,
    check_number,
    check_whole,
)
from ringrift_pipeline.enhancements.config_groups import ScheduleConfig
from ringrift_pipeline.enhancements.hard_example_mining import MAX_WEIGHT
from ringrift_pipeline.enhancements.non_finite import OnNonFinite
from ringrift_pipeline.enhancements.per_sample_loss import MAX_HISTORY
from ringrift_pipeline.enhancements.sample_slots import MAX_INDEX
from ringrift_pipeline.enhancements.training_config import TrainingConfig

Precision = Literal["auto", "float32", "bfloat16", "float16"]
ValueForm = Literal["auto", "scalar", "logits", "probabilities", "wdl"]
ClippingMode = Literal["parameter", "agc", "global"]


@dataclass(frozen=True, kw_only=True)
class FacadeConfig:
    """Settings of ``TrainingEnhancementsFacade``, each enhancement with its switch.

    Raises:
        ValueError: a setting out of range, by name.
    """

    # the loss
    policy_weight: float = 1.0
    value_weight: float = 1.0
    value_kind: ValueForm = "auto"
    validate_targets: bool | None = None  # None: on the CPU, where it costs no synchronisation

    # gradients
    gradient_accumulation_steps: int = 1
    enable_gradient_clipping: bool = True
    clip_mode: ClippingMode = "parameter"
    clip_percentile: float = 90.0
    clip_history: int = 100
    clip_factor: float = 2.0
    agc_ratio: float = 0.01
    initial_max_norm: float = 1.0
    min_clip: float = 0.1
    max_clip: float = 10.0
    max_grad_norm: float = 0.0  # bound of the total norm after that; 0: none

    # learning rate; without a schedule the optimizer's own rate stays
    schedule: ScheduleConfig | None = None
    total_steps: int = 0  # optimizer steps of the run, which a schedule needs
    enable_curriculum_lr: bool = False
    curriculum_lr_min_scale: float = 0.8
    curriculum_lr_max_scale: float = 1.2
    curriculum_warmup_fraction: float = 0.1

    # quality of the data: weights by set_quality_scores
    enable_quality_scoring: bool = True
    quality_temperature: float = 1.0

    # hard examples: need batches with ``indices``
    enable_hard_mining: bool = True
    hard_fraction: float = 0.3
    hard_buffer_size: int = 10_000
    hard_min_samples_before_mining: int = 1_000
    hard_base_weight: float = 1.0
    hard_upweight: float = 2.0  # weight in the loss; as hard_base_weight: only for drawn batches
    hard_loss_threshold_percentile: float = 80.0
    hard_uncertainty_weight: float = 0.3
    hard_surprise_weight: float = 0.5
    hard_decay_rate: float = 0.99  # left after hard_buffer_size samples
    hard_max_times_sampled: int = 10
    hard_max_game_share: float = 1.0

    # each sample's loss
    track_per_sample_loss: bool = True
    loss_tracker_max_samples: int = 10_000
    loss_tracker_history_epochs: int = 3

    # averaged weights
    enable_averaging: bool = True
    averaging_half_life_samples: float = 25_000.0
    averaging_warmup_fraction: float = 0.1
    averaging_interval: int = 4  # optimizer steps; the decay counts samples all the same

    # anomalies
    enable_anomaly_detection: bool = True
    spike_factor: float = 3.0
    anomaly_window: int = 50  # steps
    divergence_patience: int = 5  # bad steps in a row
    lr_backoff: float = 0.5  # factor of the rate after a divergence
    max_rollbacks: int = 3
    snapshot_every: int = 50  # good steps
    on_non_finite: OnNonFinite = "skip"  # halt: an error at the first step that is not finite

    # stopping
    early_stopping_patience: int = 0  # validations without a better loss; 0: never
    early_stopping_min_delta: float = 0.0

    precision: Precision = "auto"  # auto: bfloat16 on CUDA that has it, else float32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _BOUNDS:
                low, high, open_low = _BOUNDS[field.name]
                if field.type == "int":
                    check_whole(field.name, value, int(low), int(high) + 1)
                else:
                    check_number(field.name, value, low, high, above=open_low)
            elif field.type == "bool":
                check_flag(field.name, value)
        if self.validate_targets is not None:
            check_flag("validate_targets", self.validate_targets)
        if self.schedule is not None and not isinstance(self.schedule, ScheduleConfig):
            raise ValueError(
                f"schedule must be a ScheduleConfig (TrainingConfig().schedule) or None, "
                f"got {self.schedule!r}"
            )
        if self.schedule is not None and self.total_steps < 1:
            raise ValueError(
                "a schedule needs total_steps, the optimizer steps of the run (at least 1)"
            )
        if self.policy_weight == 0 and self.value_weight == 0:
            raise ValueError(
                "policy_weight and value_weight must not both be 0: nothing would train"
            )
        if self.min_clip > self.max_clip:
            raise ValueError(f"min_clip ({self.min_clip}) must not exceed max_clip")

    @classmethod
    def from_training_config(cls, config: TrainingConfig, total_steps: int) -> FacadeConfig:
        """The facade that a ``TrainingConfig`` asks for.

        Mining there means drawing batches, so mined samples get no extra weight in the loss
        unless ``mining.upweight`` says so.

        Args:
            config: the run's configuration.
            total_steps: optimizer steps of the run, at least 1, for the schedule.

        Raises:
            ValueError: an argument of another kind or out of range, by name.
        """
        if not isinstance(config, TrainingConfig):
            raise ValueError(f"config must be a TrainingConfig, got {type(config).__name__}")
        training, gradients, mining = config.training, config.gradients, config.mining
        return cls(
            policy_weight=training.policy_weight,
            value_weight=training.value_weight,
            gradient_accumulation_steps=gradients.accumulation_steps,
            enable_gradient_clipping=gradients.clipping,
            clip_mode=gradients.clip_mode,
            clip_percentile=gradients.clip_percentile,
            clip_history=gradients.clip_history,
            clip_factor=gradients.clip_factor,
            agc_ratio=gradients.agc_ratio,
            initial_max_norm=gradients.initial_max_norm,
            min_clip=gradients.min_clip,
            max_clip=gradients.max_clip,
            max_grad_norm=gradients.max_grad_norm,
            schedule=config.schedule,
            total_steps=total_steps,
            enable_quality_scoring=config.quality.enabled,
            quality_temperature=config.quality.temperature,
            enable_hard_mining=mining.enabled,
            hard_fraction=mining.hard_fraction,
            hard_buffer_size=mining.buffer_size,
            hard_min_samples_before_mining=mining.min_samples_before_mining,
            hard_upweight=mining.upweight,
            hard_loss_threshold_percentile=mining.loss_threshold_percentile,
            hard_uncertainty_weight=mining.uncertainty_weight,
            hard_surprise_weight=mining.surprise_weight,
            hard_decay_rate=mining.decay_rate,
            hard_max_times_sampled=mining.max_times_sampled,
            hard_max_game_share=mining.max_game_share,
            track_per_sample_loss=config.tracking.enabled,
            loss_tracker_max_samples=config.tracking.max_samples,
            loss_tracker_history_epochs=config.tracking.history_epochs,
            enable_curriculum_lr=config.curriculum.enabled,
            curriculum_lr_min_scale=config.curriculum.min_scale,
            curriculum_lr_max_scale=config.curriculum.max_scale,
            curriculum_warmup_fraction=config.curriculum.warmup_fraction,
            enable_averaging=config.averaging.enabled,
            averaging_interval=config.averaging.interval,
            averaging_half_life_samples=config.averaging.decay_half_life_samples,
            averaging_warmup_fraction=config.averaging.warmup_fraction,
            enable_anomaly_detection=config.stability.enabled,
            spike_factor=config.stability.spike_factor,
            anomaly_window=config.stability.window,
            divergence_patience=config.stability.divergence_patience,
            lr_backoff=config.stability.lr_backoff,
            max_rollbacks=config.stability.max_rollbacks,
            snapshot_every=config.stability.snapshot_every,
            on_non_finite=config.stability.on_non_finite,
            # Without an average the last weights are kept, which are good once the rate has fallen.
            early_stopping_patience=training.early_stopping_patience
            if config.averaging.enabled
            else 0,
            early_stopping_min_delta=training.early_stopping_min_delta,
            precision=training.precision,
            seed=config.seed,
        )


_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "value_kind": get_args(ValueForm),
    "clip_mode": get_args(ClippingMode),
    "on_non_finite": get_args(OnNonFinite),
}

# name: least, greatest, whether the least itself is excluded
_BOUNDS: dict[str, tuple[int | float, int | float, bool]] = {
    "policy_weight": (0, math.inf, False),
    "value_weight": (0, math.inf, False),
    "gradient_accumulation_steps": (1, COUNTABLE - 1, False),
    "clip_percentile": (0, 100, True),
    "clip_history": (1, COUNTABLE - 1, False),
    "clip_factor": (0, math.inf, True),
    "agc_ratio": (0, math.inf, True),
    "initial_max_norm": (0, math.inf, True),
    "min_clip": (0, math.inf, True),
    "max_clip": (0, math.inf, True),
    "max_grad_norm": (0, math.inf, False),
    "total_steps": (0, COUNTABLE - 1, False),
    "curriculum_lr_min_scale": (0, math.inf, True),
    "curriculum_lr_max_scale": (0, math.inf, True),
    "curriculum_warmup_fraction": (0, 1, False),
    "quality_temperature": (0, math.inf, True),
    "hard_fraction": (0, 1, False),
    "hard_buffer_size": (1, MAX_INDEX, False),
    "hard_min_samples_before_mining": (0, COUNTABLE - 1, False),
    "hard_base_weight": (0, math.inf, True),
    "hard_upweight": (0, math.inf, True),
    "hard_loss_threshold_percentile": (0, 100, False),
    "hard_uncertainty_weight": (0, MAX_WEIGHT, False),
    "hard_surprise_weight": (0, MAX_WEIGHT, False),
    "hard_decay_rate": (0, 1, True),
    "hard_max_times_sampled": (1, COUNTABLE - 1, False),
    "hard_max_game_share": (0, 1, True),
    "loss_tracker_max_samples": (1, MAX_INDEX, False),
    "loss_tracker_history_epochs": (1, MAX_HISTORY, False),
    "averaging_half_life_samples": (0, math.inf, True),
    "averaging_warmup_fraction": (0, 1, True),
    "averaging_interval": (1, COUNTABLE - 1, False),
    "spike_factor": (1, math.inf, True),
    "anomaly_window": (5, COUNTABLE - 1, False),
    "divergence_patience": (1, COUNTABLE - 1, False),
    "lr_backoff": (0, 1, True),
    "max_rollbacks": (0, COUNTABLE - 1, False),
    "snapshot_every": (1, COUNTABLE - 1, False),
    "early_stopping_patience": (0, COUNTABLE - 1, False),
    "early_stopping_min_delta": (0, math.inf, False),
    "seed": (0, COUNTABLE - 1, False),
}

__all__ = ["FacadeConfig"]
