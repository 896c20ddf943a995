"""The run configuration people type in the launchpad, derived from ``TrainingConfig``.

Dagster refuses nested pydantic models and enforces no bounds, so each group of ``TrainingConfig``
becomes one Dagster ``Config`` whose fields carry the type, the description, the bounds and the
default as text; every field is optional, and what is given goes through ``TrainingConfig`` itself,
which refuses bad values with its own message. A job-level config mapping does that at launch.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Literal, TypeVar, get_args, get_origin

from dagster import (
    Config,
    DagsterError,
    InitResourceContext,
    OpDefinition,
    Permissive,
    ResourceDefinition,
    resource,
)
from dagster._config.pythonic_config import infer_schema_from_config_class
from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from ringrift_pipeline.enhancements.training_config import (
    PRESETS,
    SIGNS,
    ConfigError,
    ConfigField,
    TrainingConfig,
)
from ringrift_pipeline.evaluation.feedback import next_settings
from ringrift_pipeline.orchestration import remote
from ringrift_pipeline.orchestration.configs import CONFIGS
from ringrift_pipeline.orchestration.launchable import next_generation
from ringrift_pipeline.orchestration.places import TICK, data_folder
from ringrift_pipeline.store import BucketError, Store, StoreError
from ringrift_pipeline.training.inputs import check_resume


class LaunchRefusedError(DagsterError):
    """Settings out of bounds: the message names field and bound.

    An error of Dagster's kind, so that the UI shows it as it is, and not at the end of a trace of
    the mapping that raised it.
    """


# What a run needs to know beside the hyper-parameters.
RUN_FIELDS = ("preset", "last_generation", "resume")


def choice(name: str, choices: Iterable[str]) -> Any:
    """An enumeration of strings: Dagster takes an optional Enum, but no optional Literal."""
    return StrEnum(name, {one: one for one in choices})


def _annotation(field: ConfigField) -> Any:
    """The type Dagster can show for a TrainingConfig field."""
    if get_origin(field.type) is tuple:
        return list[get_args(field.type)[0]]  # type: ignore[misc]
    if get_origin(field.type) is Literal:
        return choice(field.name.replace(".", "_"), get_args(field.type))
    return field.type


def _fields(fields: Iterable[ConfigField]) -> dict[str, Any]:
    """Fields as create_model wants them, under their names without the group."""
    return {
        field.name.rpartition(".")[2]: (
            _annotation(field) | None,
            Field(default=None, description=f"{field.description} ({field.limits})"),
        )
        for field in fields
    }


def _generation_config() -> type[Config]:
    """The run's own fields, the settings without a group, and one Config a group of settings."""
    every: dict[str, Any] = {
        "preset": (
            choice("preset", tuple(PRESETS)) | None,
            Field(
                default=None,
                description="Preset to start from; what is given below wins. Without one a new "
                "generation has the settings of the one before it, changed as the trend of the "
                "ratings asks for; the first one has the defaults named below.",
            ),
        ),
        "last_generation": (
            int | None,
            Field(
                default=None,
                description="The sensor starts no generation after this one (>= 0); "
                "without it the loop goes on until the sensor is turned off.",
            ),
        ),
        "resume": (
            str,
            Field(
                default="auto",
                description="auto: training goes on from its newest checkpoint; never: from the "
                "start; or the path of a checkpoint folder.",
            ),
        ),
    }
    for group in TrainingConfig.groups():
        fields = _fields(group.fields)
        if not group.name:
            every |= fields
            continue
        made = create_model(f"{group.name.capitalize()}Settings", __base__=Config, **fields)
        every[group.name] = (made, Field(default_factory=made, description=group.description))
    return create_model("GenerationConfig", __base__=Config, **every)


GenerationConfig = _generation_config()
_SCHEMA = infer_schema_from_config_class(GenerationConfig)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was set (None means not given), nested as it came, run fields left out."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name in RUN_FIELDS or value is None:
            continue
        if isinstance(value, Config):
            value = value.model_dump()
        if isinstance(value, Mapping):
            inner = {key: _plain(item) for key, item in value.items() if item is not None}
            if inner:
                result[name] = inner
        else:
            result[name] = _plain(value)
    return result


