"""Asset checks: at least one an asset; a blocking one where a failure must stop promotion.

All checks of an asset run in one step, as a process costs more than what most of them do; where
one that blocks has failed, that step fails when all have had their say.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    PreviewWarning,
    multi_asset_check,
)

from ringrift_pipeline.orchestration import integrity, judgements, regressions
from ringrift_pipeline.orchestration.champion import reconcile_config
from ringrift_pipeline.orchestration.io_managers import table_of
from ringrift_pipeline.orchestration.judgements import Judgement
from ringrift_pipeline.orchestration.launchable import next_generation
from ringrift_pipeline.orchestration.names import ASSETS, CHAMPION, asset_key, partitions
from ringrift_pipeline.orchestration.pools import tags_of_checks
from ringrift_pipeline.orchestration.step import LOST, Step, once, running_step
from ringrift_pipeline.store import StoreError


@dataclass(frozen=True)
class CheckRecipe:
    """One check: of which asset, what it asks, what to do where it fails, and whether a failure
    stops what comes after.
    """

    asset: str
    judge: Callable[..., Judgement]
    todo: str
    blocking: bool = False
    table: bool = False  # the judge also takes the asset's table

    @property
    def name(self) -> str:
        """The check's name is its judge's."""
        return self.judge.__name__


# What can help at all: a plan freezes its generation's settings and seeds, and what verifies is
# handed back, however often it is materialized.
AGAIN = (
    "Materialize {} again: what is damaged, missing or made from other inputs is made anew, the "
    "rest is kept. If that does not help, remove the folder that the asset's `path` names before."
)
_THIS = AGAIN.format("this asset")
_SHARDS = (
    "Materialize selfplay_shards again: shards that are damaged or missing are played again, those "
    "that verify are kept. One that verifies and is named here: remove its folder before."
)
_NEXT = "Launch the next generation with {}: the plan of this one keeps its settings."
_WEIGHTS = (
    _NEXT.format("a lower optimizer.learning_rate, or training.precision set to float32")
    + " The champion plays on."
)

CHECKS: tuple[CheckRecipe, ...] = (
    CheckRecipe(
        CHAMPION,
        judgements.champion_verifies,
        "Nothing, where another generation serves: the next promotion takes its place. Else restore "
        "the named folder from a backup, or promote another generation (ringrift evaluate "
        "--promote); nothing is played with a model that is not the one promoted.",
        blocking=True,
    ),
    CheckRecipe(
        CHAMPION,
        integrity.gauntlet_sound,
        "Remove the folder gauntlet of the generation named, as its games count on the list of "
        "ratings, and play it again (the job champion_gauntlet).",
    ),
    CheckRecipe("selfplay_shards", judgements.shards_complete, _SHARDS, blocking=True),
    CheckRecipe("selfplay_shards", integrity.shards_sound, _SHARDS, blocking=True),
    CheckRecipe(
        "selfplay_shards",
        judgements.games_differ,
        _NEXT.format("a higher selfplay.temperature or selfplay.temperature_plies"),
    ),
    CheckRecipe(
        "selfplay_shards",
        regressions.window_fresh,
        "Start the next generation: the champion plays its shards.",
        blocking=True,
    ),
    CheckRecipe(
        "selfplay_shards",
        regressions.play_steady,
        "Look at the figure's plot and at some games. If the change is unwelcome: "
        + _NEXT.format("more exploration (selfplay.temperature, search.gumbel_scale)"),
    ),
    CheckRecipe("quality_scores", integrity.scores_schema, _THIS, blocking=True),
    CheckRecipe(
        "quality_scores",
        judgements.scores_sound,
        f"{_THIS} Equal scores for all games: " + _NEXT.format("other weights under quality"),
        blocking=True,
        table=True,
    ),
    CheckRecipe("hard_examples", integrity.examples_schema, _THIS, blocking=True),
    CheckRecipe(
        "hard_examples",
        judgements.examples_sound,
        f"{_THIS} None mined: " + _NEXT.format("a higher mining.buffer_size or selfplay.games"),
        blocking=True,
        table=True,
    ),
    CheckRecipe("checkpoint", judgements.losses_finite, _WEIGHTS, blocking=True),
    CheckRecipe(
        "checkpoint",
        judgements.training_learned,
        "Look at the loss curves. "
        + _NEXT.format(
            "a lower optimizer.learning_rate or training.sample_reuse (if the held-out loss rises "
            "while that of training falls), or with a higher training.holdout_fraction (if no "
            "held-out game had a full search; it counts for games to come)"
        ),
        blocking=True,
    ),
    CheckRecipe(
        "checkpoint",
        regressions.parent_trained_on,
        "Nothing, if another shape of the network was asked for. Else remove this generation's "
        "folder ema_model, or the next one starts from it. "
        + _NEXT.format("the parent's settings under network"),
    ),
    CheckRecipe(
        "checkpoint",
        integrity.no_leakage,
        "Do not believe this generation's held-out figures. Remove its folders window, "
        "hard_examples and checkpoint, and materialize hard_examples and all after it again. "
        "Copies among the games: "
        + _NEXT.format("a higher selfplay.temperature")
        + " Games that an earlier generation trained on: launch the next generation, which does not "
        "hold them out.",
        blocking=True,
    ),
    CheckRecipe(
        "checkpoint",
        integrity.ablation_sound,
        "Remove the generation's folder ablation, and launch the job ablation again.",
    ),
    CheckRecipe(
        "ema_model",
        judgements.average_fits,
        f"Remove this generation's folder ema_model, or the next one starts from it. {_WEIGHTS}",
        blocking=True,
    ),
    CheckRecipe(
        "ema_model",
        judgements.precision_holds,
        "Under search.precision auto this model plays in float32 from the next generation on, which "
        "costs speed alone. Under bfloat16: " + _NEXT.format("search.precision set to float32"),
    ),
    CheckRecipe(
        "ensemble",
        judgements.members_verify,
        f"{_THIS} It is left out of play until then.",
    ),
    CheckRecipe("calibration_report", integrity.bins_schema, _THIS, blocking=True),
    CheckRecipe(
        "calibration_report",
        judgements.calibration_sound,
        "Look at the reliability diagram. "
        + _NEXT.format(
            "a higher training.holdout_fraction (if few games were held out; it counts for games "
            "to come) or training.search_value_share (if the value head is too sure), or a higher "
            "calibration.max_error (if that much is tolerable)"
        ),
        blocking=True,
    ),
    CheckRecipe(
        "evaluation",
        integrity.games_schema,
        f"{_THIS} The baselines' games: remove the folder anchor_games of the generation named before.",
        blocking=True,
    ),
    CheckRecipe("evaluation", judgements.evaluation_sound, _THIS, blocking=True),
    CheckRecipe(
        "evaluation",
        integrity.gate_sound,
        f"{_THIS} Nothing is promoted on a verdict that its games do not bear out.",
        blocking=True,
    ),
    CheckRecipe(
        "evaluation",
        judgements.beats_random,
        "Look at the loss curves, and train more. "
        + _NEXT.format("a higher selfplay.games or training.sample_reuse"),
    ),
    CheckRecipe(
        "evaluation",
        regressions.gate_passed,
        "Nothing, if it happens now and then: the champion plays the next generation. Many times in "
        "a row: "
        + _NEXT.format(
            "a higher selfplay.games, or evaluation.max_games (if the test stays undecided)"
        ),
    ),
    CheckRecipe(
        "evaluation",
        regressions.champions_rise,
        "Launch the job champion_gauntlet, which rates the champions anew. If the fall is real: "
        + _NEXT.format(
            "a higher evaluation.max_games and more of evaluation.opponents: earlier champions, as "
            "generation:NNNN"
        ),
    ),
)


def blocking_checks(asset: str) -> list[str]:
    """Names of the checks of ``asset`` that must pass before anything rests on it."""
    return [check.name for check in CHECKS if check.asset == asset and check.blocking]


def objections(step: Step) -> list[str]:
    """What the blocking checks of a whole generation say against it, all made now; empty if nothing.

    For a generation that no run has made, and so nobody has judged.
    """
    found = []
    for check in CHECKS:
        if check.blocking and check.asset != CHAMPION:
            judgement = _judgement(check, step)
            if not judgement.passed:
                found.append(f"{check.asset}: {check.name}: {judgement.why}")
    return found


def _judgement(check: CheckRecipe, step: Step) -> Judgement:
    """The check's; its table is read while it judges, so that a damaged one has a verdict."""

    def judged(step: Step) -> Judgement:
        table = table_of(step.store, step.config, step.generation, check.asset)
        return check.judge(step, table)

    return judgements.judge(judged if check.table else check.judge, step)


