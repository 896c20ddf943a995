"""What every step has around it, as the run's log shows it."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    DagsterEventType,
    DagsterInstance,
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    execute_job,
    in_process_executor,
    job,
    multiprocess_executor,
    op,
)
from dagster._core.definitions.reconstruct import ReconstructableJob
from sqlalchemy.exc import OperationalError

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.evaluation.tournament import TournamentError
from ringrift_pipeline.orchestration import progress
from ringrift_pipeline.orchestration.failure_sensor import first_failure
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import (
    BEGAN,
    LOST,
    SECONDS,
    SILENCE,
    TRANSFER_BYTES,
    TRANSFER_SECONDS,
    once,
    running_step,
)
from ringrift_pipeline.store import Store, VanishedFileError
from ringrift_pipeline.store.atomic import TEMPORARY, own_prefix
from ringrift_pipeline.store.transfer import count
from ringrift_pipeline.training.processes import ProcessDiedError


@op(required_resource_keys={"store"})
def play(context: OpExecutionContext) -> None:
    with running_step(context, "hex8_2p", 3) as step:
        assert step.key == "hex8_2p generation 0003"
        step.progress(3, 7, "3/7 games")


@job
def playing() -> None:
    play()


def run_it(data: Any, what: Any = playing) -> Any:
    instance = DagsterInstance.ephemeral()
    result = what.execute_in_process(
        instance=instance, resources={"store": StoreResource(root=str(data))}
    )
    return instance.all_logs(result.run_id)


def test_the_ui_sees_how_far_it_is(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TELL_INTERVAL", 0.0)
    told = [entry for entry in run_it(data) if entry.user_message == "3 of 7: 3/7 games"]
    assert [entry.step_key for entry in told] == ["play"]


def test_what_an_earlier_try_has_left_half_written_is_removed(data: Any) -> None:
    kinds = Store(data).root / "hex8_2p" / "generations"
    left = kinds / "0003" / "window" / f"{TEMPORARY}1-0a0a0a0a-aa"
    of_another = kinds / "0002" / "window" / f"{TEMPORARY}1-0a0a0a0a-aa"
    for folder in (left, of_another):
        folder.mkdir(parents=True)
    run_it(data)
    assert not left.exists() and of_another.exists()


def metadata_of(events: Any) -> list[Any]:
    return [
        entry.dagster_event.engine_event_data.metadata
        for entry in events
        if entry.dagster_event is not None
        and entry.dagster_event.event_type == DagsterEventType.ENGINE_EVENT
        and SECONDS in entry.dagster_event.engine_event_data.metadata
    ]


def test_its_own_time_is_noted(data: Any) -> None:
    (noted,) = metadata_of(run_it(data))
    assert 0 <= noted[SECONDS].value < 60 and noted[BEGAN].value > 1e9


@op(required_resource_keys={"store"})
def fetch(context: OpExecutionContext) -> None:
    count(seconds=1.0, size=1)  # before it is the step's
    with running_step(context, "hex8_2p", 3):
        count(seconds=2.0, size=70)


@job
def fetching() -> None:
    fetch()


def test_what_it_spent_on_the_bucket_is_noted(data: Any) -> None:
    (noted,) = metadata_of(run_it(data, fetching))
    assert (noted[TRANSFER_SECONDS].value, noted[TRANSFER_BYTES].value) == (2.0, 70)
    (noted,) = metadata_of(run_it(data))
    assert TRANSFER_SECONDS not in noted


def test_only_what_this_process_was_writing_is_removed(store: Store) -> None:
    kind = store.root / "hex8_2p" / "generations" / "0003" / "checkpoint"
    mine = kind / f"{own_prefix()}aa"
    file = kind.parent / f"{own_prefix()}bb"
    others = kind / f"{TEMPORARY}{os.getpid() + 1}-0a0a0a0a-cc"
    of_a_container = kind / f"{TEMPORARY}{os.getpid()}-0a0a0a0a-dd"
    for folder in (mine / "best", others, of_a_container):
        folder.mkdir(parents=True)
    (mine / "best" / "model.safetensors").touch()
    file.touch()
    store.remove_own("hex8_2p")
    assert not mine.exists() and not file.exists()
    assert others.exists() and of_a_container.exists()


def test_a_draft_that_is_landing_meanwhile_is_not_emptied(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, there = shutil.rmtree, []
    with pytest.raises(VanishedFileError), store.create("hex8_2p", 3, "checkpoint") as draft:
        (draft / "model.safetensors").touch()

        def remove(path: Path, **how: Any) -> None:
            there.append(draft.path.exists())
            whole(path, **how)

        monkeypatch.setattr(shutil, "rmtree", remove)
        store.remove_own("hex8_2p")
    assert there == [False]  # it cannot land any more once it is being emptied
    assert store.current("hex8_2p", 3, "checkpoint") is None


# --- what is lost is tried again, what failed is not --------------------------------------------


def note(context: OpExecutionContext) -> int:
    """Note a try; how many there were before."""
    log = Path(context.resources.store.root) / "tries"
    before = log.read_text().count("\n") if log.exists() else 0
    log.write_text("again\n" * (before + 1))
    return before


@op(required_resource_keys={"store"}, retry_policy=LOST)
def fails(context: OpExecutionContext) -> None:
    with once(), running_step(context, "hex8_2p", 3):
        note(context)
        raise ValueError("the games are no games")


@op(required_resource_keys={"store"}, retry_policy=LOST)
def is_killed(context: OpExecutionContext) -> None:
    with once(), running_step(context, "hex8_2p", 3):
        if note(context) < 2:
            os.kill(os.getpid(), signal.SIGKILL)


@op(required_resource_keys={"store"}, retry_policy=LOST)
def loses_a_worker(context: OpExecutionContext) -> None:
    with once(), running_step(context, "hex8_2p", 3):
        before = note(context)
        if before == 0:
            raise TournamentError("evaluation: a worker process died; run again")
        if before == 1:
            raise ProcessDiedError("training process 1 was killed (SIGKILL); run again")


@op(required_resource_keys={"store"}, retry_policy=LOST)
def loses_a_file(context: OpExecutionContext) -> None:
    """Each try is of another generation, as what lands is not made again."""
    number = note(context)
    store = context.resources.store.open()
    with once(), store.create("hex8_2p", number, "ensemble") as draft:
        (draft / "report.json").write_text("{}")
        if number < 2:
            (draft.path / "report.json").unlink()


LOST_DATABASE = OperationalError("INSERT", {}, Exception("terminating connection"))


class TooManyRetries(Exception):
    """As dagster-postgres tells what came of its attempts to connect."""


@op(required_resource_keys={"store"}, retry_policy=LOST)
def loses_the_database(context: OpExecutionContext) -> None:
    with once(), running_step(context, "hex8_2p", 3):
        before = note(context)
        if before == 0:
            raise LOST_DATABASE
        if before == 1:
            raise TooManyRetries("for a connection") from LOST_DATABASE


@job(executor_def=in_process_executor)
def losing_the_database() -> None:
    loses_the_database()


@job(executor_def=in_process_executor)
def losing_a_file() -> None:
    loses_a_file()


@job(executor_def=in_process_executor)
def failing() -> None:
    fails()


@job(executor_def=in_process_executor)
def losing_workers() -> None:
    loses_a_worker()


@job(
    executor_def=multiprocess_executor, resource_defs={"store": StoreResource.configure_at_launch()}
)
def killed() -> None:
    is_killed()


def test_an_error_fails_a_step_at_once_and_is_told(tmp_path: Path) -> None:
    instance = DagsterInstance.ephemeral()
    result = failing.execute_in_process(
        instance=instance,
        resources={"store": StoreResource(root=str(tmp_path))},
        raise_on_error=False,
    )
    assert not result.success
    assert (tmp_path / "tries").read_text() == "again\n"
    step, why = first_failure(instance, result.run_id)
    assert step == "fails" and why == "ValueError: the games are no games"


@pytest.mark.parametrize("what", [losing_workers, losing_a_file, losing_the_database])
def test_a_step_that_lost_a_worker_a_file_or_the_database_is_begun_again(
    what: JobDefinition, tmp_path: Path
) -> None:
    result = what.execute_in_process(resources={"store": StoreResource(root=str(tmp_path))})
    assert result.success
    assert (tmp_path / "tries").read_text() == "again\n" * 3


@op(required_resource_keys={"store"}, retry_policy=LOST)
def ends(context: OpExecutionContext) -> None:
    with once(), running_step(context, "hex8_2p", 3):
        note(context)


@job(executor_def=in_process_executor)
def ending() -> None:
    ends()


def test_a_database_that_is_away_at_the_end_of_a_step_fails_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = DagsterInstance.report_engine_event

    def away(self: DagsterInstance, message: str, *arguments: Any, **named: Any) -> Any:
        if message.startswith("The step's own work took"):
            raise LOST_DATABASE
        return report(self, message, *arguments, **named)

    monkeypatch.setattr(DagsterInstance, "report_engine_event", away)
    result = ending.execute_in_process(resources={"store": StoreResource(root=str(tmp_path))})
    assert result.success
    assert (tmp_path / "tries").read_text() == "again\n"


@pytest.mark.whole
def test_a_step_whose_process_is_killed_is_begun_again(tmp_path: Path) -> None:
    with (
        open_instance(tmp_path) as instance,
        execute_job(
            ReconstructableJob.for_file(__file__, "killed"),
            instance,
            run_config={"resources": {"store": {"config": {"root": str(tmp_path)}}}},
        ) as result,
    ):
        assert result.success
    assert (tmp_path / "tries").read_text() == "again\n" * 3


def test_every_step_of_a_generation_is_begun_again_if_it_is_lost() -> None:
    names_of = {node.name for node in generation_steps()}
    assert len(names_of) == 3 + 7 + 9  # of selfplay, of the other assets, checks
    assert [node.name for node in generation_steps() if node.retry_policy is None] == []


@pytest.mark.parametrize("name", ["champion_gauntlet", "ablation"])
def test_long_jobs_beside_the_loop_are_begun_again_too(name: str) -> None:
    (node,) = steps_of(name)
    assert node.retry_policy == LOST


def test_every_step_says_how_long_it_may_be_silent(data: Path) -> None:
    told = []

    @op(required_resource_keys={"store"})
    def looks(context: OpExecutionContext) -> None:
        with running_step(context, "hex8_2p", 3) as step:
            told.extend(progress.read_progress(step.store.root, context.run_id))

    @job
    def looking() -> None:
        looks()

    looking.execute_in_process(resources={"store": StoreResource(root=str(data))})
    assert [one.silence for one in told] == [SILENCE]


def generation_steps() -> list[OpDefinition]:
    return steps_of("square8_2p_generation")


def steps_of(name: str) -> list[OpDefinition]:
    graph = defs.get_repository_def().get_job(name).graph
    return list(graph.iterate_op_defs())