def resolve(
    values: Mapping[str, Any], config: str | None = None, before: TrainingConfig | None = None
) -> TrainingConfig:
    """Run configuration -> the validated ``TrainingConfig``, of ``config`` if one is named: a
    preset's sizes depend on it.

    Args:
        before: what takes the place of the defaults where no preset is given.

    Raises:
        ConfigError: a value out of bounds, or an unknown setting.
    """
    last = values.get("last_generation")
    if last is not None and last < 0:
        raise ConfigError(f"last_generation counts from 0, not {last}")
    preset = _plain(values.get("preset"))
    return TrainingConfig.load(
        preset=preset,
        overrides=given(values),
        base=None if preset else before,
        config=config,
        origin="run configuration",
    )


def carried_on(planned: TrainingConfig, values: Mapping[str, Any], config: str) -> TrainingConfig:
    """The settings a run of ``config`` hands to its successor: what it was asked for, over its
    plan.

    They differ where the generation had been planned before somebody asked for something else.

    Raises:
        ConfigError: a value out of bounds, or an unknown setting.
    """
    if values.get("preset"):
        return resolve(values, config)
    return planned.with_overrides(given(values))


def settings_for(
    store: Store, config: str, generation: int, values: Mapping[str, Any]
) -> TrainingConfig:
    """The settings that a run launched with ``values`` asks for ``generation`` with.

    Of a new generation: what is given, over the preset, or without one the settings of the
    generation before, with the factors that the trend of the ratings asks for. What is given wins
    over these too: the loop's runs are given them. Of one that has a plan: what is given, over that.

    Raises:
        ConfigError: a value out of bounds, or an unknown setting.
        StoreError: the plan of the generation before is damaged.
    """
    known = [number for number in store.generations(config) if number <= generation]
    before = None
    if known:
        before = TrainingConfig.from_dict(store.read_plan(config, known[-1])["settings"])
        if known[-1] == generation:
            return carried_on(before, values, config)
    asked = next_settings(store, config, generation, resolve(values, config, before))
    return asked.settings.with_overrides(given(values))


def run_config(
    config: TrainingConfig, *, last_generation: int | None = None, resume: str = "auto"
) -> dict[str, Any]:
    """The run configuration that says all of ``config``, for any job of ours."""
    values: dict[str, Any] = {**config.to_dict(), "resume": resume}
    if last_generation is not None:
        values["last_generation"] = last_generation
    return {"resources": {"settings": {"config": values}}}


