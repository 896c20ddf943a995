"""The disk budget as an asset job, over hand-made histories."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    build_schedule_context,
)
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names, retention
from ringrift_pipeline.orchestration.at_work import working
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.places import home_folder, one_part
from ringrift_pipeline.orchestration.retention import (
    DAY,
    GB,
    BudgetError,
    RetentionConfig,
    clear,
    disk_budget,
)
from ringrift_pipeline.store import Store
from ringrift_pipeline.store import retention as store_retention
from ringrift_pipeline.store.retention import used_bytes

from .conftest import a_backfill
from .test_schedules import SUNDAY

CONFIG = "square8_2p"


@pytest.fixture
def own(store: Store) -> Iterator[DagsterInstance]:
    with open_instance(store.root) as made:
        yield made


@pytest.fixture
def history(store: Store) -> Store:
    """Three generations; the newest one's window reaches back to generation 1."""
    shards: list[dict[str, Any]] = []
    for generation in range(3):
        plan = {"window": shards[-1:], "shards": [{"index": 0, "games": 1}]}
        store.write_plan(CONFIG, generation, plan)
        for kind in ("selfplay-shard-0000", "window", "checkpoint", "ema_model", "evaluation"):
            with store.create(CONFIG, generation, kind) as draft:
                (draft / "bytes").write_bytes(os.urandom(10_000))
            if kind.startswith("selfplay"):
                digest = draft.artefact.digest
                shards.append({"generation": generation, "shard": 0, "digest": digest})
    for generation in (0, 2):
        store.promote(CONFIG, generation, store.require(CONFIG, generation, "ema_model"), {})
    return store


def run_job(instance: DagsterInstance, **config: Any) -> tuple[dict[str, Any], Any]:
    """Metadata of the materialization, and what the check said."""
    job = defs.get_repository_def().get_job(retention.JOB)
    run_config = {"ops": {retention.OP: {"config": config}}}
    result = job.execute_in_process(run_config=run_config, instance=instance)
    assert result.success
    event = instance.get_latest_materialization_event(AssetKey(["retention"]))
    assert event is not None and event.asset_materialization is not None
    (check,) = result.get_asset_check_evaluations()
    metadata = event.asset_materialization.metadata
    return {name: getattr(value, "records", value.value) for name, value in metadata.items()}, check


def rows(table: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in table]


def test_by_itself_it_only_tells(history: Store, instance: DagsterInstance) -> None:
    before = sorted(path for path in history.root.rglob("*") if path.is_file())
    told, check = run_job(instance, budget_gb=1e-6, keep_generations=1)
    assert sorted(path for path in history.root.rglob("*") if path.is_file()) == before
    assert told["dry_run"] is True
    assert len(rows(told["would be deleted"])) == 5 and "deleted" not in told
    left = used_bytes(history.root) - 50_000
    assert told["would delete"] == f"5 artefacts, 50000 bytes; {left} bytes would remain"
    # nothing is plotted that did not happen
    assert told["disk/bytes_before"] == told["disk/bytes_after"] == used_bytes(history.root)
    assert not {"disk/bytes_deleted", "disk/artefacts_deleted"} & set(told)
    assert not check.passed and "nothing was deleted: launch it with dry_run" in check.description


def test_a_dry_run_is_judged_by_what_is_there(history: Store, instance: DagsterInstance) -> None:
    """What it would delete is enough to keep the budget, and is still there."""
    budget = (used_bytes(history.root) - 25_000) / GB
    _, check = run_job(instance, budget_gb=budget, keep_generations=1)
    assert not check.passed and "0.000 GB above the budget" in check.description
    _, check = run_job(instance, budget_gb=1.0, keep_generations=1)
    assert check.passed


def test_it_comes_under_the_budget_and_tells_what_it_did(
    history: Store, instance: DagsterInstance
) -> None:
    before = used_bytes(history.root)
    budget = (before - 25_000) / GB
    told, check = run_job(instance, budget_gb=budget, keep_generations=1, dry_run=False)
    assert [(row["generation"], row["kind"]) for row in rows(told["deleted"])] == [
        ("0000", "window"),
        ("0001", "window"),
        ("0000", "checkpoint"),
    ]
    assert told["disk/bytes_before"] == before
    assert told["disk/bytes_after"] == used_bytes(history.root) <= before - 30_000
    assert told["disk/bytes_budget"] == int(budget * GB)
    assert check.passed
    reasons = {row["why"] for row in rows(told["protected"])}
    assert f"in the window of the plan of {CONFIG} 0002" in reasons
    assert "of the newest generations" in reasons
    assert history.current(CONFIG, 1, "checkpoint") is not None
    again, _ = run_job(instance, budget_gb=budget, keep_generations=1, dry_run=False)
    assert again["disk/artefacts_deleted"] == 0 and rows(again["deleted"]) == []


