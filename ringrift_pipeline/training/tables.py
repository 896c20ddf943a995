"""Columns of the training room's Parquet tables, and their validated reading and writing.

The columns are plain data, so that whoever only declares them imports neither pandera nor
polars; schemas are built when a table is written or read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    from pandera.polars import DataFrameSchema


class TableError(ValueError):
    """A table does not match its columns; the message names the column and the bad value."""


@dataclass(frozen=True)
class Column:
    """A column: name, polars type name, meaning, and what its values must satisfy.

    ``least`` and ``most`` are inclusive bounds, None for none; ``choices`` the allowed texts.
    """

    name: str
    dtype: str
    description: str
    least: float | None = None
    most: float | None = None
    nullable: bool = False
    unique: bool = False
    choices: tuple[str, ...] = ()


def _score(name: str, description: str) -> Column:
    return Column(name, "Float64", description, 0.0, 1.0)


QUALITY_SCORES: tuple[Column, ...] = (
    Column("game_id", "String", "Id of the game.", unique=True),
    Column("generation", "Int32", "Generation that played it.", 0),
    Column("shard", "Int32", "Shard that holds it.", 0),
    Column("length", "Int32", "Plies of the game, forced ones included.", 1),
    Column("decisions", "Int32", "Plies with more than one legal move.", 1),
    Column("policy_entropy", "Float64", "Mean entropy of the search policy, nats.", 0.0),
    Column(
        "surprise",
        "Float64",
        "Mean KL(search policy || prior), nats; null where no prior was known.",
        0.0,
        nullable=True,
    ),
    _score("length_score", "How typical the length is."),
    _score("balance_score", "How even the contest was."),
    _score("diversity_score", "How undecided the search was."),
    _score("decisiveness_score", "How clear the outcome was."),
    _score("freshness_score", "Half for every half-life of age at the plan's time."),
    _score("surprise_score", "How much search changed the prior."),
    _score("score", "Weighted mean of the scores: the sampling weight of the game's rows."),
)

REASONS = ("policy_loss", "value_loss", "surprise", "uniform_prior_surprise", "uncertainty")

HARD_EXAMPLES: tuple[Column, ...] = (
    Column("game_id", "String", "Id of the game."),
    Column("ply", "Int32", "Ply of the decision.", 0),
    Column("row", "Int64", "Row of the training window.", 0, unique=True),
    Column("hardness", "Float64", "Weighted sum of the terms below, nats.", 0.0),
    Column("policy_loss", "Float64", "KL(search policy || parent model's policy), nats.", 0.0),
    Column("value_loss", "Float64", "KL(search value || parent model's value), nats.", 0.0),
    Column("surprise", "Float64", "KL(search policy || prior at selfplay), nats.", 0.0),
    Column("uncertainty", "Float64", "Disagreement of the last ensemble's members, nats.", 0.0),
    Column("reason", "String", "The term that weighs most.", choices=REASONS),
)

CALIBRATION_BINS: tuple[Column, ...] = (
    Column(
        "stage",
        "String",
        "All held-out games, or those that judge the temperature before and after it.",
        choices=("held_out", "before", "after"),
    ),
    Column("split", "String", "What the bins are over: all, phase:NAME or seat:N (from 1)."),
    Column("bin", "Int32", "Equal-mass bin, ascending by prediction.", 0),
    Column("count", "Int64", "Forecasts in the bin (one a seat and position).", 1),
    Column("games", "Int64", "Games with a forecast in the bin.", 1),
    Column("prediction", "Float64", "Mean predicted share of the win.", 0.0, 1.0),
    Column("outcome", "Float64", "Mean share of the win that came true.", 0.0, 1.0),
    Column("standard_error", "Float64", "Of outcome less prediction, clustered by game.", 0.0),
)


def polars_schema(columns: tuple[Column, ...]) -> dict[str, pl.DataType]:
    """The polars types of columns; ``List(Int64)`` is a list of that type."""
    import polars as pl

    def of(dtype: str) -> Any:
        outer, _, inner = dtype.rstrip(")").partition("(")
        return pl.List(of(inner)) if outer == "List" else getattr(pl, outer)

    return {column.name: of(column.dtype) for column in columns}


def schema(columns: tuple[Column, ...]) -> DataFrameSchema:
    """The pandera schema (polars) of a table: exactly these columns, in this order."""
    import pandera.polars as pandera

    built = {}
    types = polars_schema(columns)
    for column in columns:
        checks = []
        if column.least is not None:
            checks.append(pandera.Check.ge(column.least))
        if column.most is not None:
            checks.append(pandera.Check.le(column.most))
        if column.choices:
            checks.append(pandera.Check.isin(column.choices))
        built[column.name] = pandera.Column(
            types[column.name],
            checks,
            nullable=column.nullable,
            unique=column.unique,
            description=column.description,
        )
    return pandera.DataFrameSchema(built, strict=True, ordered=True)


def validated(frame: pl.DataFrame, columns: tuple[Column, ...], what: str) -> pl.DataFrame:
    """``frame`` if it satisfies the schema; TableError naming the first failures otherwise."""
    import polars as pl
    from pandera.errors import SchemaError, SchemaErrors

    try:
        checked = schema(columns).validate(frame, lazy=True)
    except (SchemaError, SchemaErrors) as error:
        detail = getattr(error, "failure_cases", None)
        text = str(error)
        if isinstance(detail, pl.DataFrame) and detail.height:
            text = "; ".join(
                ", ".join(f"{name}={value}" for name, value in row.items() if value is not None)
                for row in detail.head(3).to_dicts()
            )
        raise TableError(f"{what} does not match its schema: {text}") from error
    floats = [c.name for c in columns if c.dtype.startswith("Float")]
    for name in floats:
        finite = checked[name].is_finite().fill_null(True)
        if not finite.all():
            row = int((~finite).arg_max() or 0)
            key = columns[0].name
            raise TableError(
                f"{what}: column {name!r} holds a number that is not finite, in row {row} "
                f"({key} {checked[key][row]})"
            )
    return checked


def write_table(path: Path, frame: pl.DataFrame, columns: tuple[Column, ...]) -> None:
    """Validate and write a table as Parquet (zstd) into a draft's folder."""
    validated(frame, columns, path.name).write_parquet(path, compression="zstd", statistics=True)


