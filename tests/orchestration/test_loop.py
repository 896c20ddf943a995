"""The loop: where it goes on, and one real one through the daemon, interrupted and taken up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import (
    AssetSelection,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    RunsFilter,
    define_asset_job,
)
from dagster._core.errors import DagsterRunNotFoundError
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG
from dagster._core.test_utils import create_run_for_test
from dagster._utils.error import SerializableErrorInfo
from faults.supervising import TINY

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import loop, names, sensor
from ringrift_pipeline.orchestration.champion import last_reported
from ringrift_pipeline.orchestration.decisions import CHECKS, LIMIT, PLAN, STARTED, read_decision
from ringrift_pipeline.orchestration.instance import no_retry, open_instance
from ringrift_pipeline.orchestration.loop import (
    MOST_LOST,
    Loop,
    LoopError,
    LoopRequest,
    asset_of_step,
    first_generation,
    is_decided,
)
from ringrift_pipeline.orchestration.places import progress_folder
from ringrift_pipeline.orchestration.reexecution import RETRY_TAG, cancelled_run
from ringrift_pipeline.orchestration.settings import run_config, settings_resource
from ringrift_pipeline.orchestration.submit import submit_generation
from ringrift_pipeline.orchestration.summary import summarize
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.layout import Layout

from .landing import fake_evaluation, landing
from .test_sensor import keys, tick

QUEUED = RunsFilter(statuses=[DagsterRunStatus.QUEUED])


@pytest.mark.parametrize(
    ("step", "asset"),
    [
        ("square8_2p__selfplay_shards.play[0003]", "selfplay_shards"),
        ("square8_2p__selfplay_shards.collect", "selfplay_shards"),
        ("square8_2p__checkpoint", "checkpoint"),
        ("square8_2p__checkpoint_losses_finite", None),
        ("square8_2p__champion_champion_verifies", None),
        ("gauntlet", None),
    ],
)
def test_steps_belong_to_assets(step: str, asset: str | None) -> None:
    assert asset_of_step("square8_2p", step) == asset


def test_where_a_loop_goes_on(store: Store) -> None:
    config = "square8_2p"
    assert first_generation(store, config, "auto") == 0
    store.write_plan(config, 0, {})
    assert first_generation(store, config, "auto") == 0  # planned, not finished
    assert first_generation(store, config, "never") == 1
    with store.create(config, 0, "decision", {"promoted": True, "reasons": [], "next": None}):
        pass
    assert is_decided(store, config, 0)  # of whichever evaluation: there is none here
    assert first_generation(store, config, "auto") == 1
    store.write_plan(config, 1, {})
    assert first_generation(store, config, "auto") == 1
    assert first_generation(store, "hex8_2p", "auto") == 0


@pytest.mark.parametrize(
    ("end", "goes_on"), [(LIMIT, 1), (STARTED, 1), (None, 1), (CHECKS, 0), (PLAN, 0)]
)
def test_a_loop_goes_on_past_no_failed_check(store: Store, end: str | None, goes_on: int) -> None:
    config = "square8_2p"
    store.write_plan(config, 0, {})
    with store.create(config, 0, "decision", {"promoted": False, "reasons": [], "end": end}):
        pass
    assert first_generation(store, config, "auto") == goes_on
    assert first_generation(store, config, "never") == 1


def test_a_loop_ends_with_an_error_where_a_check_has_failed(data: Path) -> None:
    work = Loop(LoopRequest("square8_2p", data, TrainingConfig.preset("smoke"), generations=1))
    decision = {"promoted": True, "reasons": ["no_leakage failed: 3 games"], "end": None}
    with work.store.create("square8_2p", 0, "decision", decision):
        pass
    work.states[0].decided = True
    work._stop_at_faults()
    with work.store.create("square8_2p", 0, "decision", {**decision, "end": CHECKS}):
        pass
    with pytest.raises(LoopError, match="0000: no_leakage failed: 3 games"):
        work._stop_at_faults()
    work.states[0].decided = False  # a decision on an older run says nothing of this one
    work._stop_at_faults()


def test_a_summary_of_nothing_is_empty(store: Store) -> None:
    summary = summarize(store, "hex8_2p", 3)
    assert summary.games is None and summary.promoted is None and not summary.decided


def failed(work: Loop, step: str | None = None) -> str:
    """The newest run of generation 0 has failed, by a step of it or lost; its id."""
    status = DagsterRunStatus.STARTED if step else DagsterRunStatus.FAILURE
    tags = {names.CONFIG_TAG: "square8_2p", names.PARTITION_TAG: "0000"}
    run = create_run_for_test(
        work.instance, job_name=names.job_name("square8_2p"), status=status, tags=tags
    )
    if step:
        error = SerializableErrorInfo("the disk is full", [], "OSError")
        event = DagsterEvent(
            DagsterEventType.STEP_FAILURE.value,
            run.job_name,
            step_key=step,
            event_specific_data=StepFailureData(error, None),
        )
        work.instance.report_dagster_event(event, run.run_id)
        work.instance.report_run_failed(run)
    work.states[0].run_id, work.states[0].status = run.run_id, "failure"
    return run.run_id


def test_a_run_whose_step_failed_is_given_up_once_dagster_has_noted_that_it_retries_it_no_more(
    data: Path,
) -> None:
    work = Loop(LoopRequest("square8_2p", data, TrainingConfig.preset("smoke"), generations=1))
    with open_instance(data) as instance:
        work._instance = instance
        run_id = failed(work, step="square8_2p__checkpoint")
        work._judge()  # nothing is noted yet: that is done a moment after the failure
        instance.add_run_tags(run_id, {RETRY_TAG: "true"})
        work._judge()
        no_retry(instance, run_id)
        with pytest.raises(LoopError, match="0000: step square8_2p__checkpoint failed: the disk"):
            work._judge()
        assert len(instance.get_runs()) == 1


def test_a_lost_run_that_dagster_does_not_retry_is_asked_for_again_but_not_for_ever(
    data: Path,
) -> None:
    work = Loop(LoopRequest("square8_2p", data, TrainingConfig.preset("smoke"), generations=1))
    with open_instance(data) as instance:
        work._instance = instance
        for number in range(MOST_LOST):
            run_id = failed(work)
            work._judge()
            instance.add_run_tags(run_id, {RETRY_TAG: "true"})
            work._judge()
            assert not instance.get_runs(QUEUED)  # it is Dagster's to retry
            no_retry(instance, run_id)
            work._judge()
            (again,) = instance.get_runs(QUEUED)
            assert again.tags[names.PARTITION_TAG] == "0000", number
            instance.report_run_failed(again)
        no_retry(instance, failed(work))
        with pytest.raises(LoopError, match="0000: the run failed"):
            work._judge()
        assert not instance.get_runs(QUEUED)


def test_a_run_that_failed_by_an_error_of_its_own_is_not_asked_for_again(data: Path) -> None:
    work = Loop(LoopRequest("square8_2p", data, TrainingConfig.preset("smoke"), generations=1))
    with open_instance(data) as instance:
        work._instance = instance
        run_id = failed(work)
        instance.add_run_tags(run_id, {RUN_FAILURE_REASON_TAG: "RUN_EXCEPTION"})
        no_retry(instance, run_id)
        with pytest.raises(LoopError, match="0000: the run failed"):
            work._judge()
        assert not instance.get_runs(QUEUED)


def test_a_run_that_is_lost_between_its_evaluation_and_the_checks_of_it_is_asked_for_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is first, the loop or the sensor, which finds that the checks never came."""

    def deleted(run_id: str) -> None:
        raise DagsterRunNotFoundError("gone", invalid_run_id=run_id)

    work = Loop(LoopRequest("square8_2p", data, TrainingConfig.preset("smoke"), generations=1))

    def decide(run_id: str, end: str | None) -> None:
        decision = {"promoted": False, "reasons": ["no result"], "end": end, "run": run_id}
        with work.store.create("square8_2p", 0, "decision", decision | {"next": None}):
            pass

    with open_instance(data) as instance:
        work._instance = instance
        work._before = {0: None}
        lost = failed(work)
        no_retry(instance, lost)
        decide(lost, CHECKS)
        work._look()
        assert not work.states[0].decided
        work._stop_at_faults()
        work._judge()
        (again,) = instance.get_runs(QUEUED)
        instance.report_run_failed(again)
        tags = {names.CONFIG_TAG: "square8_2p", names.PARTITION_TAG: "0000"}
        job = names.job_name("square8_2p")
        good = create_run_for_test(
            instance, job_name=job, status=DagsterRunStatus.SUCCESS, tags=tags
        )
        work._look()  # the sensor has not come to it yet
        assert not work.states[0].decided and work.states[0].run_id == good.run_id
        decide(good.run_id, CHECKS)
        with monkeypatch.context() as patch:  # somebody has deleted the first run of its group
            patch.setattr(instance, "get_run_group", deleted)
            work._look()
        assert work.states[0].decided  # that one is at fault itself
        work.states[0].decided = False
        decide(good.run_id, None)
        work._look()
        assert work.states[0].decided