def test_what_must_stay_stays_and_the_check_says_that_it_is_too_much(
    history: Store, instance: DagsterInstance
) -> None:
    told, check = run_job(instance, budget_gb=1e-6, keep_generations=1, dry_run=False)
    assert not check.passed and "all the rest must stay" in check.description
    assert check.severity.value == "WARN"
    assert told["disk/bytes_after"] > told["disk/bytes_budget"]
    champions = history.champions(CONFIG)
    assert [history.open(one.path).digest for one in champions] == [one.digest for one in champions]
    assert [one.generation for one in champions] == [0, 2]
    assert history.current(CONFIG, 0, "selfplay-shard-0000") is None
    for generation in (1, 2):  # in the window of the newest plan
        assert history.current(CONFIG, generation, "selfplay-shard-0000") is not None
    for generation in range(3):
        assert history.current(CONFIG, generation, "evaluation") is not None


def test_everything_of_a_generation_at_work_stays(history: Store, own: DagsterInstance) -> None:
    run = create_run_for_test(
        own,
        job_name=names.job_name(CONFIG),
        status=DagsterRunStatus.STARTED,
        tags={names.PARTITION_TAG: "0000"},
    )
    assert working(own, history) == {(CONFIG, 0)}
    config = RetentionConfig(budget_gb=1e-6, keep_generations=1, dry_run=False)
    assert {item.generation for item in clear(own, history, config).deleted} == {1}
    own.report_run_canceled(run)
    decided(history, 0)
    assert {item.generation for item in clear(own, history, config).deleted} == {0}


def decided(store: Store, generation: int) -> None:
    with store.create(CONFIG, generation, "decision", {"promoted": False}):
        pass


@pytest.mark.parametrize("ends", ["report_run_failed", "report_run_canceled"])
@pytest.mark.parametrize("then", ["decided", "days"])
def test_what_a_failed_generation_is_executed_again_with_stays_for_a_while(
    history: Store, own: DagsterInstance, ends: str, then: str
) -> None:
    """It is not decided, and others have been begun since."""
    run = create_run_for_test(
        own,
        job_name=names.job_name(CONFIG),
        status=DagsterRunStatus.STARTED,
        tags={names.PARTITION_TAG: "0001", "dagster/max_retries": "0"},
    )
    getattr(own, ends)(run)
    create_run_for_test(own, job_name=names.job_name("hex8_2p"), status=DagsterRunStatus.FAILURE)
    config = RetentionConfig(budget_gb=1e-6, keep_generations=1, dry_run=False)
    cleared = clear(own, history, config)
    assert {(item.generation, item.kind) for item in cleared.deleted} == {
        (0, "window"),
        (0, "checkpoint"),
    }
    why = {item.why for item in cleared.protected if item.generation == 1}
    assert "its generation failed not long ago, and may be executed again" in why
    window = history.read_plan(CONFIG, 1)["window"]
    assert [one["generation"] for one in window] == [0]
    if then == "decided":
        decided(history, 1)
    later = time.time() + (15 * DAY if then == "days" else 0)
    deleted = clear(own, history, config, now=later).deleted
    assert ("selfplay-shard-0000", 0) in {(item.kind, item.generation) for item in deleted}


@pytest.mark.parametrize("work", ["generation", "training", "ablation"])
def test_what_a_verb_of_the_command_line_reads_stays(
    history: Store, own: DagsterInstance, work: str
) -> None:
    """Its generation is an old one, and its window reaches back further."""
    config = RetentionConfig(budget_gb=1e-6, keep_generations=1, dry_run=False)
    with history.lock(CONFIG, f"{work}-0001"), history.lock(CONFIG, "alerts"):
        assert working(own, history) == {(CONFIG, 1)}
        assert {item.kind for item in clear(own, history, config).deleted} == {
            "window",
            "checkpoint",
        }
        assert history.current(CONFIG, 0, "selfplay-shard-0000") is not None
    assert working(own, history) == set()
    deleted = clear(own, history, config).deleted
    assert "selfplay-shard-0000" in {item.kind for item in deleted if item.generation == 0}


def test_who_died_works_on_nothing(history: Store, own: DagsterInstance) -> None:
    line = "import os, sys; from ringrift_pipeline.store import Store\n"
    line += f"with Store(sys.argv[1]).lock({CONFIG!r}, 'training-0001'): os._exit(0)"
    subprocess.run([sys.executable, "-c", line, history.root], check=True)
    assert list((history.root / CONFIG / ".locks").glob("training-0001.holder.json"))
    assert history.at_work(CONFIG) == set()


