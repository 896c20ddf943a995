"""From a line to a query: JSON, types and bounds. Whether its moves are legal is seen later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ringrift_pipeline.analysis.limits import (
    MAX_LINE,
    MAX_MOVES,
    MAX_NAME,
    MAX_PRIORITY,
    MAX_SHOWN,
    MAX_VISITS,
    MAX_WARNINGS,
)

#: Changes when an older front end could not read the answers any more.
PROTOCOL = "ringrift-analysis/1"


class QueryError(ValueError):
    """A query that cannot be answered.

    Attributes:
        field: where in the query the fault lies (``moves[3]``), None where it is no one field.
    """

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Warned:
    """Something of a query that was not used; the query is answered nevertheless."""

    field: str
    warning: str


Name = Annotated[str, Field(max_length=MAX_NAME)]
Turn = Annotated[int, Field(ge=0, le=MAX_MOVES)]


class _Request(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
    )

    id: Name


class AnalysisQuery(_Request):
    """A game and the turns of it to analyse; names in the JSON are in camel case."""

    config: Name | None = None
    moves: Annotated[list[dict[str, Any]], Field(max_length=MAX_MOVES)] = []
    initial_state: dict[str, Any] | None = None
    swap_rule: bool | None = None
    analyze_turns: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MOVES + 1)] | None = (
        None
    )
    max_visits: Annotated[int, Field(ge=1, le=MAX_VISITS)] | None = None
    player: Name | None = None
    model: Name | None = None
    include_policy: bool = False
    max_moves: Annotated[int, Field(ge=1)] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0

    @property
    def turns(self) -> list[int]:
        """The turns to analyse: numbers of moves made before."""
        return [len(self.moves)] if self.analyze_turns is None else self.analyze_turns


class ActionQuery(_Request):
    """A request to the engine itself."""

    action: Literal["query_version", "query_models", "clear_cache", "terminate", "terminate_all"]
    terminate_id: Name | None = None
    turn_numbers: Annotated[list[Turn], Field(max_length=MAX_MOVES + 1)] | None = None


def read_line(line: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        QueryError: it is too long, no JSON or no object; names no field.
    """
    if len(line) > MAX_LINE:
        raise too_long()
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise QueryError(None, "the line is nested too deeply") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise QueryError(None, f"the line is no JSON: {shown(error)}") from None
    if not isinstance(value, dict):
        raise QueryError(None, f"a query is an object, not {type(value).__name__}")
    return value


def too_long() -> QueryError:
    """What is said of a line of more than ``MAX_LINE`` bytes."""
    return QueryError(None, f"the line has more than {MAX_LINE} bytes")


def id_of(raw: dict[str, Any]) -> str | None:
    """The id of a query that may be faulty elsewhere; None where it cannot be repeated."""
    name = raw.get("id")
    return name if isinstance(name, str) and len(name) <= MAX_NAME else None


def warnings_of(raw: dict[str, Any]) -> list[Warned]:
    """A warning for every unknown field, at most ``MAX_WARNINGS``."""
    kind = ActionQuery if "action" in raw else AnalysisQuery
    known = {field.alias or name for name, field in kind.model_fields.items()}
    unknown = [shown(name) for name in raw if name not in known]
    warned = [Warned(name, "there is no such field; it was ignored") for name in unknown]
    if len(warned) > MAX_WARNINGS:
        rest = len(warned) - MAX_WARNINGS + 1
        warned[MAX_WARNINGS - 1 :] = [
            Warned(unknown[MAX_WARNINGS - 1], f"this and {rest - 1} more unknown fields ignored")
        ]
    return warned


def read_query(raw: dict[str, Any]) -> AnalysisQuery | ActionQuery:
    """The query in an object; types and bounds are right, and what belongs together is there.

    Raises:
        QueryError: naming the first field that is wrong, and what is wrong with it.
    """
    try:
        if "action" not in raw:
            return _checked(AnalysisQuery.model_validate(raw))
        action = ActionQuery.model_validate(raw)
    except ValidationError as errors:
        raise _first(errors, raw) from None
    if action.action == "terminate" and action.terminate_id is None:
        raise QueryError("terminateId", "terminate needs the id of the query to give up")
    return action


def _checked(query: AnalysisQuery) -> AnalysisQuery:
    """What must hold between the fields."""
    if query.player is not None and query.model is not None and query.player != query.model:
        raise QueryError("model", "model and player are two names of one field, and differ")
    seen: set[int] = set()
    for place, turn in enumerate(query.turns):
        if turn > len(query.moves):
            raise QueryError(
                f"analyzeTurns[{place}]", f"turn {turn} lies beyond the {len(query.moves)} moves"
            )
        if turn in seen:
            raise QueryError(f"analyzeTurns[{place}]", f"turn {turn} is named twice")
        seen.add(turn)
    return query


def _first(errors: ValidationError, raw: dict[str, Any]) -> QueryError:
    """The first fault that pydantic found, in our words."""
    fault = errors.errors(include_url=False, include_context=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    field = path.lstrip(".")
    if fault["type"] == "missing":
        return QueryError(field, f"{field} is missing")
    message = fault["msg"].replace("dictionary", "object").replace("Input", "it")
    value: Any = raw
    for part in fault["loc"]:
        value = value[part]
    return QueryError(field, f"{message}, got {shown(json.dumps(value))}")


def shown(value: object) -> str:
    """A value as text for a message, cut short."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
