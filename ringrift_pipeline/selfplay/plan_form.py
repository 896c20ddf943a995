"""The form of ``plan.json``: names, types and bounds, and that no path leads out of the data root."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ringrift_pipeline.store.manifest import ManifestMismatch, relative_path


def _below(path: str) -> str:
    try:
        relative_path(path)
    except ManifestMismatch as error:
        raise ValueError(f"leads out of the data root: {error}") from None
    return path


def _time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("says no time zone")
    return text


_Whole = Annotated[int, Field(ge=0)]
_Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Model(_Form):
    generation: _Whole
    digest: _Text
    path: Annotated[_Text, AfterValidator(_below)]
    config: _Text | None = None


class _Met(_Model):
    games: Annotated[int, Field(ge=1)]
    first_seat: Annotated[int, Field(ge=0, le=3)]


class _Shard(_Form):
    index: _Whole
    games: Annotated[int, Field(ge=1)]
    seed: _Whole
    opponent: _Met | None = None

    @model_validator(mode="after")
    def _no_more_met_than_played(self) -> _Shard:
        if self.opponent is not None and self.opponent.games > self.games:
            raise ValueError("more games against its opponent than it has")
        return self


class _Entry(_Form):
    generation: _Whole
    shard: _Whole
    digest: _Text


class _Holdout(_Form):
    generation: _Whole
    fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class _Finetune(_Form):
    source: _Model
    generation: _Whole
    samples: _Whole


class _Plan(_Form):
    config: _Text
    generation: _Whole
    created: Annotated[str, AfterValidator(_time)]
    seed: _Whole
    champion: _Model | None
    parent: _Model | None
    window: list[_Entry]
    shards: Annotated[list[_Shard], Field(min_length=1)]
    settings: dict[str, Any]
    ensemble: _Model | None = None  # plans of earlier versions name none
    finetune: _Finetune | None = None
    precision: _Text = "float32"
    backend: _Text = "torch"
    played: _Whole | None = None
    holdout: list[_Holdout] | None = None

    @model_validator(mode="after")
    def _shards_are_numbered(self) -> _Plan:
        for position, shard in enumerate(self.shards):
            if shard.index != position:
                raise ValueError(f"shard {position} is numbered {shard.index}")
        return self


def check_form(raw: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a plan's content, in words; None if nothing is."""
    try:
        _Plan.model_validate(dict(raw))
    except ValidationError as errors:
        fault = errors.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        return f"{place}: {fault['msg']}" if place else str(fault["msg"])
    return None
