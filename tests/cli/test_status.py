"""``ringrift status``: what runs, what is next, how strong each config is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.cli import run
from ringrift_pipeline.commands.status import size
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.notify import Alert, LogNotifier
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.presence import announce, announced, present
from ringrift_pipeline.orchestration.progress import ProgressFile
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.status import RECENT_ALERTS, disk_usage, status_of
from ringrift_pipeline.orchestration.summary import listed as listed_by
from ringrift_pipeline.orchestration.summary import summarize
from ringrift_pipeline.store import Store

CONFIG = "square8_2p"
REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(names.MODULE), "__repository__")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Store(tmp_path / "data")


def generation(store: Store, number: int, games: int, elo: float | None, promote: bool) -> None:
    """What ``ringrift status`` reads of a generation."""
    store.write_plan(CONFIG, number, {"settings": TrainingConfig.preset("smoke").to_dict()})
    with store.create(CONFIG, number, "selfplay_shards", {"selfplay/games": games}):
        pass
    if elo is None:
        return
    rating = {"eval/elo": elo, "eval/elo_low": elo - 50, "eval/elo_high": elo + 50}
    with store.create(CONFIG, number, "evaluation", rating) as draft:
        (draft / "games").write_text(str(elo))
    if promote:
        with store.create(CONFIG, number, "ema_model") as model:
            (model / "weights").write_text(str(number))
        store.promote(CONFIG, number, model.artefact, {})


def started(
    instance: DagsterInstance, config: str, key: str, status: DagsterRunStatus, last: int
) -> str:
    settings = TrainingConfig.preset("smoke")
    return create_run_for_test(
        instance,
        job_name=names.job_name(config),
        status=status,
        tags={names.CONFIG_TAG: config, names.PARTITION_TAG: key},
        run_config=run_config(settings, last_generation=last),
        remote_job_origin=RemoteJobOrigin(REPOSITORY, names.job_name(config)),
    ).run_id


def as_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["status", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_empty_folder_is_left_empty(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "there is no such folder" in said and "nothing runs" not in said
    assert not store.root.exists()
    assert as_json(capsys)["configs"] == []


def test_a_busy_folder(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    generation(store, 0, 320, 1236.0, True)
    generation(store, 1, 300, 1190.0, False)
    generation(store, 2, 80, None, False)
    store.set_switches(CONFIG, nightly=False)
    with open_instance(store.root) as instance:
        run_id = started(instance, CONFIG, "0002", DagsterRunStatus.STARTED, 5)
        started(instance, "hex8_3p", "0001", DagsterRunStatus.QUEUED, 1)
        started(instance, "hex8_3p", "0000", DagsterRunStatus.SUCCESS, 1)
        with ProgressFile(store.root, run_id, f"{CONFIG}__checkpoint", CONFIG, "0002") as report:
            report(150, 150, "step 150/150, loss 1.7")
            found = as_json(capsys)
            assert run(["status"]) == 0
            said = capsys.readouterr().out
    (running,) = found["running"]
    assert (running["config"], running["generation"], running["status"]) == (CONFIG, 2, "started")
    (step,) = running["steps"]
    assert (step["step"], step["done"], step["total"]) == (f"{CONFIG}__checkpoint", 150, 150)
    (waiting,) = found["waiting"]
    assert (waiting["config"], waiting["generation"]) == ("hex8_3p", 1)
    # hex8_3p was asked for up to generation 1, and that is the one that waits
    assert [(one["what"], one["when"]) for one in found["following"]] == [
        (f"{CONFIG} generation 0003", "when 0002 has been evaluated, up to 0005")
    ]
    (strength,) = found["configs"]
    assert (strength["config"], strength["newest"], strength["games"]) == (CONFIG, 2, 700)
    evaluated, champion = strength["evaluated"], strength["champion"]
    assert evaluated["generation"] == 1 and champion["generation"] == 0
    assert [evaluated[f"rating{end}"] for end in ("", "_low", "_high")] == [1190, 1140, 1240]
    assert champion["rating"] == 1236
    assert strength["paused"] == ["nightly"]
    landed = store.require(CONFIG, 1, "evaluation").created
    assert evaluated["at"] == landed
    assert found["bytes"] >= strength["bytes"] > 0 and found["free_bytes"] > 0
    for words in (
        f"runs: {CONFIG} generation 0002",
        "nobody may be working on it",  # there is no daemon here
        "waits: hex8_3p generation 0001",
        "next: square8_2p generation 0003",
        f"paused: {CONFIG}'s nightly; ringrift resume --config {CONFIG} ends it",
        "1190 (1140 to 1240)",
        "1236 (1186 to 1286)",
        "700",
    ):
        assert words in said, words
    assert re.search(r"for 0:\d\d, step 150/150, loss 1.7", said)  # the count once


def test_what_stands_still_and_what_failed_is_said(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    generation(store, 0, 320, 1236.0, True)
    decision = {"promoted": False, "reasons": ["checkpoint: no_leakage failed"], "end": "checks"}
    with store.create(CONFIG, 0, "decision", decision):
        pass
    with open_instance(store.root) as instance:
        started(instance, CONFIG, "0000", DagsterRunStatus.SUCCESS, 5)
        started(instance, CONFIG, "0000", DagsterRunStatus.FAILURE, 5)
        started(instance, "hex8_3p", "0000", DagsterRunStatus.FAILURE, 5)
        started(instance, "hex8_3p", "0000", DagsterRunStatus.SUCCESS, 5)
    Outbox(store).put(Alert(kind="run_failed", key="one", title="a run", text="failed"))
    found = as_json(capsys)
    (strength,) = found["configs"]
    assert strength["stopped"] == {"generation": 0, "reasons": decision["reasons"]}
    assert [(one["config"], one["status"]) for one in found["failed"]] == [(CONFIG, "failure")]
    assert found["alerts"] == 1
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert f"stopped: {CONFIG} generation 0000, checkpoint: no_leakage failed" in said
    assert f"failed: {CONFIG} generation 0000" in said and "alerts: 1" in said
    assert "nothing runs and nothing waits" not in said


def test_a_loop_whose_next_generation_was_started_and_is_gone_is_said_to_stand(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    generation(store, 0, 320, 1236.0, True)
    decision = {"promoted": True, "reasons": ["beats everybody"], "end": "started"}
    with store.create(CONFIG, 0, "decision", decision):
        pass
    said = "generation 0001 had been started by somebody else, and no run of it is left"
    with open_instance(store.root) as instance:
        started(instance, CONFIG, "0000", DagsterRunStatus.SUCCESS, 5)
        other = started(instance, CONFIG, "0001", DagsterRunStatus.SUCCESS, 5)
        assert as_json(capsys)["configs"][0]["stopped"] is None
        instance.add_run_tags(other, {names.BACKFILL_TAG: "some"})  # as an earlier version took it
        stopped = {"generation": 0, "reasons": [said]}
        assert as_json(capsys)["configs"][0]["stopped"] == stopped
        instance.delete_run(other)
        assert as_json(capsys)["configs"][0]["stopped"] == stopped
    assert run(["status"]) == 0
    told = capsys.readouterr().out
    assert f"stopped: {CONFIG} generation 0000, {said}" in told
    assert f"ringrift loop --config {CONFIG}" in told
    assert "nothing runs and nothing waits" not in told


def test_the_alerts_of_the_last_day_are_listed_whoever_was_told(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(store)
    for number in range(RECENT_ALERTS + 2):
        outbox.put(Alert("run_failed", f"told {number}", f"number {number} failed", "why"))
    assert len(outbox.deliver(LogNotifier())) == RECENT_ALERTS + 2
    outbox.put(Alert("run_failed", "odd", "an\x1b]0;odd\x07\none" + "!" * 500, "why"))
    found = as_json(capsys)
    assert found["alerts"] == 1 and len(found["recent_alerts"]) == RECENT_ALERTS
    assert [one["state"] for one in found["recent_alerts"][:2]] == ["waiting", "told"]
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert f"whole in {outbox.folder}:" in said
    assert "not told yet, put 0:" in said and "ago: an?]0;odd? one!!!" in said
    assert "!" * 200 not in said
    assert said.count("told 0:0") == RECENT_ALERTS - 1 and "failed" in said
    for path in (outbox.folder).rglob("*.json"):
        os.utime(path, (time.time() - 90_000.0,) * 2)
    assert as_json(capsys)["recent_alerts"] == []


def test_what_a_terminal_would_obey_is_not_passed_on(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    generation(store, 0, 80, None, False)
    with open_instance(store.root) as instance:
        run_id = started(instance, CONFIG, "0000", DagsterRunStatus.STARTED, 0)
        with ProgressFile(store.root, run_id, f"{CONFIG}__checkpoint", CONFIG, "0000") as report:
            report(1, 2, "step \x1b]52;c;aGk=\x07 of 2")
            assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "step ?]52;c;aGk=? of 2" in said and "\x1b" not in said


def test_a_file_that_is_no_alert_does_not_keep_the_others_from_being_listed(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(store)
    bad = Alert("run_failed", "bad", "no alert", "why")
    outbox.put(bad)
    outbox.put(Alert("run_failed", "good", "number 0 failed", "why"))
    text = json.dumps({**asdict(bad), "details": None})
    lists = "[" * 600 + "]" * 600  # so many can be read, and not everything can go as deep
    path = outbox.folder / "waiting" / f"{bad.id}.json"
    path.write_text(text.replace('"details": null', f'"details": {{"x": {lists}}}'))
    assert [one["title"] for one in as_json(capsys)["recent_alerts"]] == ["number 0 failed"]
    assert run(["status"]) == 0
    assert "number 0 failed" in capsys.readouterr().out


def test_ratings_are_those_of_the_newest_list(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def rated() -> tuple[float, float, float]:
        (found,) = as_json(capsys)["configs"]
        evaluated, champion = found["evaluated"], found["champion"]
        return evaluated["rating"], evaluated["rating_low"], champion["rating"]

    generation(store, 0, 320, 1236.0, True)
    generation(store, 1, 300, 1190.0, False)
    listed = {
        "anchor": "heuristic",
        "inputs": [
            [number, "evaluation", store.require(CONFIG, number, "evaluation").digest]
            for number in (0, 1)
        ],
        "ratings": {"0000": [1400.0, 1380.0, 1420.0], "0001": [1500.0, 1480.0, 1520.0]},
    }
    with store.create(CONFIG, 1, "rating_list", listed):
        pass
    assert rated() == (1500.0, 1480.0, 1400.0)
    summaries = [summarize(store, CONFIG, at, None, listed_by(store, CONFIG)) for at in (0, 1)]
    assert [one.rating_high for one in summaries] == [1420.0, 1520.0]
    older = {name: value for name, value in listed.items() if name != "ratings"}
    for odd in ({**listed, "anchor": "random"}, older):  # another scale, an earlier version
        with store.create(CONFIG, 1, "rating_list", odd):
            pass
        assert rated() == (1190.0, 1140.0, 1236.0)
    with store.create(CONFIG, 1, "rating_list", listed):
        pass
    generation(store, 1, 300, 1300.0, False)  # evaluated anew, and on no list yet
    assert rated() == (1300.0, 1250.0, 1400.0)


def test_a_failed_generation_is_hidden_by_nothing_that_does_not_make_it(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(
        instance: DagsterInstance, job: str, status: DagsterRunStatus, *assets: str, **tags: str
    ) -> None:
        create_run_for_test(
            instance,
            job_name=job,
            status=status,
            tags={names.CONFIG_TAG: CONFIG, **tags},
            asset_selection=frozenset(names.asset_key(CONFIG, one) for one in assets) or None,
        )

    def failed() -> list[tuple[str, int | None]]:
        return [(one["job"], one["generation"]) for one in as_json(capsys)["failed"]]

    job, parts, success = names.job_name(CONFIG), "__ASSET_JOB", DagsterRunStatus.SUCCESS
    third = {names.PARTITION_TAG: "0003"}
    with open_instance(store.root) as instance:
        started(instance, CONFIG, "0003", DagsterRunStatus.FAILURE, 5)
        made(instance, "champion_gauntlet", success)
        made(instance, parts, success, "selfplay_shards", **third)
        made(instance, parts, success, "evaluation", **{names.PARTITION_TAG: "0001"})
        made(instance, job, success, **{names.PARTITION_TAG: "0000", names.BACKFILL_TAG: "some"})
        assert failed() == [(job, 3)]
        made(instance, "champion_gauntlet", DagsterRunStatus.FAILURE)
        made(instance, parts, DagsterRunStatus.FAILURE, "checkpoint", **third)
        assert sorted(failed()) == [(parts, 3), ("champion_gauntlet", None), (job, 3)]
        made(instance, "champion_gauntlet", success)
        made(instance, parts, success, "checkpoint", "evaluation", **third)
        assert failed() == []


def test_a_failed_job_of_the_launchpad_is_told_until_it_is_run_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def ran(
        job: str, status: DagsterRunStatus, config: str | None = None, tag: str | None = None
    ) -> None:
        ops = {} if config is None else {"ops": {"gauntlet": {"config": {"config": config}}}}
        tags = {} if tag is None else {names.CONFIG_TAG: tag}
        create_run_for_test(instance, job_name=job, status=status, run_config=ops, tags=tags)

    def failed() -> list[str]:
        return [one["job"] for one in as_json(capsys)["failed"]]

    lost, success = DagsterRunStatus.FAILURE, DagsterRunStatus.SUCCESS
    with open_instance(store.root) as instance:
        ran("champion_gauntlet", lost, CONFIG)
        ran("disk_retention", lost)
        ran("champion_gauntlet", success, "hex8_2p")  # another config's makes up for nothing
        assert sorted(failed()) == ["champion_gauntlet", "disk_retention"]
        ran("champion_gauntlet", success, CONFIG)
        assert failed() == ["disk_retention"]
        ran("champion_gauntlet", lost, CONFIG)
        ran("champion_gauntlet", success, tag=CONFIG)  # as the schedule asks for it
        assert failed() == ["disk_retention"]
        ran("disk_retention", success)
        assert failed() == []


def test_nothing_follows_what_a_backfill_makes(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_instance(store.root) as instance:
        run_id = started(instance, CONFIG, "0002", DagsterRunStatus.STARTED, 5)
        assert len(as_json(capsys)["following"]) == 1
        instance.add_run_tags(run_id, {names.BACKFILL_TAG: "some"})
        assert as_json(capsys)["following"] == []


def test_a_run_under_a_key_of_no_generation_is_named_by_its_job(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_instance(store.root) as instance:
        started(instance, CONFIG, "²²²²", DagsterRunStatus.QUEUED, 1)
        (waiting,) = as_json(capsys)["waiting"]
    assert (waiting["generation"], waiting["job"]) == (None, names.job_name(CONFIG))


def test_schedules_that_are_on_say_when(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.scheduler.instigation import (
        InstigatorState,
        InstigatorStatus,
        ScheduleInstigatorData,
    )

    from ringrift_pipeline.definitions import defs

    schedule = defs.get_repository_def().get_schedule_def("weekly_gauntlet")
    with open_instance(store.root) as instance:
        assert as_json(capsys)["following"] == []
        instance.add_instigator_state(
            InstigatorState(
                RemoteInstigatorOrigin(REPOSITORY, schedule.name),
                InstigatorType.SCHEDULE,
                InstigatorStatus.RUNNING,
                ScheduleInstigatorData(schedule.cron_schedule, time.time()),
            )
        )
        (following,) = as_json(capsys)["following"]
    assert following["what"] == "weekly_gauntlet" and "05:00" in following["when"]


def test_a_sensor_that_is_turned_off_is_said(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.scheduler.instigation import (
        InstigatorState,
        InstigatorStatus,
        SensorInstigatorData,
    )

    with open_instance(store.root) as instance:
        started(instance, CONFIG, "0002", DagsterRunStatus.STARTED, 5)
        for status in (InstigatorStatus.DECLARED_IN_CODE, InstigatorStatus.STOPPED):
            found = as_json(capsys)
            assert len(found["following"]) == 1 and not found["sensor_off"]
            origin = RemoteInstigatorOrigin(REPOSITORY, names.SENSOR)
            state = InstigatorState(origin, InstigatorType.SENSOR, status, SensorInstigatorData())
            put = instance.all_instigator_state() and instance.update_instigator_state
            (put or instance.add_instigator_state)(state)
    found = as_json(capsys)
    assert found["following"] == [] and found["sensor_off"]
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert f"turned off: the sensor {names.SENSOR}" in said and "under Automation" in said


def test_what_is_begun_on_the_command_line_is_told(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        generation(store, number, 8, None, False)
    with announced("loop", store.root):
        assert run(["status"]) == 0
        said = capsys.readouterr().out
        assert f"ringrift loop: up, process {os.getpid()}" in said  # it may be compiling still
        assert "nothing runs and nothing waits" not in said
    with store.lock(CONFIG, "generation-0001"):
        assert run(["status"]) == 0
        said = capsys.readouterr().out
        assert f"runs: {CONFIG} generation 0001, begun on the command line" in said
        assert "ringrift loop: up" not in said and "nothing runs and nothing waits" not in said
        with open_instance(store.root) as instance:  # the step of a run has such a lock too
            of_the_loop = started(instance, CONFIG, "0001", DagsterRunStatus.STARTED, 1)
            assert as_json(capsys)["by_hand"] == []
            instance.delete_run(of_the_loop)
            assert as_json(capsys)["by_hand"] == [[CONFIG, 1]]
            create_run_for_test(  # as it is launched from an asset's page
                instance,
                job_name="__ASSET_JOB",
                status=DagsterRunStatus.STARTED,
                tags={names.PARTITION_TAG: "0001"},
                asset_selection=frozenset({names.asset_key(CONFIG, "checkpoint")}),
            )
            assert as_json(capsys)["by_hand"] == []
    assert as_json(capsys)["by_hand"] == []


ANNOUNCING = """
import sys
from ringrift_pipeline.orchestration.presence import announce
announce("webserver", ["-m", "x", "--host", "127.0.0.1", "--port", "3999"])
print("up", flush=True)
sys.stdin.read()
"""


def test_who_is_up_and_who_has_died(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    (found,) = present(store.root)
    assert (found.kind, found.pid, found.host, found.port) == (
        "webserver",
        process.pid,
        "127.0.0.1",
        3999,
    )
    assert present(store.root) == [found]  # looking takes nothing away
    process.kill()
    process.communicate()
    assert present(store.root) == []
    announce("daemon", ["run"])  # this process: until it ends
    assert [one.kind for one in present(store.root)] == ["daemon"]


def test_nothing_heavy_is_loaded(store: Store) -> None:
    generation(store, 0, 320, 1236.0, True)
    code = (
        "import sys; from ringrift_pipeline.cli import run; run(['status']); "
        "bad = [m for m in ('torch', 'numba', 'pandas', 'polars') if m in sys.modules]; "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sizes(tmp_path: Path) -> None:
    assert [size(count) for count in (1_234, 5_670_000, 89_100_000_000)] == [
        "1 kB",
        "5.67 MB",
        "89.1 GB",
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 10_000)
    assert 10_000 <= disk_usage(tmp_path) < 30_000 and disk_usage(tmp_path / "none") == 0


def test_games_before_the_newest_plan_are_taken_from_it(store: Store) -> None:
    generation(store, 0, 320, None, False)
    generation(store, 1, 300, None, False)
    settings = TrainingConfig.preset("smoke").to_dict()
    store.write_plan(CONFIG, 2, {"settings": settings, "played": 1000})
    with store.create(CONFIG, 2, "selfplay_shards", {"selfplay/games": 7}):
        pass
    (strength,) = status_of(store.root).configs
    assert strength.games == 1007


def test_every_file_is_counted_once(store: Store) -> None:
    generation(store, 0, 320, 1236.0, True)
    (store.root / "dagster" / "deep").mkdir(parents=True)
    (store.root / "dagster" / "deep" / "log").write_bytes(b"x" * 100_000)
    (store.root / "lies about").write_bytes(b"x" * 10_000)
    found = status_of(store.root)
    assert 100_000 <= found.history_bytes < 120_000
    assert found.configs[0].bytes == disk_usage(store.root / CONFIG) > 0
    assert found.bytes == disk_usage(store.root)
    rest = found.bytes - found.history_bytes - found.configs[0].bytes
    assert 10_000 <= rest < 20_000
    assert disk_usage(store.root / "is not there") == 0
