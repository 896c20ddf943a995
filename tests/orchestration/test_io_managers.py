"""Values between steps: JSON and Parquet, never pickle."""

from typing import Any

import polars as pl
import pytest
from dagster import (
    AssetIn,
    AssetKey,
    DagsterInstance,
    DynamicOut,
    DynamicOutput,
    asset,
    job,
    materialize,
    op,
)
from polars.testing import assert_frame_equal

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.io_managers import JsonIOManager, ParquetIOManager, table_of
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.store import Store, UnreadableArtefactError
from ringrift_pipeline.training import TableError
from tests.bad_disk import unreadable


def run_graph(values: list[Any], data: Any) -> Any:
    @op(out=DynamicOut())
    def plan():  # type: ignore[no-untyped-def]
        for index, value in enumerate(values):
            yield DynamicOutput(value, mapping_key=f"{index:04d}")

    @op
    def play(item):  # type: ignore[no-untyped-def]
        return {"made": item}

    @op
    def collect(items):  # type: ignore[no-untyped-def]
        return items

    @job(resource_defs={"io_manager": JsonIOManager(root=str(data))})
    def graph() -> None:
        collect(plan().map(play).collect())

    with DagsterInstance.ephemeral() as instance:
        return graph.execute_in_process(instance=instance).output_for_node("collect")


def test_json_travels_through_a_dynamic_graph(data: Any) -> None:
    values = [{"index": 0, "games": 4}, [1, 2.5, None], "text"]
    assert run_graph(values, data) == [{"made": value} for value in values]
    files = list((home_folder(data) / "values").rglob("*"))
    assert any(path.suffix == ".json" for path in files)
    assert all(path.suffix == ".json" for path in files if path.is_file())


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_refused(value: Any, data: Any) -> None:
    with pytest.raises(TypeError):
        run_graph([value], data)


def test_large_values_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="write an artefact"):
        run_graph(["x" * 2_000_000], data)


def test_a_value_that_the_disk_refuses_to_read_is_named(data: Any) -> None:
    with (
        unreadable(home_folder(data) / "values"),
        pytest.raises(UnreadableArtefactError, match=r"cannot be read: Input.*run that step again"),
    ):
        run_graph(["text"], data)


def test_frames_become_artefacts_and_come_back(store: Store) -> None:
    frame = pl.DataFrame({"game_id": ["a", "b"], "score": [0.1, 0.9]})
    partitions = names.partitions("hex8_2p")
    seen: list[pl.DataFrame] = []

    @asset(key=AssetKey(["hex8_2p", "made"]), partitions_def=partitions, io_manager_key="tables")
    def made() -> pl.DataFrame:
        return frame

    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("hex8_2p_generation", ["0003"])
        materialize(
            [made, read_of(made, seen, partitions)],
            instance=instance,
            partition_key="0003",
            resources={"tables": ParquetIOManager(root=str(store.root))},
        )
    assert_frame_equal(seen[0], frame)
    assert store.require("hex8_2p", 3, "made").metadata == {"rows": 2}


def read_of(made: Any, seen: list[pl.DataFrame], partitions: Any) -> Any:
    @asset(
        key=AssetKey(["hex8_2p", "read"]),
        partitions_def=partitions,
        ins={"table": AssetIn(made.key)},
    )
    def read(table) -> None:  # type: ignore[no-untyped-def]
        seen.append(table.collect())

    return read


def test_a_table_that_unpacks_to_much_is_not_handed_on(store: Store) -> None:
    with store.create("hex8_2p", 3, "made") as draft:
        once = pl.DataFrame({"score": pl.repeat(0.5, 25_000_000, eager=True)})
        once.write_parquet(draft / "made.parquet")
    assert draft.artefact.files["made.parquet"]["size"] < 100_000
    with pytest.raises(TableError, match="25000000 rows"):
        table_of(store, "hex8_2p", 3, "made")


@pytest.mark.services
def test_json_travels_through_a_bucket(
    data: Any, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_BUCKET", bucket_url)
    values = [{"index": 0, "games": 4}, [1, 2.5, None], "text"]
    assert run_graph(values, data) == [{"made": value} for value in values]
    remote = Store(data).remote
    assert remote is not None and len(remote.bucket.folders(".ringrift/values")) == 1
    assert not (home_folder(data) / "values").exists()
