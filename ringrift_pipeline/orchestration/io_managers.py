"""How values travel between steps: small JSON for ops, Parquet tables from the store for readers.

Dagster's default is pickle, which can run code when it is read; nothing here can.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableIOManager, InputContext, OutputContext
from pydantic import Field

from ringrift_pipeline.orchestration.names import generation_of
from ringrift_pipeline.orchestration.places import data_folder, home_folder, one_part
from ringrift_pipeline.store import (
    CorruptArtefactError,
    MissingArtefactError,
    Store,
    UnreadableArtefactError,
    read_bounded,
    write_bytes_atomic,
)
from ringrift_pipeline.store.manifest import (
    ManifestMismatch,
    UnreadableError,
    open_seal,
    reading,
    sealed_bytes,
)

if TYPE_CHECKING:
    import polars as pl

VALUES_KEY = ".ringrift/values"  # of a bucket
LARGEST = 1_000_000  # bytes; what is bigger belongs into an artefact
COLUMNS = 32  # that a table is expected to have; it may have some more


class JsonIOManager(ConfigurableIOManager):
    """Small JSON values between the ops of one run (a shard's number, an artefact's path).

    One file an output under ``<data>/dagster/values/<run>/``, written atomically and
    sealed with its own hash; with a bucket an object there instead, so that steps of one run need not
    share a machine. A retried run reads what the run before it had written.
    """

    root: str = Field(default="", description="The data root, as for the store.")

    def _name(self, context: OutputContext) -> str:
        return "/".join(one_part(part) for part in context.get_identifier()) + ".json"

    def _path(self, context: OutputContext) -> Path:
        return home_folder(data_folder(self.root)) / "values" / self._name(context)

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Raises TypeError for what JSON cannot hold, ValueError for what is too large."""
        if obj is None:
            return
        size = len(json.dumps(obj))
        if size > LARGEST:
            raise ValueError(
                f"{context.step_key} hands on {size} bytes of JSON; write an artefact and hand on "
                "its path"
            )
        data = sealed_bytes({"value": obj}, f"what {context.step_key} hands on")
        if remote := Store(data_folder(self.root)).remote:
            remote.bucket.write(f"{VALUES_KEY}/{self._name(context)}", data)
        else:
            write_bytes_atomic(self._path(context), data)

    def load_input(self, context: InputContext) -> Any:
        """The value as JSON reads back (tuples are lists).

        Raises MissingArtefactError, CorruptArtefactError.
        """
        upstream = context.upstream_output
        if upstream is None:
            raise ValueError(f"input {context.name} has no upstream output to read")
        path = self._path(upstream)
        try:
            if remote := Store(data_folder(self.root)).remote:
                seen = remote.bucket.read(f"{VALUES_KEY}/{self._name(upstream)}")
                if seen is None:
                    raise FileNotFoundError
                return open_seal(seen.data)["value"]
            with reading(path.name):
                data = read_bounded(path, 2 * LARGEST)
            return open_seal(data)["value"]
        except FileNotFoundError:
            raise MissingArtefactError(
                f"the value {path} that {upstream.step_key} should have left",
                "run that step again",
            ) from None
        except UnreadableError as error:
            raise UnreadableArtefactError(path, str(error), "run that step again") from error
        except (ManifestMismatch, KeyError) as error:
            raise CorruptArtefactError(path, str(error), "run that step again") from None


class ParquetIOManager(ConfigurableIOManager):
    """Parquet tables of artefacts: the asset ``[config, name]`` is ``name`` in the store.

    An asset that returns a polars frame is written as ``<name>.parquet`` of a new artefact; a
    reader gets the artefact's only Parquet file as a polars LazyFrame, verified.
    """

    root: str = Field(default="", description="The data root, as for the store.")

    def handle_output(self, context: OutputContext, obj: pl.DataFrame | None) -> None:
        if obj is None:  # the asset wrote its artefact itself
            return
        config, name = context.asset_key.path
        store = Store(data_folder(self.root))
        generation = generation_of(context.partition_key, config)
        with store.create(config, generation, name, {"rows": obj.height}) as draft:
            obj.write_parquet(draft / f"{name}.parquet", compression="zstd")
        context.add_output_metadata(
            {"path": str(draft.artefact.path), "digest": draft.artefact.digest}
        )

    def load_input(self, context: InputContext) -> pl.LazyFrame:
        """Raises GenerationKeyError, MissingArtefactError or CorruptArtefactError as the store, and
        TableError.
        """
        config, name = context.asset_key.path
        generation = generation_of(context.partition_key, config)
        return table_of(Store(data_folder(self.root)), config, generation, name)


def table_of(store: Store, config: str, generation: int, name: str) -> pl.LazyFrame:
    """The only Parquet table of an asset, verified. Raises MissingArtefactError, CorruptArtefactError,
    TableError.
    """
    from ringrift_pipeline.training.tables import read_frame

    artefact = store.require(config, generation, name)
    tables = [file for file in artefact.files if file.endswith(".parquet")]
    if len(tables) != 1:
        raise MissingArtefactError(
            f"the one Parquet table of {artefact.path}",
            f"it holds: {', '.join(artefact.files)}",
        )
    return read_frame(artefact.file(tables[0]), COLUMNS).lazy()
