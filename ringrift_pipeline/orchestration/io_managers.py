"""How values travel between steps: small JSON for ops, Parquet tables from the store for readers.

Dagster's default is pickle, which can run code when it is read; nothing here can.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableIOManager, InputContext, OutputContext
from pydantic import Field

from ringrift_pipeline.orchestration.names import generation_of
from ringrift_pipeline.orchestration.places import data_folder, home_folder
from ringrift_pipeline.store import MissingArtefactError, Store, write_json_atomic

if TYPE_CHECKING:
    import polars as pl

LARGEST = 1_000_000  # bytes; what is bigger belongs into an artefact


class JsonIOManager(ConfigurableIOManager):
    """Small JSON values between the ops of one run (a shard's number, an artefact's path).

    One file an output under ``<data>/dagster/values/<run>/``, written atomically. A retried run
    reads what the run before it had written.
    """

    root: str = Field(default="", description="The data root, as for the store.")

    def _path(self, context: OutputContext) -> Path:
        parts = [re.sub(r"[^\w.-]", "_", part) for part in context.get_identifier()]
        return (
            home_folder(data_folder(self.root))
            / "values"
            / "/".join(parts[:-1])
            / (f"{parts[-1]}.json")
        )

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
        path = self._path(context)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, obj)

    def load_input(self, context: InputContext) -> Any:
        """The value as JSON reads back (tuples are lists)."""
        upstream = context.upstream_output
        if upstream is None:
            raise ValueError(f"input {context.name} has no upstream output to read")
        path = self._path(upstream)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            raise MissingArtefactError(
                f"the value {path} that {upstream.step_key} should have left",
                "run that step again",
            ) from None


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
            obj.write_parquet(draft.path / f"{name}.parquet", compression="zstd")
        context.add_output_metadata(
            {"path": str(draft.artefact.path), "digest": draft.artefact.digest}
        )

    def load_input(self, context: InputContext) -> pl.LazyFrame:
        """Raises MissingArtefactError or CorruptArtefactError, as the store does, and
        GenerationKeyError for a partition that names no generation.
        """
        import polars as pl

        config, name = context.asset_key.path
        generation = generation_of(context.partition_key, config)
        artefact = Store(data_folder(self.root)).require(config, generation, name)
        tables = [file for file in artefact.files if file.endswith(".parquet")]
        if len(tables) != 1:
            raise MissingArtefactError(
                f"the one Parquet table of {artefact.path}",
                f"it holds: {', '.join(artefact.files)}",
            )
        return pl.scan_parquet(artefact.file(tables[0]))