MOST_ROWS = 20_000_000
MOST_BYTES = 1 << 30  # the scores of a million games take a fifth of it
_TEXT = "BYTE_ARRAY"


def _check_size(about: Any, columns: int) -> None:
    """Refuse what a file says of its size, before any of it is unpacked. Raises ValueError."""
    values = [
        about.row_group(group).column(column).num_values
        for group in range(about.num_row_groups)
        for column in range(about.num_columns)
    ]
    if about.num_columns > 4 * columns or not 0 <= about.num_rows <= MOST_ROWS:
        raise ValueError(f"it has {about.num_columns} columns of {about.num_rows} rows")
    if min(values, default=0) < 0 or 16 * sum(values) > MOST_BYTES:
        raise ValueError(f"it has {sum(values)} values")


def _plain(table: pa.Table, name: str) -> pa.Table:
    """A table whose texts are written out: each lay in the file once. Raises ValueError."""
    import pyarrow as pa
    import pyarrow.compute as compute

    index = table.schema.get_field_index(name)
    if index < 0 or not pa.types.is_dictionary(table.schema.field(index).type):
        return table
    column = table.column(index).unify_dictionaries()
    longest = (
        compute.max(compute.binary_length(column.chunk(0).dictionary))
        if column.num_chunks
        else None
    )
    if longest is not None and (longest.as_py() or 0) * len(column) > MOST_BYTES:
        raise ValueError(f"column {name!r} has texts of {longest.as_py()} bytes")
    return table.set_column(index, name, column.cast(column.type.value_type))


def read_table(path: Path, columns: tuple[Column, ...]) -> pl.DataFrame:
    """Read a table and validate it; TableError if it is not what its columns say."""
    return validated(read_frame(path, len(columns)), columns, path.name)


def read_frame(path: Path, columns: int) -> pl.DataFrame:
    """Read a table of about so many columns, whatever they are; TableError if it cannot be read."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from ringrift_pipeline.store import CorruptArtefactError, check_file

    try:
        check_file(path)
        # Arrow's reader refuses bad bytes where that of polars may take the interpreter with it.
        about = parquet.read_metadata(path)
        _check_size(about, columns)
        found = (about.schema.column(index) for index in range(about.num_columns))
        # a list's path has more parts than its name, and no dictionary can be had of one
        texts = [one.path for one in found if one.path == one.name and one.physical_type == _TEXT]
        file = parquet.ParquetFile(path, read_dictionary=texts)
        table = file.read()
        table.validate(full=True)
        names = list(table.schema.names)
        if len(set(names)) < len(names):
            raise ValueError("two of its columns have one name")
        if any("\0" in name for name in names):  # where polars' ends
            raise ValueError("the name of a column has a NUL in it")
        for name in texts:
            table = _plain(table, name)
        # names and values alone: what else a file says of itself is not looked at
        frame = pl.from_arrow(pa.table([table.column(i) for i in range(len(names))], names))
    except (OSError, ValueError, CorruptArtefactError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read as Parquet ({error})") from error
    assert isinstance(frame, pl.DataFrame)
    return frame
