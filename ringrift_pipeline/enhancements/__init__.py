"""The enhancement modules, one file each. Names load on first use: importing this is cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.calibration import CalibrationAutomation
    from ringrift_pipeline.enhancements.checkpoint_averaging import (
        CheckpointAverager,
        average_checkpoints,
    )
    from ringrift_pipeline.enhancements.data_quality_scoring import (
        DataQualityScorer,
        GameQualityScore,
        QualityWeightedSampler,
    )
    from ringrift_pipeline.enhancements.evaluation_feedback import (
        EvaluationFeedbackHandler,
        FeedbackDecision,
        create_evaluation_feedback_handler,
    )
    from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
    from ringrift_pipeline.enhancements.gradient_management import (
        AdaptiveGradientClipper,
        GradientAccumulator,
    )
    from ringrift_pipeline.enhancements.hard_example_mining import HardExample, HardExampleMiner
    from ringrift_pipeline.enhancements.learning_rate_scheduling import (
        AdaptiveLRScheduler,
        WarmRestartsScheduler,
        build_scheduler,
    )
    from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
    from ringrift_pipeline.enhancements.per_sample_loss import (
        PerSampleLossRecord,
        PerSampleLossTracker,
        compute_per_sample_loss,
    )
    from ringrift_pipeline.enhancements.seed_management import SeedManager, set_reproducible_seed
    from ringrift_pipeline.enhancements.training_config import ConfigError, TrainingConfig
    from ringrift_pipeline.enhancements.training_facade import (
        EpochStatistics,
        FacadeConfig,
        TrainingEnhancementsFacade,
    )

_MODULES = {
    "calibration": ("CalibrationAutomation",),
    "checkpoint_averaging": ("CheckpointAverager", "average_checkpoints"),
    "data_quality_scoring": ("DataQualityScorer", "GameQualityScore", "QualityWeightedSampler"),
    "evaluation_feedback": (
        "EvaluationFeedbackHandler",
        "FeedbackDecision",
        "create_evaluation_feedback_handler",
    ),
    "ewc_regularization": ("EWCRegularizer",),
    "gradient_management": ("AdaptiveGradientClipper", "GradientAccumulator"),
    "hard_example_mining": ("HardExample", "HardExampleMiner"),
    "learning_rate_scheduling": (
        "AdaptiveLRScheduler",
        "WarmRestartsScheduler",
        "build_scheduler",
    ),
    "model_ensemble": ("ModelEnsemble",),
    "per_sample_loss": ("PerSampleLossRecord", "PerSampleLossTracker", "compute_per_sample_loss"),
    "seed_management": ("SeedManager", "set_reproducible_seed"),
    "training_config": ("ConfigError", "TrainingConfig"),
    "training_facade": ("EpochStatistics", "FacadeConfig", "TrainingEnhancementsFacade"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AdaptiveGradientClipper",
    "AdaptiveLRScheduler",
    "CalibrationAutomation",
    "CheckpointAverager",
    "ConfigError",
    "DataQualityScorer",
    "EWCRegularizer",
    "EpochStatistics",
    "EvaluationFeedbackHandler",
    "FacadeConfig",
    "FeedbackDecision",
    "GameQualityScore",
    "GradientAccumulator",
    "HardExample",
    "HardExampleMiner",
    "ModelEnsemble",
    "PerSampleLossRecord",
    "PerSampleLossTracker",
    "QualityWeightedSampler",
    "SeedManager",
    "TrainingConfig",
    "TrainingEnhancementsFacade",
    "WarmRestartsScheduler",
    "average_checkpoints",
    "build_scheduler",
    "compute_per_sample_loss",
    "create_evaluation_feedback_handler",
    "set_reproducible_seed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