class UnsoundError(ValueError):
    """What a job made does not pass its check; the message says why, and what to do."""


def require_sound(judge: Callable[[Step], Judgement], step: Step) -> None:
    """Judge what a job beside the loop has just made, before anything rests on it; the check itself
    looks at it with the next generation. Raises UnsoundError.
    """
    check = next(one for one in CHECKS if one.judge is judge)
    judgement = _judgement(check, step)
    if not judgement.passed:
        raise UnsoundError(f"{check.name}: {_said(check, judgement)}")


def _said(check: CheckRecipe, judgement: Judgement) -> str:
    """Why, and of a failure what to do."""
    if judgement.passed:
        return judgement.why
    return f"{judgement.why.rstrip('.')}. What to do: {check.todo}"


def result(check: CheckRecipe, judgement: Judgement, key: Any) -> AssetCheckResult:
    """The judgement as Dagster takes it; a failure that blocks is an error, else a warning."""
    blocks = check.blocking and judgement.stops
    return AssetCheckResult(
        asset_key=key,
        check_name=check.name,
        passed=judgement.passed,
        severity=AssetCheckSeverity.ERROR if blocks else AssetCheckSeverity.WARN,
        description=_said(check, judgement),
        metadata=dict(judgement.numbers),
    )


def _define(config: str, asset: str) -> AssetChecksDefinition:
    key = asset_key(config, asset)
    recipes = [check for check in CHECKS if check.asset == asset]

    @multi_asset_check(
        name=f"{config}__{asset}_checks",
        specs=[
            AssetCheckSpec(
                check.name,
                asset=key,
                blocking=check.blocking,
                description=(check.judge.__doc__ or "").strip(),
                # The champion is one pointer, not a generation's. Its check runs with every
                # generation, and alone for the one that would come next.
                partitions_def=None if asset == CHAMPION else partitions(config),
            )
            for check in recipes
        ],
        can_subset=True,
        required_resource_keys={"store"},
        retry_policy=LOST,
        op_tags=tags_of_checks(asset),
    )
    def judged(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        wanted = {selected.name for selected in context.selected_asset_check_keys}
        op = context.op_execution_context
        generation = None
        if asset == CHAMPION and not op.has_partition_key:  # alone, from the Checks tab
            generation = next_generation(op.resources.store.open(), config)
        with once(), running_step(context, config, generation) as step:
            for check in recipes:
                if check.name in wanted:
                    yield result(check, _judgement(check, step), key)
            if asset == CHAMPION:  # another may serve now
                with contextlib.suppress(StoreError):
                    reconcile_config(op.instance, step.store, config)

    return judged


def checks_of(config: str) -> list[AssetChecksDefinition]:
    """All checks of a config, one definition an asset."""
    with warnings.catch_warnings():
        # partitioned checks are a preview feature of Dagster 1.13
        warnings.simplefilter("ignore", PreviewWarning)
        return [_define(config, asset) for asset in (CHAMPION, *ASSETS)]
