"""Settings of the loop's stages: selfplay, search, network, training run, evaluation, fine-tuning.

One frozen pydantic model a group; every field has a description with its unit and its bounds. The
settings of the training modules are in ``config_groups``.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ringrift_pipeline.enhancements.config_base import ConfigGroup

MOST_SHARDS = 100_000


class SelfplayConfig(ConfigGroup):
    """How games are played to make training data."""

    games: int = Field(default=512, ge=1, le=10_000_000, description="Games a generation.")
    games_per_shard: int = Field(
        default=64, ge=1, le=100_000, description="Games in one shard file."
    )
    parallel_games: int = Field(
        default=64,
        ge=1,
        le=65_536,
        description="Games whose search leaves are evaluated together in one batch.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=1_024,
        description="Worker processes; 0 means one a core. Does not change the result.",
    )
    full_search_fraction: float = Field(
        default=0.25,
        gt=0.0,
        le=1.0,
        description="Share of decisions searched in full; only these train the policy.",
    )
    temperature: float = Field(
        default=1.0,
        gt=0.0,
        le=10.0,
        description="Softmax temperature of sampled moves (1 = as searched).",
    )
    temperature_plies: int = Field(
        default=30,
        ge=0,
        le=1_000_000,
        description="Decisions of a game sampled from the policy before greedy play.",
    )
    generation0_temperature: float = Field(
        default=1.0,
        gt=0.0,
        description="Softmax temperature of generation 0, in units of the heuristic's score.",
    )
    max_plies: int = Field(
        default=0, ge=0, le=1_000_000, description="Plies after which a game is cut; 0 = never."
    )
    # A tenth takes one in twenty rows from the policy (two players) and no time: measured 0.99 of
    # the positions a second.
    opponent_fraction: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Share of games against an earlier model of the ensemble, where there is one; "
        "its moves train the value only. 0 = none.",
    )

    @model_validator(mode="after")
    def _few_shards(self) -> SelfplayConfig:
        if self.games > MOST_SHARDS * self.games_per_shard:
            raise ValueError(
                f"{self.games} games in shards of {self.games_per_shard} are more than "
                f"{MOST_SHARDS} shards: raise games_per_shard"
            )
        return self


class SearchConfig(ConfigGroup):
    """Gumbel search (Danihelka et al. 2022, "Policy improvement by planning with Gumbel")."""

    simulations: int = Field(
        default=64, ge=1, le=1_000_000, description="Simulations of a full search, a decision."
    )
    cheap_simulations: int = Field(
        default=16, ge=1, le=1_000_000, description="Simulations of a cheap search."
    )
    max_considered: int = Field(
        default=16, ge=2, le=65_536, description="Root actions that sequential halving starts with."
    )
    c_visit: float = Field(
        default=50.0, ge=0.0, description="Visit offset of the value scale, visits."
    )
    c_scale: float = Field(default=1.0, gt=0.0, description="Factor of the value scale, no unit.")
    gumbel_scale: float = Field(
        default=1.0,
        ge=0.0,
        description="Scale of the root's Gumbel noise; 0 searches without noise.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the network in search; auto: bfloat16 where the device has it, "
        "else float32. A plan notes which it was.",
    )
    backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto",
        description="What runs the network in search; auto: OpenVINO on the CPU where it is "
        "installed, else torch. A plan notes which it was.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> SearchConfig:
        if self.cheap_simulations > self.simulations:
            raise ValueError(
                f"cheap_simulations ({self.cheap_simulations}) must not exceed "
                f"simulations ({self.simulations})"
            )
        return self


class NetworkSettings(ConfigGroup):
    """Size of the convolutional network."""

    blocks: int = Field(default=6, ge=1, le=64, description="Residual blocks.")
    channels: int = Field(default=64, ge=4, le=1024, description="Channels of the trunk.")
    value_channels: int = Field(
        default=32, ge=4, le=1024, description="Channels of the value head."
    )


class TrainingLoopConfig(ConfigGroup):
    """One generation's training run."""

    batch_size: int = Field(default=256, ge=1, le=131_072, description="Rows of one forward pass.")
    sample_reuse: float = Field(
        default=4.0,
        gt=0.0,
        description="Visits of a new row on average; steps = ceil(sample_reuse * new rows / "
        "effective batch), drawn from the whole window.",
    )
    max_steps: int = Field(
        default=0, ge=0, le=1_000_000_000, description="Cap on optimizer steps; 0 = no cap."
    )
    holdout_fraction: float = Field(
        default=0.1,
        gt=0.0,
        lt=0.9,
        description="Share of games held out, by the hash of their id; of games of earlier "
        "generations never more than was held out before.",
    )
    window_games: int = Field(
        default=1024,
        ge=1,
        le=100_000_000,
        description="Games N0 up to which the training window holds all. After N games it holds "
        "the newest N0 * (1 + growth * ((N / N0) ** exponent - 1) / exponent) of them.",
    )
    window_growth: float = Field(
        default=0.4,
        ge=0.0,
        le=1.0,
        description="Games by which the window grows a new game at first; 0 = it stays at N0.",
    )
    window_exponent: float = Field(
        default=0.75,
        gt=0.0,
        le=1.0,
        description="Power of the window's growth; 1 = in proportion.",
    )
    policy_weight: float = Field(default=1.0, ge=0.0, description="Factor of the policy loss.")
    value_weight: float = Field(default=1.0, ge=0.0, description="Factor of the value loss.")
    territory_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Factor of the auxiliary loss on who owns each cell at the end; 0 = no head.",
    )
    margin_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Factor of the auxiliary loss on the final ring margin; 0 = no head.",
    )
    search_value_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the search's value in the value target, the rest is the outcome.",
    )
    surprise_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the policy loss's weight that follows the search's surprise.",
    )
    augmentation: bool = Field(
        default=True,
        description="Turn each row of a batch by a symmetry of the board drawn at random.",
    )
    sample_reuse_limit: float = Field(
        default=8.0,
        ge=1.0,
        description="Most visits of a row within one training run; a fraction does not count.",
    )
    checkpoint_every: int = Field(
        default=200, ge=1, le=1_000_000_000, description="Optimizer steps between checkpoints."
    )
    early_stopping_patience: int = Field(
        default=5,
        ge=0,
        le=1_000_000,
        description="Validations of the averaged model without a better loss after which training "
        "stops; 0, or averaging.enabled off = never.",
    )
    early_stopping_min_delta: float = Field(
        default=0.0, ge=0.0, description="Least fall of the held-out loss that counts as better."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Arithmetic of the forward pass; auto: bfloat16 where the device has it, else "
        "float32.",
    )
    threads: int = Field(
        default=2,
        ge=1,
        le=1024,
        description="Threads a batch is divided among on the CPU, in each process its share; fixed "
        "here, so that the result is the same anywhere.",
    )
    processes: int = Field(
        default=1,
        ge=0,
        le=1024,
        description="Processes that train together, one a device, each with its share of every "
        "batch; 0 = one a CUDA device there is. Changes the result by rounding alone.",
    )

    @model_validator(mode="after")
    def _some_loss(self) -> TrainingLoopConfig:
        if self.policy_weight == 0.0 and self.value_weight == 0.0:
            raise ValueError("policy_weight and value_weight must not both be 0")
        if self.processes > self.batch_size:
            raise ValueError(
                f"processes ({self.processes}) must not exceed batch_size ({self.batch_size}): "
                "each has rows of every batch"
            )
        return self


