"""Settings of the training modules: one frozen pydantic model a group.

Every field has a description with its unit and its bounds. Off by
default is what an ablation left undecided (README). The settings of the loop's stages are in
``config_stages``; presets, files and environment in ``training_config``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ringrift_pipeline.enhancements.config_base import ConfigGroup


class OptimizerConfig(ConfigGroup):
    """AdamW (Loshchilov & Hutter 2019)."""

    learning_rate: float = Field(
        default=2e-3, gt=0.0, le=1.0, description="Peak learning rate a step."
    )
    weight_decay: float = Field(default=1e-4, ge=0.0, le=1.0, description="Decoupled weight decay.")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999),
        strict=False,
        description="Decay of the two moments a step, in [0, 1).",
    )

    @model_validator(mode="after")
    def _betas_in_range(self) -> OptimizerConfig:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        return self


class GradientsConfig(ConfigGroup):
    """Accumulation and clipping of gradients."""

    accumulation_steps: int = Field(
        default=1, ge=1, le=100_000, description="Batches whose gradients make one optimizer step."
    )
    clipping: bool = Field(default=False, description="Clip gradients as below.")
    clip_mode: Literal["parameter", "agc", "global"] = Field(
        default="parameter",
        description="parameter: each tensor against its own moving average; agc: unit-wise "
        "against the weight's norm (Brock et al. 2021); global: percentile of the total norm.",
    )
    clip_percentile: float = Field(
        default=90.0,
        gt=0.0,
        le=100.0,
        description="Percentile of past total norms in mode global, %.",
    )
    clip_history: int = Field(
        default=100,
        ge=2,
        le=1_000_000,
        description="Steps that the moving average or the percentile looks back.",
    )
    clip_factor: float = Field(
        default=2.0,
        gt=0.0,
        description="Mode parameter: multiple of its average norm a tensor may have.",
    )
    agc_ratio: float = Field(
        default=0.01,
        gt=0.0,
        description="Mode agc: largest gradient norm as a share of the weight norm.",
    )
    initial_max_norm: float = Field(
        default=1.0, gt=0.0, description="Threshold before there is any history, gradient norm."
    )
    min_clip: float = Field(default=0.1, gt=0.0, description="Least threshold, gradient norm.")
    max_clip: float = Field(default=10.0, gt=0.0, description="Greatest threshold, gradient norm.")
    max_grad_norm: float = Field(
        default=0.0,
        ge=0.0,
        description="Fixed bound of the total norm on top of the above; 0 = none.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> GradientsConfig:
        if self.min_clip > self.max_clip:
            raise ValueError(
                f"min_clip ({self.min_clip}) must not exceed max_clip ({self.max_clip})"
            )
        return self


class ScheduleConfig(ConfigGroup):
    """Learning rate over a training run."""

    name: Literal["warm_restarts", "adaptive", "constant"] = Field(
        default="warm_restarts",
        description="warm_restarts: cosine with restarts (Loshchilov & Hutter 2017); adaptive: "
        "cut on a plateau of the validation loss; constant: after warm-up the peak rate.",
    )
    warmup_steps: int = Field(
        default=20, ge=0, le=1_000_000_000, description="Optimizer steps of linear warm-up."
    )
    min_lr_fraction: float = Field(
        default=0.05, ge=0.0, le=1.0, description="Least rate as a share of the peak rate."
    )
    T_0: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Optimizer steps of the first cosine; 0 = the run's steps after warm-up.",
    )
    T_mult: int = Field(
        default=1,
        ge=1,
        le=1_000,
        description="Factor by which each cosine is longer than the last.",
    )
    plateau_patience: int = Field(
        default=3,
        ge=1,
        le=1_000_000,
        description="adaptive: validations without progress before the rate is cut.",
    )
    plateau_factor: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="adaptive: factor of the rate at a plateau."
    )


class QualityConfig(ConfigGroup):
    """Scoring of games and sampling by their score."""

    enabled: bool = Field(
        default=False, description="Sample training rows by the quality of their game."
    )
    length_weight: float = Field(default=1.0, ge=0.0, description="Weight of the game's length.")
    balance_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of how open the game was."
    )
    diversity_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of search-policy entropy."
    )
    decisiveness_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of a clear outcome."
    )
    freshness_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of the game's freshness."
    )
    surprise_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of the search's surprise."
    )
    freshness_half_life_hours: float = Field(
        default=24.0, gt=0.0, description="Age at which freshness is one half, hours."
    )
    temperature: float = Field(
        default=1.0, gt=0.0, description="Sampling temperature; larger is closer to uniform."
    )
    max_elo_diff: float = Field(
        default=400.0, gt=0.0, description="Rating gap of the seats at which balance is 0, Elo."
    )
    max_entropy: float = Field(
        default=3.0, gt=0.0, description="Search-policy entropy at which diversity is 1, nats."
    )
    surprise_scale: float = Field(
        default=0.5, gt=0.0, description="Surprise at which its score is one half, nats."
    )
    decisive_bonus: float = Field(
        default=1.2, gt=0.0, description="Decisiveness of a game with one winner, before scaling."
    )
    draw_penalty: float = Field(
        default=0.8, ge=0.0, description="Decisiveness of a shared win, before scaling."
    )

    @model_validator(mode="after")
    def _some_weight(self) -> QualityConfig:
        weights = [v for k, v in self.__dict__.items() if k.endswith("_weight")]
        if sum(weights) <= 0.0:
            raise ValueError("at least one *_weight of quality must be above 0")
        return self


class MiningConfig(ConfigGroup):
    """Hard examples in training batches."""

    enabled: bool = Field(default=False, description="Mix hard examples into training batches.")
    buffer_size: int = Field(default=10_000, ge=1, le=2**30, description="Samples tracked.")
    hard_fraction: float = Field(
        default=0.3, ge=0.0, le=1.0, description="Share of a batch drawn from the hard examples."
    )
    loss_threshold_percentile: float = Field(
        default=80.0,
        ge=0.0,
        le=100.0,
        description="Percentile of hardness above which a sample is hard, %.",
    )
    uncertainty_weight: float = Field(
        default=0.3,
        ge=0.0,
        le=1e6,
        description="Factor of uncertainty (nats) in hardness: the last ensemble's disagreement "
        "before training, the model's own entropy during it.",
    )
    surprise_weight: float = Field(
        default=0.5,
        ge=0.0,
        le=1e6,
        description="Factor of the search's surprise (nats) in hardness.",
    )
    decay_rate: float = Field(
        default=0.99,
        gt=0.0,
        le=1.0,
        description="Factor left of an untouched hardness after a buffer of samples was seen.",
    )
    min_samples_before_mining: int = Field(
        default=1_000,
        ge=0,
        le=1_000_000_000,
        description="Samples seen before hard examples are mixed in.",
    )
    max_times_sampled: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="Cap on how often one sample is drawn as a hard example.",
    )
    upweight: float = Field(
        default=1.0,
        gt=0.0,
        description="Weight in the loss of a row drawn as a hard example; 1 = drawn more often "
        "is all.",
    )
    max_game_share: float = Field(
        default=0.1,
        gt=0.0,
        le=1.0,
        description="Most of a batch's hard examples from one game, share.",
    )


class TrackingConfig(ConfigGroup):
    """The record of single samples' losses."""

    enabled: bool = Field(default=True, description="Keep the losses of single samples.")
    max_samples: int = Field(
        default=10_000,
        ge=1,
        le=2**30,
        description="Samples tracked; the least recently seen goes first.",
    )
    history_epochs: int = Field(
        default=3, ge=1, le=10_000, description="Epochs that a history reaches back."
    )