def test_a_new_loop_replaces_runs_that_wait_however_many_came_after_them(data: Path) -> None:
    config = "square8_2p"
    work = Loop(LoopRequest(config, data, TrainingConfig.preset("smoke"), generations=1))
    job = names.job_name(config)
    with open_instance(data) as instance:
        work._instance = instance
        waiting = submit_generation(instance, config, 0, run_config(work.request.settings))
        lost = create_run_for_test(instance, job_name=job, status=DagsterRunStatus.FAILURE)
        given_up = create_run_for_test(instance, job_name=job, status=DagsterRunStatus.FAILURE)
        no_retry(instance, given_up.run_id)
        for _ in range(25):
            create_run_for_test(instance, job_name=job, status=DagsterRunStatus.SUCCESS)

        def updated() -> object:
            record = instance.get_run_record_by_id(given_up.run_id)
            return record.update_timestamp if record is not None else None

        before = updated()
        work._replace_old_runs()
        states = {run.run_id: run for run in instance.get_runs()}
        assert states[waiting].status == DagsterRunStatus.CANCELED
        assert states[lost.run_id].tags[RETRY_TAG] == "false"
        assert updated() == before  # a failure of today it would be else, and kept by retention


class Servers:
    """In the place of the daemon and its code server: which runs there are when they are started, and
    when they may begin.
    """

    workspace = ("-w", "nowhere")
    well_since = 0.0
    started: list[list[tuple[str, str]]]
    begun: list[list[tuple[str, str]]]

    def __init__(self, data: Path, instance: DagsterInstance, **_: object) -> None:
        self.instance = instance
        Servers.started.append(runs_of(instance))

    def begin(self) -> None:
        """Note it."""
        Servers.begun.append(runs_of(self.instance))

    def stop(self) -> None:
        """Nothing runs."""

    check = stop


