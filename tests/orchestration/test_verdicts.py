"""What stands against the assets that a step is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dagster import AssetCheckKey, DagsterInstance
from dagster._core.event_api import PartitionKeyFilter

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names, verdicts
from ringrift_pipeline.orchestration.checks import blocking_checks
from ringrift_pipeline.orchestration.verdicts import standing_failures

from .landing import Land

CONFIG = "square8_2p"
DEPENDENCIES = ("selfplay_shards", "quality_scores", "hard_examples")
SCORES = names.asset_key(CONFIG, "quality_scores")
FAILED = ["check scores_sound of quality_scores failed: as asked"]
REST = tuple(name for name in names.ASSETS if name != "quality_scores")


def standing(instance: DagsterInstance, generation: int = 0) -> list[str]:
    return standing_failures(instance, CONFIG, DEPENDENCIES, names.generation_key(generation))


def test_a_failed_check_stands_until_it_passes(
    instance: DagsterInstance, land: Land, judge_again: Callable[..., Any]
) -> None:
    assert standing(instance) == []  # nothing was made
    land(CONFIG, 0, checks={"scores_sound": False})
    assert standing(instance) == FAILED
    land(CONFIG, 1)
    assert standing(instance, 1) == [] and standing(instance) == FAILED
    judge_again(CONFIG, 0, asset="quality_scores")
    assert standing(instance) == []


def test_a_failure_that_only_warns_stands_in_nobodys_way(
    instance: DagsterInstance, land: Land, judge_again: Callable[..., Any]
) -> None:
    land(CONFIG, 0)
    judge_again(CONFIG, 0, asset="quality_scores", passed=False, stops=False)
    assert standing(instance) == []
    judge_again(CONFIG, 0, asset="quality_scores", passed=False)
    assert len(standing(instance)) == len(blocking_checks("quality_scores")) > 0


def test_what_was_made_anew_is_not_judged_yet(instance: DagsterInstance, land: Land) -> None:
    land(CONFIG, 0, checks={"scores_sound": False})
    land(CONFIG, 0, checks={"scores_sound": None, "scores_schema": None}, without=REST)
    assert standing(instance) == []


def test_a_check_that_was_planned_and_never_ran_changes_nothing(
    instance: DagsterInstance, land: Land
) -> None:
    """A run that was to execute it again was cancelled."""
    land(CONFIG, 0, checks={"scores_sound": False})
    check = AssetCheckKey(SCORES, "scores_sound")
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    run = instance.create_run_for_job(
        job.get_subset(asset_selection=set(), asset_check_selection={check}),
        tags={names.PARTITION_TAG: "0000"},
    )
    instance.report_run_canceled(run)
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [check], PartitionKeyFilter(key="0000")
    )
    assert latest[check].run_id == run.run_id
    assert standing(instance) == FAILED


def test_where_nothing_failed_one_question_is_enough(
    instance: DagsterInstance, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(CONFIG, 0)
    for more in ("newest_materialization", "_judged"):
        monkeypatch.setattr(verdicts, more, lambda *_: pytest.fail("asked more"))
    assert standing(instance) == []