class CurriculumConfig(ConfigGroup):
    """Learning rate that follows the share of hard examples."""

    enabled: bool = Field(default=False, description="Scale the rate by how hard batches are.")
    min_scale: float = Field(default=0.8, gt=0.0, description="Least factor of the rate.")
    max_scale: float = Field(default=1.2, gt=0.0, description="Greatest factor of the rate.")
    warmup_fraction: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Share of the run before the factor applies."
    )

    @model_validator(mode="after")
    def _ordered(self) -> CurriculumConfig:
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"min_scale ({self.min_scale}) must not exceed max_scale ({self.max_scale})"
            )
        return self


class AveragingConfig(ConfigGroup):
    """Exponential moving average of the weights: the candidate model."""

    enabled: bool = Field(
        default=True,
        description="Average the weights; off: the candidate has the training's last weights.",
    )
    decay_half_life_samples: float = Field(
        default=25_000.0,
        gt=0.0,
        description="Samples trained after which a weight's share in the average has halved.",
    )
    warmup_fraction: float = Field(
        default=0.1,
        gt=0.0,
        le=1.0,
        description="Warm-up: the half-life is at most this share of the samples seen so far.",
    )
    interval: int = Field(
        default=4,
        ge=1,
        le=1_000_000,
        description="Optimizer steps between updates; decay counts samples.",
    )


class EnsembleConfig(ConfigGroup):
    """Ensemble of the newest EMA models."""

    members: int = Field(
        default=3, ge=1, le=64, description="Models in the ensemble, newest first."
    )


class CalibrationConfig(ConfigGroup):
    """Calibration of the value head; the unit of evidence is the game."""

    bins: int = Field(
        default=15, ge=2, le=1000, description="Equal-mass bins of the reliability data."
    )
    bootstrap: int = Field(
        default=200, ge=20, le=100_000, description="Bootstrap resamples over games."
    )
    deviation_threshold: float = Field(
        default=0.05,
        gt=0.0,
        lt=1.0,
        description="Calibration error above which to recalibrate, share.",
    )
    max_error: float = Field(
        default=0.15,
        gt=0.0,
        lt=1.0,
        description="Calibration error that is left after scaling above which, beyond doubt, the "
        "model is not evaluated, share.",
    )
    min_games: int = Field(
        default=20, ge=2, le=1_000_000, description="Held-out games below which nothing is fitted."
    )