def runs_of(instance: DagsterInstance) -> list[tuple[str, str]]:
    runs = [run for run in instance.get_runs() if names.PARTITION_TAG in run.tags]
    return sorted((run.tags[names.PARTITION_TAG], run.status.value) for run in runs)


@pytest.fixture
def undecided(data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A run of the real job's name has made generation 0, and its daemon ended before the sensor
    looked. ``checked``: its blocking checks have passed; ``last``: the last generation asked for.
    """
    monkeypatch.setattr(loop, "Backend", Servers)
    Servers.started, Servers.begun = [], []

    def made(checked: bool = True, last: int = 0) -> None:
        config, store = "square8_2p", Store(data)
        evaluation = fake_evaluation(store, config, 0, True, None)
        says = {} if checked else {"evaluation_sound": False}
        landed = landing(config, names.ASSETS, says, evaluation)
        name = names.job_name(config)
        job = Definitions(
            assets=[landed],
            jobs=[define_asset_job(name, AssetSelection.assets(landed))],
            resources={"settings": settings_resource},
        ).resolve_job_def(name)
        with open_instance(data) as instance:
            instance.add_dynamic_partitions(names.partitions_name(config), ["0000"])
            job.execute_in_process(
                partition_key="0000",
                instance=instance,
                run_config=run_config(TrainingConfig.preset("smoke"), last_generation=last),
                tags={names.CONFIG_TAG: config, names.PARTITION_TAG: "0000"},
                raise_on_error=False,
            )

    return made


def looped(data: Path, generations: int) -> Loop:
    settings = TrainingConfig.preset("smoke")
    return Loop(LoopRequest("square8_2p", data, settings, generations=generations))


def test_a_generation_that_was_made_but_not_decided_is_not_run_again(
    data: Path, undecided: Callable[..., None]
) -> None:
    undecided()
    with looped(data, 1) as work:
        (snapshot,) = work.watch()  # it was the last one asked for
        assert [state.decided for state in snapshot.generations] == [True]
        assert runs_of(work.instance) == [("0000", "SUCCESS")]
        assert last_reported(work.instance, "square8_2p") is not None
    assert Servers.begun == []
    champion = Store(data).champion("square8_2p")
    assert champion is not None and champion.generation == 0
    assert is_decided(Store(data), "square8_2p", 0)


def test_the_last_generation_of_the_new_loop_counts_not_that_of_the_killed_one(
    data: Path, undecided: Callable[..., None]
) -> None:
    undecided(last=3)
    with looped(data, 1) as work:
        (snapshot,) = work.watch()
        assert snapshot.generations[0].decided
        decision = read_decision(work.store, "square8_2p", 0)
        assert decision is not None
        wanted = {"next": None, "end": LIMIT, "last_generation": 0}
        assert {name: decision[name] for name in wanted} == wanted
        assert keys(tick(work.instance)) == []  # as of the next ringrift ui
        assert runs_of(work.instance) == [("0000", "SUCCESS")]


def cancelled_beside(instance: DagsterInstance) -> str:
    """Another run of generation 0 was cancelled, the newest now; its id."""
    tags = {names.CONFIG_TAG: "square8_2p", names.PARTITION_TAG: "0000"}
    job = names.job_name("square8_2p")
    return create_run_for_test(
        instance, job_name=job, status=DagsterRunStatus.CANCELED, tags=tags
    ).run_id


def test_a_generation_that_was_made_is_not_run_again_for_another_run_that_was_cancelled(
    data: Path, undecided: Callable[..., None]
) -> None:
    undecided()
    with open_instance(data) as instance:
        cancelled_beside(instance)
    with looped(data, 1) as work:
        (snapshot,) = work.watch()
        assert [(one.status, one.decided) for one in snapshot.generations] == [("success", True)]
        assert runs_of(work.instance) == [("0000", "CANCELED"), ("0000", "SUCCESS")]


def test_another_run_that_is_cancelled_does_not_end_the_loop_while_one_is_at_work(
    data: Path,
) -> None:
    work = looped(data, 1)
    tags = {names.CONFIG_TAG: "square8_2p", names.PARTITION_TAG: "0000"}
    job = names.job_name("square8_2p")
    with open_instance(data) as instance:
        work._instance, work._before = instance, {0: None}
        at_work = create_run_for_test(
            instance, job_name=job, status=DagsterRunStatus.STARTED, tags=tags
        )
        cancelled = cancelled_beside(instance)

        def stands() -> tuple[str | None, str]:
            work._look()
            work._judge()
            return work.states[0].run_id, work.states[0].status

        assert stands() == (at_work.run_id, "started")
        assert cancelled_run(instance, work.store, "square8_2p") is None
        instance.report_run_failed(at_work)
        instance.add_run_tags(at_work.run_id, {RETRY_TAG: "true"})
        assert stands() == (at_work.run_id, "failure")  # it is retried
        no_retry(instance, at_work.run_id)
        instance.add_run_tags(at_work.run_id, {RUN_FAILURE_REASON_TAG: "RUN_EXCEPTION"})
        with pytest.raises(LoopError, match="its run was cancelled"):
            stands()
        found = cancelled_run(instance, work.store, "square8_2p")
        assert found is not None and found.dagster_run.run_id == cancelled
        made = create_run_for_test(
            instance, job_name=job, status=DagsterRunStatus.SUCCESS, tags=tags
        )
        cancelled_beside(instance)
        assert stands() == (made.run_id, "success")
        assert cancelled_run(instance, work.store, "square8_2p") is None


def test_the_next_one_is_started_once_and_before_a_sensor_could(
    data: Path, undecided: Callable[..., None]
) -> None:
    undecided()
    with looped(data, 2) as work:
        runs = [("0000", "SUCCESS"), ("0001", "QUEUED")]
        assert Servers.begun == [runs]
        assert Servers.started == [runs[:1]]  # they load while the run is put into the queue
        assert keys(tick(work.instance)) == [] and runs_of(work.instance) == runs
        (run,) = work.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.QUEUED]))
        assert run.run_config["resources"]["settings"]["config"]["last_generation"] == 1
        snapshot = next(work.watch())
        assert [state.decided for state in snapshot.generations] == [True, False]
        assert snapshot.generations[1].run_id == run.run_id
    with looped(data, 1) as work:  # and the loop after that goes on from there
        assert work.first == 1


def test_what_a_killed_loops_daemon_decides_before_this_one_has_begun_stands(
    data: Path, undecided: Callable[..., None]
) -> None:
    """It lives on for a second, in which another loop may have looked where it goes on."""
    undecided()
    work = looped(data, 2)
    with open_instance(data) as instance:
        assert keys(tick(instance)) == []  # the last one that the killed loop was asked for
    with work:
        assert runs_of(work.instance) == [("0000", "SUCCESS"), ("0001", "QUEUED")]
        assert [state.decided for state in next(work.watch()).generations] == [True, False]


def test_a_decided_generation_that_has_lost_its_plan_is_begun_anew(
    data: Path, undecided: Callable[..., None]
) -> None:
    undecided()
    with looped(data, 1):
        pass
    Layout(data).plan("square8_2p", 0).unlink()
    with looped(data, 1) as work:
        assert runs_of(work.instance) == [("0000", "QUEUED"), ("0000", "SUCCESS")]


def test_a_generation_whose_checks_failed_is_run_again(
    data: Path, undecided: Callable[..., None]
) -> None:
    undecided(checked=False)
    with looped(data, 1) as work:
        assert [key for key, _ in runs_of(work.instance)] == ["0000", "0000"]


def test_a_decision_that_has_to_wait_is_waited_for(
    data: Path, undecided: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    undecided(last=3)
    monkeypatch.setattr(sensor, "is_on", lambda *_: False)  # a job that pauses it is in the queue
    with looped(data, 2) as work:
        assert Servers.begun == [[("0000", "SUCCESS")]]
        state = next(work.watch()).generations[0]
        assert (state.status, state.decided) == ("success", False)


def test_a_backfills_run_of_the_same_generation_is_not_the_loops(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Backend", Servers)
    Servers.started, Servers.begun = [], []
    config = "square8_2p"
    filled = {names.BACKFILL_TAG: "some"}
    with open_instance(data) as instance:
        waiting = submit_generation(instance, config, 1, run_config(TrainingConfig()))
        instance.add_run_tags(waiting, filled)
    with looped(data, 2) as work:
        create_run_for_test(
            work.instance,
            job_name=names.job_name(config),
            tags={names.CONFIG_TAG: config, names.PARTITION_TAG: "0000", **filled},
            status=DagsterRunStatus.CANCELED,
        )
        first, second = next(work.watch()).generations
        assert (first.status, second.run_id) == ("queued", None)
    with open_instance(data) as instance:
        assert runs_of(instance) == [
            ("0000", "CANCELED"),
            ("0000", "CANCELED"),
            ("0001", "QUEUED"),  # the backfill's, which the loop leaves to it
        ]


def start(data: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RINGRIFT_DATA", None)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ringrift_pipeline",
            "loop",
            "--data",
            str(data),
            "--json",
            *TINY,
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(address: str) -> bytes:
    """What a page says, once its server listens."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=120) as page:
                return bytes(page.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def processes_of(data: Path, variable: str = "") -> list[str]:
    """Command lines of the processes that work on a data root and have a variable set so."""
    wanted = {f"RINGRIFT_DATA={data}".encode(), *([variable.encode()] if variable else [])}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= {*(entry / "environ").read_bytes().split(b"\0")}:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.whole
def test_a_real_loop_is_stopped_cleanly_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    port, games = free_port(), free_port()
    monkeypatch.setenv("RINGRIFT_PLAY_URL", f"http://127.0.0.1:{games}")
    first = start(data, "--ui", "--port", str(port))
    deadline = time.monotonic() + 240
    while not any(progress_folder(data).glob("*/*.json")) and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    assert processes_of(data, "RINGRIFT_POOL=cpu")  # its steps wait for no GPU
    # the UI, and the page that its links to recorded games lead to
    assert answer(f"http://127.0.0.1:{port}/server_info")
    assert "items" in json.loads(answer(f"http://127.0.0.1:{games}/api/games"))
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 130, told
    assert f"Recorded games, and a board to play on: http://127.0.0.1:{games}" in told
    assert processes_of(data) == []
    with open_instance(data) as instance:
        (run,) = instance.get_runs()
        assert run.status == DagsterRunStatus.CANCELED

    again = start(data, "--generations=2")  # the second one is the sensor's to start
    shown, told = again.communicate(timeout=560)
    assert again.returncode == 0, told
    assert processes_of(data) == []
    summary = json.loads(shown)
    assert [one["generation"] for one in summary["generations"]] == [0, 1]
    for generation in summary["generations"]:
        assert generation["games"] == 8
        assert generation["decided"] and isinstance(generation["promoted"], bool)
        assert set(generation["seconds"]) >= {"selfplay_shards", "checkpoint", "evaluation"}
    assert str(data) in summary["ui"]
    store = Store(data)
    assert first_generation(store, "square8_2p", "auto") == 2
    with open_instance(data) as instance:
        statuses = sorted(run.status.value for run in instance.get_runs())
        assert statuses == ["CANCELED", "SUCCESS", "SUCCESS"]
        offered = ["0000", "0001", "0002"]
        assert instance.get_dynamic_partitions("square8_2p_generation") == offered