_OPPONENT = re.compile(r"random|heuristic|rollout|champion|generation:[0-9]{1,9}")


class EvaluationConfig(ConfigGroup):
    """Matches, ratings and the promotion gate."""

    games: int = Field(
        default=200, ge=2, le=1_000_000, description="Games against each opponent, seats rotated."
    )
    simulations: int = Field(
        default=64, ge=1, le=1_000_000, description="Simulations a decision in evaluation games."
    )
    symmetries: int = Field(
        default=1,
        ge=1,
        le=12,
        description="Symmetries of the board that a network's evaluation is averaged over, at most "
        "all it has; costs as many evaluations. 1 = as it stands.",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1.0, description="Confidence of every reported interval."
    )
    elo0: float = Field(
        default=0.0,
        ge=-1000.0,
        le=1000.0,
        description="Null hypothesis of the sequential test, Elo.",
    )
    elo1: float = Field(
        default=35.0, ge=-1000.0, le=1000.0, description="Alternative of the sequential test, Elo."
    )
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5, description="Chance of promoting at elo0.")
    beta: float = Field(default=0.05, gt=0.0, lt=0.5, description="Chance of refusing at elo1.")
    max_games: int = Field(
        default=600, ge=2, le=1_000_000, description="Games after which the sequential test ends."
    )
    anchor_games: int = Field(
        default=32,
        ge=0,
        le=100_000,
        description="Games of rollout search against the heuristic, and of the heuristic against "
        "random play, once a config: they put all three on the list of ratings; 0 = none.",
    )
    opponents: tuple[str, ...] = Field(
        default=("random", "heuristic", "champion"),
        strict=False,
        min_length=1,
        description="Players met: random, heuristic, rollout, champion, generation:NNNN; one of "
        "random and heuristic at least.",
    )

    @field_validator("opponents")
    @classmethod
    def _can_be_met(cls, opponents: tuple[str, ...]) -> tuple[str, ...]:
        for name in opponents:
            if not _OPPONENT.fullmatch(name):
                raise ValueError(
                    f"has {name!r}: opponents are random, heuristic, rollout, champion and "
                    "generation:NNNN"
                )
        if not {"random", "heuristic"} & set(opponents):
            raise ValueError("has neither heuristic nor random: ratings need one as anchor")
        return opponents

    @model_validator(mode="after")
    def _ordered(self) -> EvaluationConfig:
        if self.elo0 >= self.elo1:
            raise ValueError(f"elo0 ({self.elo0}) must be below elo1 ({self.elo1})")
        return self


