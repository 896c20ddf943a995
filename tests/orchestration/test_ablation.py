"""The ablation as a job: an observation of the checkpoint with table and picture."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from dagster import AssetKey, DagsterInstance, Failure

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.orchestration.ablation import JOB
from ringrift_pipeline.orchestration.watchdog import Watchdog
from ringrift_pipeline.selfplay import collect, plan_generation, play_shards
from ringrift_pipeline.store import Store

from .conftest import observations, plotted

CONFIG = "square8_2p"
TINY = {
    "device": "cpu",
    "selfplay.games": 10,
    "selfplay.workers": 1,
    "network.blocks": 1,
    "network.channels": 8,
    "training.batch_size": 16,
}


@pytest.fixture()
def games(store: Store) -> Store:
    settings = TrainingConfig().with_overrides(TINY)
    plan = plan_generation(store, CONFIG, 0, settings, datetime(2026, 1, 1, tzinfo=UTC))
    play_shards(store, plan)
    collect(store, plan)
    return store


def run_job(instance: DagsterInstance, **config: Any) -> Any:
    values = {"config": CONFIG, "seeds": 2, "steps": 1, **config}
    return (
        defs.get_repository_def()
        .get_job(JOB)
        .execute_in_process(run_config={"ops": {"ablate": {"config": values}}}, instance=instance)
    )


def test_the_checkpoint_is_observed_with_table_and_picture(
    games: Store, instance: DagsterInstance
) -> None:
    result = run_job(instance)
    (observed,) = observations(result)
    artefact = games.require(CONFIG, 0, "ablation")
    assert observed.asset_key == AssetKey([CONFIG, "checkpoint"])
    assert observed.partition == "0000"
    for name, verdict in artefact.metadata["verdicts"].items():
        assert f"{name}: {verdict}" in observed.description
    assert observed.metadata["table"].value == artefact.file("table.md").read_text()
    picture = observed.metadata["ablation"].value
    assert picture.startswith("![ablation](data:image/png;base64,") and len(picture) < 50_000
    assert observed.metadata["path"].value == str(artefact.path)
    assert plotted(observed.metadata) == []  # the checkpoint plots fifteen numbers by itself
    assert " rows/s" in observed.metadata["training of all runs"].value


def test_a_table_that_is_not_sound_is_not_told(games: Store, instance: DagsterInstance) -> None:
    """Whose ever it is: one that is there already is not made again."""
    run_job(instance)
    made = games.require(CONFIG, 0, "ablation")
    with games.create(CONFIG, 0, "ablation", made.metadata) as draft:
        for name in made.files:
            shutil.copyfile(made.file(name), draft / name)
        table = pl.read_parquet(draft / "table.parquet")
        table.drop("p").write_parquet(draft / "table.parquet")
    with pytest.raises(Failure, match="UnsoundError: ablation_sound: .*the job ablation again"):
        run_job(instance)


def test_a_termination_ends_it_and_keeps_what_was_made(
    games: Store, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(dog: Watchdog) -> bool:
        return any(kind.startswith("ablation-run-") for kind in games.kinds(CONFIG, 0))

    monkeypatch.setattr(Watchdog, "stopping", stopping)
    with pytest.raises(Failure, match="Interrupted: .*finished runs are kept"):
        run_job(instance, generation=0)
    assert sum(kind.startswith("ablation-run-") for kind in games.kinds(CONFIG, 0)) == 1
    assert games.current(CONFIG, 0, "ablation") is None


def test_a_config_without_games_is_refused(store: Store, instance: DagsterInstance) -> None:
    with pytest.raises(Failure, match="NothingPlayedError: .*has no games"):
        run_job(instance)
