"""Fixtures of the Dagster tests: a data root, an instance, evaluations that land."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    DagsterInstance,
    FloatMetadataValue,
    IntMetadataValue,
    materialize,
)
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import judgements, loop, names
from ringrift_pipeline.orchestration.checks import blocking_checks
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.settings import run_config, settings_resource
from ringrift_pipeline.store import Store

from .hooks import Hook
from .landing import Land, fake_evaluation, landing

warnings.filterwarnings("ignore", category=UserWarning, module="dagster")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root, which everything in the process works on."""
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> Store:
    return Store(data)


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop starts no daemon and no code server: nothing is run."""
    nothing = SimpleNamespace(begin=lambda: None, stop=lambda: None, well_since=0.0)
    monkeypatch.setattr(loop, "Backend", lambda *_, **__: nothing)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def land(instance: DagsterInstance, store: Store) -> Land:
    """``land(config, generation)``: a generation lands in a real run, with its blocking checks.

    ``promote`` is what the gate says, ``passed`` what the evaluation's check says (None: the check
    does not run), ``last`` the run's last generation, ``tags`` more tags of the run, ``rating`` the
    candidate's with half its interval, ``checks`` what other checks say, by name, ``without`` assets
    that are not materialized.
    """

    def landed(
        config: str,
        generation: int,
        *,
        promote: bool = True,
        passed: bool | None = True,
        last: int | None = None,
        tags: dict[str, str] | None = None,
        rating: tuple[float, float] | None = None,
        checks: dict[str, bool | None] | None = None,
        without: tuple[str, ...] = (),
    ) -> Any:
        evaluation = fake_evaluation(store, config, generation, promote, rating)
        key = names.generation_key(generation)
        if not instance.has_dynamic_partition(names.partitions_name(config), key):
            instance.add_dynamic_partitions(names.partitions_name(config), [key])
        says = {"evaluation_sound": passed, **(checks or {})}
        made = [name for name in names.ASSETS if name not in without]
        return materialize(
            [landing(config, made, says, evaluation)],
            instance=instance,
            partition_key=key,
            resources={"settings": settings_resource},
            run_config=run_config(TrainingConfig.preset("smoke"), last_generation=last),
            tags=tags,
            raise_on_error=False,
        )

    return landed


@pytest.fixture
def judge_again(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``judge_again(config, generation)``: a run of the blocking checks of ``asset`` and no more.

    ``passed`` is what they say, ``stops`` whether a failure is one that blocks, ``retry_of`` the id
    of the run that it re-executes.
    """
    from ringrift_pipeline.definitions import defs

    def judged(
        config: str,
        generation: int,
        *,
        asset: str = "evaluation",
        passed: bool = True,
        stops: bool = True,
        retry_of: str | None = None,
    ) -> Any:
        key = names.asset_key(config, asset)
        checks = {AssetCheckKey(key, name) for name in blocking_checks(asset)}
        job = defs.get_repository_def().get_job(names.job_name(config))
        tags = {names.CONFIG_TAG: config}
        with monkeypatch.context() as patch:
            said = judgements.Judgement(passed, "looked at again", stops=stops)
            patch.setattr(judgements, "judge", lambda *_: said)
            return job.get_subset(
                asset_selection=set(), asset_check_selection=checks
            ).execute_in_process(
                partition_key=names.generation_key(generation),
                instance=instance,
                tags=tags if retry_of is None else {**tags, **re_executing(retry_of)},
                raise_on_error=False,
            )

    return judged


def observations(result: Any) -> list[Any]:
    """What a run observed."""
    return [
        event.asset_observation_data.asset_observation
        for event in result.all_events
        if event.is_asset_observation
    ]


def plotted(metadata: Any) -> list[str]:
    """The names that the UI draws over generations."""
    return [
        name
        for name, value in metadata.items()
        if isinstance(value, IntMetadataValue | FloatMetadataValue)
    ]


def re_executing(run_id: str) -> dict[str, str]:
    """The tags of a run that re-executes the run ``run_id``."""
    return {PARENT_RUN_ID_TAG: run_id, ROOT_RUN_ID_TAG: run_id}


def a_backfill(identity: str, status: BulkActionStatus) -> PartitionBackfill:
    """A backfill of nothing."""
    return PartitionBackfill(
        backfill_id=identity, status=status, from_failure=False, tags={}, backfill_timestamp=0.0
    )


@dataclass(frozen=True)
class Played:
    """A whole generation of real, tiny artefacts, and the run that made them."""

    data: Path
    config: str
    result: Any
    instance: DagsterInstance


TINY = {
    "preset": "smoke",
    "device": "cpu",
    "selfplay": {"games": 8, "games_per_shard": 4, "parallel_games": 4, "workers": 1},
    "search": {"simulations": 4, "cheap_simulations": 2, "max_considered": 4},
    "network": {"blocks": 1, "channels": 8, "value_channels": 4},
    "mining": {"enabled": True},
    "averaging": {"enabled": True},
    "training": {"max_steps": 4, "batch_size": 32, "holdout_fraction": 0.3, "threads": 1},
    "calibration": {"bins": 3, "bootstrap": 20, "min_games": 2},
    "evaluation": {"games": 4, "max_games": 4, "simulations": 2},
    "last_generation": 0,
}


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """One real generation of square8_2p, made by the real job in this process."""
    from ringrift_pipeline.definitions import defs

    data = tmp_path_factory.mktemp("played")
    config = "square8_2p"
    with pytest.MonkeyPatch.context() as patch, DagsterInstance.ephemeral() as instance:
        patch.setenv("RINGRIFT_DATA", str(data))
        instance.add_dynamic_partitions(names.partitions_name(config), ["0000"])
        job = defs.get_repository_def().get_job(names.job_name(config))
        result = job.execute_in_process(
            run_config={"resources": {"settings": {"config": TINY}}},
            partition_key="0000",
            instance=instance,
            raise_on_error=False,
        )
        yield Played(data, config, result, instance)


@pytest.fixture
def copied(played: Played, data: Path) -> Store:
    """The real generation's store, copied, to be broken."""
    shutil.copytree(played.data, data)
    return Store(data)


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(Store(tmp_path / "data"))
