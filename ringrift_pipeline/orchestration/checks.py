"""Asset checks: at least one an asset; a blocking one where a failure must stop promotion."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    PreviewWarning,
    asset_check,
)

from ringrift_pipeline.orchestration import judgements, regressions
from ringrift_pipeline.orchestration.judgements import Judgement
from ringrift_pipeline.orchestration.names import CHAMPION, asset_key, partitions
from ringrift_pipeline.orchestration.step import running_step


@dataclass(frozen=True)
class CheckRecipe:
    """One check: of which asset, what it asks, and whether a failure stops what comes after."""

    asset: str
    judge: Callable[..., Judgement]
    blocking: bool = False
    table: bool = False  # the judge also takes the asset's table

    @property
    def name(self) -> str:
        """The check's name is its judge's."""
        return self.judge.__name__


CHECKS: tuple[CheckRecipe, ...] = (
    CheckRecipe(CHAMPION, judgements.champion_verifies, blocking=True),
    CheckRecipe("selfplay_shards", judgements.shards_complete, blocking=True),
    CheckRecipe("selfplay_shards", judgements.games_differ),
    CheckRecipe("selfplay_shards", regressions.window_fresh, blocking=True),
    CheckRecipe("selfplay_shards", regressions.play_steady),
    CheckRecipe("quality_scores", judgements.scores_sound, blocking=True, table=True),
    CheckRecipe("hard_examples", judgements.examples_sound, blocking=True, table=True),
    CheckRecipe("checkpoint", judgements.losses_finite, blocking=True),
    CheckRecipe("checkpoint", judgements.training_learned),
    CheckRecipe("ema_model", judgements.average_fits, blocking=True),
    CheckRecipe("ensemble", judgements.members_verify),
    CheckRecipe("calibration_report", judgements.calibration_sound),
    CheckRecipe("evaluation", judgements.evaluation_sound, blocking=True),
    CheckRecipe("evaluation", judgements.beats_random),
    CheckRecipe("evaluation", regressions.gate_passed),
)


def blocking_checks(asset: str) -> list[str]:
    """Names of the checks of ``asset`` that must pass before anything rests on it."""
    return [check.name for check in CHECKS if check.asset == asset and check.blocking]


def result(check: CheckRecipe, judgement: Judgement) -> AssetCheckResult:
    """The judgement as Dagster takes it; a failure that blocks is an error, else a warning."""
    severity = AssetCheckSeverity.ERROR if check.blocking else AssetCheckSeverity.WARN
    return AssetCheckResult(
        passed=judgement.passed,
        severity=severity,
        description=judgement.why,
        metadata=dict(judgement.numbers),
    )


def _define(config: str, check: CheckRecipe) -> AssetChecksDefinition:
    key = asset_key(config, check.asset)
    common: dict[str, Any] = {
        "asset": key,
        "name": check.name,
        "blocking": check.blocking,
        "required_resource_keys": {"store"},
        "description": (check.judge.__doc__ or "").strip(),
        # The champion is one pointer, not a generation's; its check still runs in a generation.
        "partitions_def": None if check.asset == CHAMPION else partitions(config),
    }
    if check.table:

        @asset_check(**common)
        def body(context: AssetCheckExecutionContext, table: Any) -> AssetCheckResult:
            with running_step(context, config) as step:
                return result(check, judgements.judge(check.judge, step, table))

        return body

    @asset_check(**common)
    def plain(context: AssetCheckExecutionContext) -> AssetCheckResult:
        with running_step(context, config) as step:
            return result(check, judgements.judge(check.judge, step))

    return plain


def checks_of(config: str) -> list[AssetChecksDefinition]:
    """All checks of a config."""
    with warnings.catch_warnings():
        # partitioned checks are a preview feature of Dagster 1.13
        warnings.simplefilter("ignore", PreviewWarning)
        return [_define(config, check) for check in CHECKS]
