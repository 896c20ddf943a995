"""One job a config, and the executor every run uses."""

from __future__ import annotations

from typing import Any

from dagster import (
    AssetSelection,
    DagsterRun,
    ExecutorDefinition,
    define_asset_job,
    multiprocess_executor,
)
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.storage.tags import RETRY_STRATEGY_TAG

from ringrift_pipeline.orchestration.names import (
    ASSETS,
    CHAMPION,
    CONFIG_TAG,
    CONFIGS,
    PRELOAD,
    asset_key,
    job_name,
)
from ringrift_pipeline.orchestration.pools import distributed, limits_in_a_run
from ringrift_pipeline.selfplay.workers import cores

# A lost run is retried from its first step until its shards are collected, and then from its failure: from
# there Dagster would leave out the shards that were not begun. What is there is not made again.
RETRIED_WHOLE = {RETRY_STRATEGY_TAG: ReexecutionStrategy.ALL_STEPS.value}


def executor() -> ExecutorDefinition:
    """Steps in processes of their own, forked from a server that has torch loaded already; on
    Celery's workers where ``$RINGRIFT_EXECUTOR`` says so.

    A CUDA context must never exist before the fork: nothing preloaded touches a device.

    Raises:
        PoolError: the environment names no executor of ours.
    """
    if distributed():
        from ringrift_pipeline.orchestration.celery_executor import celery_executor

        return celery_executor
    return multiprocess_executor.configured(
        {
            "max_concurrent": cores(),
            "tag_concurrency_limits": limits_in_a_run(),
            "start_method": {"forkserver": {"preload_modules": [PRELOAD]}},
        }
    )


def generation_job(config: str) -> Any:
    """``<config>_generation``: everything of one generation, with its checks."""
    keys = [asset_key(config, name) for name in ASSETS]
    selection = AssetSelection.assets(*keys) | AssetSelection.checks_for_assets(
        asset_key(config, CHAMPION)
    )
    return define_asset_job(
        job_name(config),
        selection=selection,
        description=f"One generation of {config}: selfplay, scores, hard examples, training, "
        "average, ensemble, calibration, evaluation. The launchpad takes every setting of "
        "TrainingConfig under resources > settings; a value out of bounds is refused at launch.",
        tags={CONFIG_TAG: config, **RETRIED_WHOLE},
    )


def configs_of(run: DagsterRun) -> set[str]:
    """The configs whose assets a run makes: by its job, or by what was picked in the UI."""
    picked = {key.path[0] for key in run.asset_selection or ()}
    return {config for config in CONFIGS if config in picked or run.job_name == job_name(config)}


def configs_in_ops(run: DagsterRun) -> frozenset[str]:
    """The configs that the run config of a job's ops names, as of a gauntlet or an ablation."""
    ops: Any = run.run_config.get("ops")
    found = set()
    for one in ops.values() if isinstance(ops, dict) else ():
        config = one.get("config") if isinstance(one, dict) else None
        named = config.get("config") if isinstance(config, dict) else None
        found |= {named} if isinstance(named, str) else set()
    return frozenset(found & set(CONFIGS))


def configs_meant(run: DagsterRun) -> frozenset[str]:
    """The configs that a run without a config's tag is about; none where it is about all."""
    checked = {key.asset_key.path[0] for key in run.asset_check_selection or ()} & set(CONFIGS)
    return frozenset(checked | configs_of(run) | configs_in_ops(run))
