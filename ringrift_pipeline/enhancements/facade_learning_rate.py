"""The learning rate of a run: its schedule, the curriculum and the cuts after a divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import check_number
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.learning_rate_base import LearningRateSchedule
from ringrift_pipeline.enhancements.training_statistics import TrainingProgress


class LearningRate:
    """The rate of an optimizer, under a schedule or on its own.

    Attributes:
        curriculum_scale: the factor that the curriculum has put on the rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LearningRateSchedule | None,
        config: FacadeConfig,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._config = config
        self.curriculum_scale = 1.0

    @property
    def value(self) -> float:
        """Of the first parameter group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def scale(self, factor: float) -> None:
        """Multiply the rate of every group, now and for the rest of the schedule."""
        if factor == 1.0:
            return
        if self._scheduler is not None:
            self._scheduler.scale_lr(factor)
            return
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].mul_(factor)
            else:
                group["lr"] *= factor

    def curriculum(self, progress: TrainingProgress, share: float | None = None) -> float:
        """As ``TrainingEnhancementsFacade.get_curriculum_lr_scale``."""
        config = self._config
        if share is not None:
            share = check_number("progress", share)
        if not config.enable_curriculum_lr:
            return 1.0
        if share is None:
            if config.total_steps:
                share = progress.steps / config.total_steps
            else:
                share = progress.epoch / progress.total_epochs
        share = min(max(share, 0.0), 1.0)
        warmup = config.curriculum_warmup_fraction
        if share < warmup:
            low = config.curriculum_lr_min_scale
            return low + (1.0 - low) * share / warmup
        if warmup == 1.0:
            return 1.0
        high = config.curriculum_lr_max_scale
        return 1.0 + (high - 1.0) * (share - warmup) / (1.0 - warmup)

    def apply_curriculum(self, progress: TrainingProgress) -> None:
        """Bring the rate to where the curriculum wants it at this progress."""
        if self._config.enable_curriculum_lr:
            scale = self.curriculum(progress)
            self.scale(scale / self.curriculum_scale)
            self.curriculum_scale = scale


__all__ = ["LearningRate"]
