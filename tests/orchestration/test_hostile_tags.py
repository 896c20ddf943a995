"""Run ids and tags that whoever launches a run may choose: none becomes a path, none a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    build_input_context,
    build_output_context,
)
from dagster._check import CheckError
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.at_work import working
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.io_managers import JsonIOManager
from ringrift_pipeline.orchestration.names import GenerationKeyError, generation_of
from ringrift_pipeline.orchestration.places import one_part, progress_folder
from ringrift_pipeline.orchestration.progress import ProgressFile, read_progress
from ringrift_pipeline.orchestration.run_order import order_tags
from ringrift_pipeline.orchestration.status import status_of
from ringrift_pipeline.store import Store

CONFIG = "square8_2p"
REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(names.MODULE), "__repository__")
ODD = [
    "../../etc", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "%2e%2e%2f", "²", "٣٣٣٣", "-1", "1" * 5000,
    "0001\n", "\x1b]0;title\x07", "x" * 3000, "~root", "é", "con\u202etrol",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_partition_that_is_no_generation_is_refused_by_name(text: str) -> None:
    with pytest.raises(GenerationKeyError):
        generation_of(text, CONFIG)
    assert names.generation_in({names.PARTITION_TAG: text}) is None
    assert names.config_in({names.CONFIG_TAG: text}) is None


def test_runs_with_odd_tags_are_shown_and_ordered_like_any(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = Store(data)
    store.write_plan(CONFIG, 0, {"settings": {}})
    before = sorted(tmp_path.iterdir())
    with open_instance(data) as instance:
        for text in ODD:
            tags = {names.CONFIG_TAG: text, names.PARTITION_TAG: text, names.ORDER_TAG: text}
            for status in (DagsterRunStatus.QUEUED, DagsterRunStatus.STARTED):
                for name in (names.job_name(CONFIG), "another"):
                    run = create_run_for_test(
                        instance,
                        job_name=name,
                        status=status,
                        tags=tags,
                        remote_job_origin=RemoteJobOrigin(REPOSITORY, name),
                    )
                    assert order_tags(run) == {}
        assert working(instance, store) <= {(CONFIG, 0)}
        found = status_of(data)
    assert len(found.running) == len(found.waiting) == 2 * len(ODD)
    assert {(run.config, run.generation) for run in found.running} == {(None, None)}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", [text for text in ODD if text], ids=range(len(ODD) - 1))
def test_a_run_id_stays_below_the_folder_of_progress(tmp_path: Path, text: str) -> None:
    data = tmp_path / "data"
    with ProgressFile(data, text, text, CONFIG, "0000") as report:
        report(1, 2, "half")
        assert report.path.resolve().is_relative_to(progress_folder(data).resolve())
        assert report.path.parent.parent == progress_folder(data)
        (seen,) = read_progress(data, text)
        assert seen.run_id == text
    assert read_progress(data, text) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_parts_of_paths_are_what_they_were() -> None:
    for name in ("0f2f8c1e-4c0e-4f0e-8d52-1b6c1c1f2a3b", "square8_2p__checkpoint", "a.b-c_d"):
        assert one_part(name) == name
    assert one_part("square8_2p__selfplay[0003]") == "square8_2p__selfplay_0003_"


@pytest.mark.parametrize("text", ["..", "../../out", "/tmp/x", "a/../../b", "x" * 3000])
def test_values_between_steps_stay_below_their_folder(tmp_path: Path, text: str) -> None:
    data = tmp_path / "deep" / "data"
    context = build_output_context(run_id=text, step_key=text, name="result")
    manager = JsonIOManager(root=str(data))
    manager.handle_output(context, 7)
    assert manager.load_input(build_input_context(upstream_output=context)) == 7
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.is_relative_to(data / "dagster" / "values") and ".." not in file.parts


def test_a_run_has_no_other_id_than_dagster_gives_it() -> None:
    with DagsterInstance.ephemeral() as instance, pytest.raises(CheckError, match="UUID"):
        create_run_for_test(instance, job_name="job", run_id="../../out")