def test_of_another_machine_the_lock_says_whether_it_works(history: Store) -> None:
    """A container that is made anew has another name: its file alone would keep all for ever."""
    with history.lock(CONFIG, "training-0001") as path:
        holder = path.with_suffix(".holder.json")
        noted = {**json.loads(holder.read_text()), "host": "another"}
        holder.write_text(json.dumps(noted))
        assert history.at_work(CONFIG) == {1}
    holder.write_text(json.dumps(noted))
    assert history.at_work(CONFIG) == set()


@pytest.mark.parametrize("who", ["a run", "a verb"])
def test_who_begins_meanwhile_ends_the_deletion(
    who: str, history: Store, own: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, gone = store_retention._remove, list[Any]()
    with contextlib.ExitStack() as stack:

        def then(store: Store, item: Any) -> bool:
            gone.append(item)
            if len(gone) == 2 and who == "a run":
                create_run_for_test(
                    own,
                    job_name=names.job_name(CONFIG),
                    status=DagsterRunStatus.STARTED,
                    tags={names.PARTITION_TAG: "0000"},
                )
            elif len(gone) == 2:
                stack.enter_context(store.lock(CONFIG, "training-0000"))
            return remove(store, item)

        monkeypatch.setattr(store_retention, "_remove", then)
        config = RetentionConfig(budget_gb=1e-6, keep_generations=1, dry_run=False)
        assert len(clear(own, history, config).deleted) == 2


def test_who_works_is_not_asked_for_before_each_deletion(
    history: Store, own: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(store_retention, "LOOK_AGAIN", 3600.0)
    monkeypatch.setattr(retention, "working", lambda *_: asked.append(1) or set())
    config = RetentionConfig(budget_gb=1e-6, keep_generations=1, dry_run=False)
    assert len(clear(own, history, config).deleted) == 5
    assert len(asked) == 2  # for the survey, and before the first


def test_runs_that_do_not_say_their_generation_keep_all(
    history: Store, own: DagsterInstance
) -> None:
    run = create_run_for_test(
        own,
        job_name="ablation",
        run_config={"ops": {"ablate": {"config": {"config": CONFIG}}}},
        status=DagsterRunStatus.STARTED,
    )
    every = {(CONFIG, generation) for generation in range(3)}
    assert working(own, history) == every
    own.report_run_canceled(run)
    assert working(own, history) == set()
    create_run_for_test(
        own,
        job_name="__ASSET_JOB",
        asset_selection=frozenset({AssetKey([CONFIG, "checkpoint"])}),
        status=DagsterRunStatus.STARTED,
    )
    assert working(own, history) == every


def test_a_failed_run_that_dagster_will_retry_keeps_its_generation(
    history: Store, own: DagsterInstance
) -> None:
    def failed(generation: str, **tags: str) -> DagsterRun:
        run = create_run_for_test(
            own,
            job_name=names.job_name(CONFIG),
            status=DagsterRunStatus.STARTED,
            tags={names.PARTITION_TAG: generation, **tags},
        )
        own.report_run_failed(run)
        return run

    failed("0001", **{"dagster/max_retries": "0"})
    waits = failed("0000")
    assert working(own, history) == {(CONFIG, 0)}
    own.add_run_tags(waits.run_id, {"dagster/auto_retry_run_id": "the run that does"})
    assert working(own, history) == set()


@pytest.mark.parametrize("open_still", [True, False])
def test_a_backfill_that_still_asks_for_its_runs_keeps_all(
    history: Store, own: DagsterInstance, open_still: bool
) -> None:
    status = BulkActionStatus.REQUESTED if open_still else BulkActionStatus.COMPLETED_SUCCESS
    backfill = a_backfill("of-checkpoints", status)
    picked = [AssetKey([CONFIG, "checkpoint"])]
    own.add_backfill(backfill._replace(asset_selection=picked))
    every = {(CONFIG, generation) for generation in range(3)}
    assert working(own, history) == (every if open_still else set())


@pytest.mark.parametrize("key", ["²²²²", "1"])
def test_a_run_under_a_key_of_no_generation_keeps_all(
    key: str, history: Store, own: DagsterInstance
) -> None:
    create_run_for_test(
        own,
        job_name=f"{CONFIG}_generation",
        tags={names.PARTITION_TAG: key},
        status=DagsterRunStatus.STARTED,
    )
    assert working(own, history) == {(CONFIG, generation) for generation in range(3)}


def test_a_folder_that_no_run_is_called_like_is_left_alone(
    history: Store, own: DagsterInstance
) -> None:
    """Among the values of runs; no database takes the first one's name."""
    for name in (os.fsdecode(b"\xff"), "a b"):
        values_of(history, name)
    ours = values_of(history, "ours")
    assert retention.old_values(own, history, time.time() + DAY) == [ours]


def test_the_values_of_a_run_at_work_stay_whatever_it_is_called(
    history: Store, own: DagsterInstance
) -> None:
    odd = "an id / of one's own"
    own.add_run(DagsterRun("a_job", run_id=odd, status=DagsterRunStatus.STARTED))
    values_of(history, one_part(odd))
    ours = values_of(history, "ours")
    assert retention.old_values(own, history, time.time() + DAY) == [ours]


def test_what_another_retention_removes_meanwhile_is_no_error(
    history: Store, own: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (values_of(history, name) for name in ("first", "second"))
    is_dir, lstat = Path.is_dir, Path.lstat

    def listed(path: Path) -> bool:
        found = is_dir(path)
        if path == first and found:
            shutil.rmtree(first)  # seen, and gone
        return found

    monkeypatch.setattr(Path, "is_dir", listed)
    assert retention.old_values(own, history, time.time() + DAY) == [second]
    monkeypatch.undo()
    file = history.root / "file"
    file.write_text("captured")
    monkeypatch.setattr(Path, "lstat", lambda path: file.unlink() or lstat(path))
    assert retention._bytes(file) == 0


def values_of(store: Store, run_id: str) -> Path:
    folder = home_folder(store.root) / "values" / run_id / "plan"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    return folder.parent


def output_of(store: Store, *parts: str, days: float) -> Path:
    path = home_folder(store.root).joinpath("storage", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("said")
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def test_what_dagster_left_goes_by_its_age_whatever_the_budget(
    history: Store, own: DagsterInstance
) -> None:
    def run(status: DagsterRunStatus, **more: Any) -> str:
        return create_run_for_test(own, job_name="x", status=status, **more).run_id

    ended = create_run_for_test(own, job_name="x", status=DagsterRunStatus.STARTED)
    own.report_run_failed(ended)
    parent = run(DagsterRunStatus.FAILURE)
    active = run(DagsterRunStatus.STARTED, parent_run_id=parent, root_run_id=parent)
    folders = {name: values_of(history, name) for name in (ended.run_id, parent, active, "gone")}
    old = output_of(history, ended.run_id, "compute_logs", "step.out", days=20)
    tick = output_of(history, "__repository__", "evaluation_landed", "77.err", days=20)
    young = output_of(history, ended.run_id, "compute_logs", "step.err", days=2)
    busy = output_of(history, active, "compute_logs", "step.out", days=20)
    other = output_of(history, "mine", "notes.txt", days=200)

    def cleared(days: float, dry_run: bool = False) -> Any:
        config = RetentionConfig(budget_gb=1.0, dry_run=dry_run)
        return clear(own, history, config, now=time.time() + days * DAY)

    assert cleared(0, dry_run=True).litter == {"captured output": 8}
    assert old.exists()
    assert cleared(0).litter == {"captured output": 8}
    assert not old.exists() and not tick.parent.exists()
    assert young.exists() and busy.exists() and other.exists()
    assert all(folder.exists() for folder in folders.values())
    assert cleared(15).deleted == []
    assert [folder.exists() for folder in folders.values()] == [False, True, True, False]
    assert not young.exists() and busy.exists() and other.exists()


# --- the schedule -------------------------------------------------------------------------------


def test_the_schedule_deletes_with_the_budget_of_the_environment(
    own: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = defs.get_repository_def()
    schedule = repository.get_schedule_def("nightly_retention")
    assert schedule.default_status.value == "STOPPED"
    monkeypatch.setenv("RINGRIFT_DISK_BUDGET_GB", "7.5")
    with build_schedule_context(
        instance=own, scheduled_execution_time=SUNDAY, repository_def=repository
    ) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or []
    assert request.run_config["ops"]["retention"]["config"] == {"budget_gb": 7.5, "dry_run": False}
    assert own.create_run_for_job(
        repository.get_job(retention.JOB), run_config=request.run_config
    ).run_id


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "1e9"])
def test_a_budget_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGRIFT_DISK_BUDGET_GB", raising=False)
    assert disk_budget() == 50.0
    monkeypatch.setenv("RINGRIFT_DISK_BUDGET_GB", text)
    with pytest.raises(BudgetError, match="RINGRIFT_DISK_BUDGET_GB"):
        disk_budget()


@pytest.mark.services
def test_parts_that_a_killed_upload_has_left_go_with_the_nightly_one(
    data: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_BUCKET", bucket_url)
    store = Store(data)
    assert store.remote is not None
    bucket = store.remote.bucket
    key = f"some/where/{CONFIG}/generations/0000/checkpoint/x/state"
    bucket.ask("beginning", "create_multipart_upload", Key=key)
    with open_instance(data) as instance:
        for dry_run, there in ((True, 1), (False, 0)):
            cleared = clear(instance, store, RetentionConfig(dry_run=dry_run))
            assert cleared.uploads == 1 - there
            left = bucket.ask("listing", "list_multipart_uploads").get("Uploads") or ()
            assert len(left) == there