class FeedbackConfig(ConfigGroup):
    """What the trend of the ratings changes from one generation to the next."""

    enabled: bool = Field(
        default=True, description="Let the ratings' trend change the next generation."
    )
    window: int = Field(
        default=8, ge=3, le=1000, description="Evaluations that the trend looks back."
    )
    confidence: float = Field(
        default=0.9, ge=0.5, lt=0.9999, description="Confidence of the trend's interval."
    )
    min_evaluations: int = Field(
        default=3, ge=2, le=1_000, description="Evaluations before any trend is believed."
    )
    plateau_slack: float = Field(
        default=2.0,
        ge=1.0,
        description="Multiple of the thresholds that a full window's interval lies within on a "
        "plateau.",
    )
    rising_threshold: float = Field(
        default=10.0, ge=0.0, description="Surely above it the rating rises, Elo a generation."
    )
    falling_threshold: float = Field(
        default=-10.0, le=0.0, description="Surely below it the rating falls, Elo a generation."
    )
    rising_rate: float = Field(
        default=1.05, ge=1.0, le=2.0, description="Factor of the learning rate when rising."
    )
    plateau_rate: float = Field(
        default=0.9, gt=0.0, le=1.0, description="Factor of the learning rate on a plateau."
    )
    falling_rate: float = Field(
        default=0.7, gt=0.0, le=1.0, description="Factor of the learning rate when falling."
    )
    plateau_exploration: float = Field(
        default=1.1, ge=1.0, le=2.0, description="Factor of selfplay's temperature on a plateau."
    )
    plateau_selfplay: float = Field(
        default=1.15, ge=1.0, le=4.0, description="Factor of the games on a plateau."
    )
    falling_selfplay: float = Field(
        default=1.25, ge=1.0, le=4.0, description="Factor of the games when falling."
    )
    min_rate_factor: float = Field(
        default=0.1, gt=0.0, le=1.0, description="Least rate_factor that feedback comes to."
    )
    max_rate_factor: float = Field(
        default=1.5, ge=1.0, le=10.0, description="Greatest rate_factor that feedback comes to."
    )
    max_exploration_factor: float = Field(
        default=1.5, ge=1.0, le=10.0, description="Greatest exploration_factor of feedback."
    )
    max_selfplay_factor: float = Field(
        default=2.0, ge=1.0, le=100.0, description="Greatest selfplay_factor of feedback."
    )
    rate_factor: float = Field(
        default=1.0,
        gt=0.0,
        le=10.0,
        description="Factor of optimizer.learning_rate; set by the evaluation feedback.",
    )
    exploration_factor: float = Field(
        default=1.0,
        gt=0.0,
        le=10.0,
        description="Factor of selfplay.temperature; set by the evaluation feedback.",
    )
    selfplay_factor: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Factor of selfplay.games; set by the evaluation feedback.",
    )

    @model_validator(mode="after")
    def _window_holds_enough(self) -> FeedbackConfig:
        if self.min_evaluations > self.window:
            raise ValueError(
                f"min_evaluations ({self.min_evaluations}) must not exceed window ({self.window})"
            )
        return self


class StabilityConfig(ConfigGroup):
    """What counts as a spike of the loss, what as a divergence."""

    enabled: bool = Field(
        default=True, description="Skip spikes and roll back divergences; off: train on regardless."
    )
    spike_factor: float = Field(
        default=3.0,
        gt=1.0,
        description="A loss above this multiple of the running median is a spike and skipped.",
    )
    window: int = Field(
        default=50, ge=5, le=1_000_000, description="Steps of the running median of the loss."
    )
    divergence_patience: int = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="Spikes in a row that make a divergence, which rolls back.",
    )
    lr_backoff: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="Factor of the learning rate after a rollback."
    )
    max_rollbacks: int = Field(
        default=3, ge=0, le=1_000_000, description="Rollbacks after which training stops."
    )
    snapshot_every: int = Field(
        default=50,
        ge=1,
        le=1_000_000_000,
        description="Good steps between snapshots of the last good state.",
    )
    on_non_finite: Literal["skip", "halt"] = Field(
        default="skip",
        description=(
            "What a training row, loss, gradient or held-out loss that is not finite does. skip: "
            "the step is left out and its rows are named; divergence_patience bad steps in a row, "
            "or a bad held-out loss, roll back, at most max_rollbacks times. halt: training ends "
            "with an error that names the rows."
        ),
    )