def run_values(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's configuration says to the ``settings`` resource; empty if nothing."""
    settings = run_config.get("resources", {}).get("settings", {})
    return dict(settings.get("config") or {})


@dataclass(frozen=True)
class RunSettings:
    """What the ``settings`` resource hands to a step: what was given, checked."""

    values: Mapping[str, Any]
    last_generation: int | None
    resume: str

    def of(self, store: Store, config: str, generation: int) -> TrainingConfig:
        """`settings_for` what was given."""
        return settings_for(store, config, generation, self.values)


@resource(config_schema=Permissive(), description="The settings of a run, checked.")
def _resolved(context: InitResourceContext) -> RunSettings:
    values = context.resource_config
    return RunSettings(
        values=values["values"],
        last_generation=values["last_generation"],
        resume=values["resume"],
    )


class SettingsResource(ResourceDefinition):
    """The resource ``settings``, bound to one config or to none.

    All are equal: Dagster lets the assets of one job differ in nothing that goes by the same key,
    and its implicit job holds those of every config. A launch takes the one of what it selects,
    which is one config's, for no two share their partitions.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SettingsResource)

    def __hash__(self) -> int:
        return hash(SettingsResource)


@functools.cache
def settings_of(config: str | None = None) -> SettingsResource:
    """The resource ``settings`` of a config's assets: at launch it refuses what could not be
    planned for that config: some bounds depend on other settings, which are those of its newest
    generation, or of a preset for its board.

    Dagster runs a resource's config mapping while it resolves a run's configuration, before there
    is a run. (A job-level ConfigMapping is refused for partitioned jobs, and would not see
    backfills.)
    """

    def check(values: Mapping[str, Any]) -> dict[str, Any]:
        resume = values.get("resume") or "auto"
        # A run's own processes also come here, when the state gone on from may be used up, or on
        # another machine, and there may be a newer generation.
        if multiprocessing.parent_process() is None and remote.current() is None:
            with _refused():
                _check_settings(values, config)
                _check_resume(resume)
        return {
            "values": {"preset": _plain(values.get("preset")), **given(values)},
            "last_generation": values.get("last_generation"),
            "resume": resume,
        }

    made = _resolved.configured(check, config_schema=_SCHEMA)
    return SettingsResource(
        resource_fn=made.resource_fn, config_schema=made.config_schema, description=made.description
    )


def _check_settings(values: Mapping[str, Any], config: str | None) -> None:
    """Could the next generation be planned with this? The store is asked only where that depends on
    it: not for the loop's runs, which are given everything, nor where nothing is given.
    """
    said = given(values)
    named = sum(len(one) if isinstance(one, Mapping) else 1 for one in said.values())
    alone = named in (0, len(TrainingConfig.fields()))
    if config is None or values.get("preset") or alone:
        resolve(values, config)
        return
    store = Store(data_folder(), within=TICK)
    try:
        settings_for(store, config, next_generation(store, config), values)
    except (BucketError, StoreError) as error:
        raise ConfigError(f"the settings of {config} so far cannot be read: {error}") from None


def _check_resume(resume: str) -> None:
    try:
        check_resume(resume)
    except ValueError as error:
        raise ConfigError(f"resume: {error}") from None


settings_resource = settings_of()


Model = TypeVar("Model", bound=Config)

ALL = "all"
ConfigName = choice("ConfigName", CONFIGS)
ConfigOrAll = choice("ConfigOrAll", (ALL, *CONFIGS))


def _limits(info: FieldInfo) -> str:
    """The bounds of a field in words: ``(>= 1; <= 1000)``; empty where it has none."""
    parts = [
        f"{sign} {getattr(bound, name)}"
        for name, sign in SIGNS.items()
        for bound in info.metadata
        if getattr(bound, name, None) is not None
    ]
    return f"({'; '.join(parts)})" if parts else ""


def refusing(
    raw: OpDefinition, model: type[Model], check: Callable[[Model], object] = lambda _: None
) -> OpDefinition:
    """The op ``raw``, which takes a ``model``, with the bounds of its fields held at launch.

    Dagster knows types and names only; pydantic sees the values when the step begins. Here it sees
    them in a config mapping, as the settings do. The descriptions in the launchpad name the bounds.

    Args:
        check: raises ConfigError for what no single field tells.
    """

    def checked(values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {name: _plain(value) for name, value in values.items()}
        with _refused():
            check(model(**plain))
        return plain

    for info in model.model_fields.values():
        if (limits := _limits(info)) and not (info.description or "").endswith(limits):
            info.description = f"{info.description or ''} {limits}".strip()
    return raw.configured(
        checked, name=raw.name, config_schema=infer_schema_from_config_class(model)
    )


@contextmanager
def _refused() -> Iterator[None]:
    """Bad settings as the error that a launch is refused with."""
    try:
        yield
    except ValidationError as error:
        reasons = "; ".join(_explained(one) for one in error.errors())
        raise LaunchRefusedError(reasons) from None
    except ConfigError as error:
        raise LaunchRefusedError(str(error)) from None


def _explained(error: Any) -> str:
    """One error of pydantic's as 'games should be greater than or equal to 2 (got -1)'."""
    name = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{name} {message} (got {error['input']!r})"