class WatchConfig(ConfigGroup):
    """What must not get worse silently: data that has gone stale, play that drifts, a standstill."""

    champion_age: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="Generations since the champion last played a shard of the training window; "
        "if more, or if it has none there, nothing is trained.",
    )
    shard_hours: float = Field(
        default=168.0,
        gt=0.0,
        le=87_600.0,
        description="Hours since the window's newest shard was played; if more, nothing is "
        "trained.",
    )
    drift_generations: int = Field(
        default=8,
        ge=3,
        le=1000,
        description="Earlier generations that a generation's selfplay is compared with, at most; "
        "at least 3 are needed.",
    )
    drift_level: float = Field(
        default=0.005,
        gt=0.0,
        lt=0.5,
        description="Chance of a false warning of drift, for each thing measured in a generation.",
    )
    drift_factor: float = Field(
        default=2.0,
        gt=1.0,
        le=1000.0,
        description="Times as large, or as small, as in the oldest of these generations that game "
        "length and policy entropy may become, however steadily; beyond is drift too.",
    )
    drift_share: float = Field(
        default=0.15,
        gt=0.0,
        le=1.0,
        description="Change of the draw rate and of a seat's share of the win since the oldest of "
        "these generations, however steady; beyond is drift too.",
    )
    stalled_hours: float = Field(
        default=6.0,
        gt=0.0,
        le=8_760.0,
        description="Hours in which nothing lands after which a config counts as stalled and "
        "people are told, unless it is paused or has made all generations that were asked for.",
    )


class FinetuneConfig(ConfigGroup):
    """A config's first generation started from another config's model."""

    source: str = Field(
        default="",
        pattern=r"^([a-z0-9]+_[234]p(/[0-9]{4,})?)?$",
        description="Model to start from where a config has none of its own: square8_2p is that "
        "config's champion, square8_2p/0007 its generation 7; empty = fresh weights.",
    )
    ewc_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of the penalty for leaving what the source needs (elastic weight "
        "consolidation, Kirkpatrick et al. 2017); 0 = none.",
    )
    ewc_samples: int = Field(
        default=1_000,
        ge=1,
        le=10_000_000,
        description="Rows of the source's data that tell which weights it needs.",
    )
