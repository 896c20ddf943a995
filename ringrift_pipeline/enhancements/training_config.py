"""One validated, immutable configuration of every hyper-parameter.

Settings are merged field by field, later beats earlier::

    defaults < preset < file (TOML, YAML or JSON) < environment < overrides (command line)

``TrainingConfig.load(preset="smoke", overrides={"training.batch_size": 128})``. An environment
variable is ``RINGRIFT_<GROUP>__<FIELD>`` (``RINGRIFT_TRAINING__BATCH_SIZE=128``), or
``RINGRIFT_SEED`` and ``RINGRIFT_DEVICE`` for the two settings without a group. An unknown
setting is refused with the nearest valid name, a bad value with its bounds and where it came from.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from ringrift_pipeline.enhancements.argument_checks import shown
from ringrift_pipeline.enhancements.config_base import ConfigGroup, nearest_name
from ringrift_pipeline.enhancements.config_groups import (
    AveragingConfig,
    CalibrationConfig,
    CurriculumConfig,
    EnsembleConfig,
    FeedbackConfig,
    GradientsConfig,
    MiningConfig,
    OptimizerConfig,
    QualityConfig,
    ScheduleConfig,
    StabilityConfig,
    TrackingConfig,
)
from ringrift_pipeline.enhancements.config_stages import (
    EvaluationConfig,
    FinetuneConfig,
    NetworkSettings,
    SearchConfig,
    SelfplayConfig,
    TrainingLoopConfig,
    WatchConfig,
)
from ringrift_pipeline.enhancements.presets import PRESETS, preset_for

ENVIRONMENT_PREFIX = "RINGRIFT_"
_LARGEST_FILE = 1 << 18  # bytes of a file of settings; all of them take 6,000

# Variables of the command line and the kernels, which are no settings.
_OTHER_VARIABLES = ("RINGRIFT_DATA", "RINGRIFT_KERNEL_CACHE")

# Settings that plans of earlier versions hold, and that mean nothing any more.
_RETIRED = ("training.epochs", "training.window_generations")

# Settings of which earlier versions took less, and used this least value in its place.
_RAISED = {"calibration.bootstrap": (10, 20)}  # the least it could be, and now


# Bounds as people read them, by pydantic's names.
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "entries >="}


class ConfigError(ValueError):
    """A setting that cannot be used: one line that says which, why, and where it came from."""


class ConfigField(NamedTuple):
    """One setting, as a user interface or a command line needs it."""

    name: str  # dotted: "training.batch_size"
    type: Any  # int, float, bool, str, tuple[float, float], Literal[...]
    default: Any
    description: str
    bounds: dict[str, Any]  # any of ge, gt, le, lt, choices, min_length, pattern

    @property
    def limits(self) -> str:
        """Default and bounds in words: ``default 256; >= 1``."""
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        parts = [f"default {default}"]
        parts += [
            f"{sign} {self.bounds[name]}" for name, sign in SIGNS.items() if name in self.bounds
        ]
        if "choices" in self.bounds:
            parts.append("one of " + ", ".join(map(str, self.bounds["choices"])))
        return "; ".join(parts)


class FieldGroup(NamedTuple):
    """Settings that belong together."""

    name: str  # "training", or "" for those without a group
    description: str  # one line
    fields: list[ConfigField]


class TrainingConfig(ConfigGroup):
    """Every hyper-parameter, grouped. Immutable; build another with :meth:`with_overrides`.

    Raises:
        ValueError: unknown setting (named with its nearest valid name) or a value out of bounds
            (pydantic's ``ValidationError`` from the constructor, :class:`ConfigError` elsewhere).
    """

    seed: int = Field(default=0, ge=0, lt=2**63, description="Root of every random stream.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto (CUDA where present, else CPU), cpu, cuda, cuda:N or mps.",
    )
    selfplay: SelfplayConfig = SelfplayConfig()
    search: SearchConfig = SearchConfig()
    network: NetworkSettings = NetworkSettings()
    training: TrainingLoopConfig = TrainingLoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    gradients: GradientsConfig = GradientsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    quality: QualityConfig = QualityConfig()
    mining: MiningConfig = MiningConfig()
    averaging: AveragingConfig = AveragingConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    tracking: TrackingConfig = TrackingConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    watch: WatchConfig = WatchConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    stability: StabilityConfig = StabilityConfig()

    @property
    def effective_batch_size(self) -> int:
        """Samples of one optimizer step: batch size times accumulation steps."""
        return self.training.batch_size * self.gradients.accumulation_steps

    @property
    def effective_learning_rate(self) -> float:
        """Peak learning rate of a step, evaluation feedback included."""
        return self.optimizer.learning_rate * self.feedback.rate_factor

    @property
    def effective_temperature(self) -> float:
        """Temperature of moves sampled in network selfplay, evaluation feedback included."""
        return self.selfplay.temperature * self.feedback.exploration_factor

    @property
    def effective_games(self) -> int:
        """Games a generation, at least one, evaluation feedback included."""
        return max(1, round(self.selfplay.games * self.feedback.selfplay_factor))

    @classmethod
    def load(
        cls,
        preset: str | None = None,
        file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        base: TrainingConfig | None = None,
        config: str | None = None,
        origin: str = "command line",
    ) -> TrainingConfig:
        """Merge defaults < preset < file < environment < overrides.

        Args:
            preset: ``smoke``, ``hour`` or ``day``.
            file: a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file of nested or dotted settings.
            environ: environment variables; None reads the process's own, ``{}`` none.
            overrides: dotted name -> value (text is parsed by the field's type), or nested.
            base: what takes the place of the defaults.
            config: board and players, such as ``square19_2p``, whose sizes the preset takes.
            origin: what an error calls the place that the overrides come from.

        Raises:
            ConfigError: unknown preset or setting, unreadable file, value out of bounds.
        """
        merged: dict[str, tuple[Any, str]] = {}
        _check_board(config)
        if base is not None:
            if not isinstance(base, TrainingConfig):
                raise ConfigError(f"base must be a TrainingConfig, not a {type(base).__name__}")
            merged.update(_flatten(base.to_dict(), "base"))
        if preset is not None:
            merged.update(_flatten(_preset(preset, config), f"preset {preset}"))
        if file is not None:
            if not isinstance(file, str | os.PathLike):
                raise ConfigError(f"config file must be a path, not {file!r:.40}")
            merged.update(_flatten(_read_file(Path(file)), f"file {file}"))
        merged.update(_from_environment(os.environ if environ is None else environ))
        if overrides is not None:
            _check_table("overrides", overrides)
            merged.update(_flatten(overrides, origin))
        return _build(merged)

    @classmethod
    def preset(
        cls, name: Literal["smoke", "hour", "day"], config: str | None = None
    ) -> TrainingConfig:
        """The defaults with one preset's changes, for ``config`` (``square19_2p``) if one is given;
        :class:`ConfigError` lists the valid names.
        """
        return _build(_flatten(_preset(name, config), f"preset {name}"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """The config that :meth:`to_dict` wrote; missing settings take their defaults, and those
        that earlier versions had are left out, or raised to the least value that was used.
        """
        _check_table("data", data)
        kept = dict(data)
        for name in _RETIRED:
            group, _, field = name.partition(".")
            if isinstance(kept.get(group), Mapping):
                kept[group] = {key: value for key, value in kept[group].items() if key != field}
        for name, (before, least) in _RAISED.items():
            group, _, field = name.partition(".")
            settings = kept.get(group)
            if isinstance(settings, Mapping) and settings.get(field) in range(before, least):
                kept[group] = {**settings, field: least}
        return _build(_flatten(kept, "dictionary"))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values that JSON can hold (tuples as lists)."""
        return self.model_dump(mode="json")

    def with_overrides(self, overrides: Mapping[str, Any]) -> TrainingConfig:
        """A validated copy with some settings changed (dotted or nested names).

        What was left at its default stays out of the copy's ``model_fields_set`` as well.
        """
        _check_table("overrides", overrides)
        merged = _flatten(self.model_dump(mode="json", exclude_unset=True), "config")
        merged.update(_flatten(overrides, "override"))
        return _build(merged)

    @classmethod
    def fields(cls) -> list[ConfigField]:
        """Every setting: dotted name, type, default, description and bounds, in order."""
        return list(_walk(cls, ""))

    @classmethod
    def groups(cls) -> list[FieldGroup]:
        """The same fields by group, in order, those without a group first."""
        about = {"": "Settings without a group."}
        for name, info in cls.model_fields.items():
            about[name] = (getattr(info.annotation, "__doc__", None) or name).split("\n")[0]
        grouped: dict[str, list[ConfigField]] = {"": []}
        for field in cls.fields():
            grouped.setdefault(field.name.rpartition(".")[0], []).append(field)
        return [FieldGroup(name, about[name], fields) for name, fields in grouped.items()]


def _walk(group: type[ConfigGroup], prefix: str) -> Iterator[ConfigField]:
    hints = typing.get_type_hints(group)
    for name, info in group.model_fields.items():
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, ConfigGroup):
            yield from _walk(kind, f"{prefix}{name}.")
            continue
        bounds: dict[str, Any] = {}
        for constraint in info.metadata:
            for bound in ("ge", "gt", "le", "lt", "min_length", "pattern"):
                if getattr(constraint, bound, None) is not None:
                    bounds[bound] = getattr(constraint, bound)
        if typing.get_origin(kind) is Literal:
            bounds["choices"] = list(typing.get_args(kind))
        default = info.get_default(call_default_factory=True, validated_data={})
        yield ConfigField(f"{prefix}{name}", kind, default, info.description or "", bounds)


_FIELDS: dict[str, ConfigField] = {}


def _known() -> dict[str, ConfigField]:
    if not _FIELDS:
        _FIELDS.update((field.name, field) for field in _walk(TrainingConfig, ""))
    return _FIELDS


def _check_table(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a table of settings by name, not {shown(value):.40}")


def _check_board(config: Any) -> None:
    if config is not None and not isinstance(config, str):
        raise ConfigError(f"config must be a name such as square8_2p, not {config!r:.40}")


def _preset(name: str, config: str | None) -> dict[str, Any]:
    _check_board(config)
    try:
        return preset_for(name, config)
    except (TypeError, ValueError) as error:  # a name that cannot even be looked up
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}") from error


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data_read = file.read(_LARGEST_FILE + 1)
        if len(data_read) > _LARGEST_FILE:
            raise ConfigError(
                f"config file {path} has more than {_LARGEST_FILE} bytes, which no settings take"
            )
        text = data_read.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}: {error}") from error
    suffix = path.suffix.lower()
    try:
        if suffix == ".toml":
            data: Any = tomllib.loads(text)
        elif suffix == ".json":
            data = json.loads(text)
        elif suffix in (".yaml", ".yml"):
            import yaml

            try:
                # a few lines of names that stand for lists of names stand for any amount of memory
                if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, yaml.SafeLoader)):
                    raise ValueError("names for parts of it (*name) are not read")
                data = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
        else:
            raise ConfigError(f"config file {path} must end in .toml, .yaml, .yml or .json")
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not valid {suffix[1:]}: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"config file {path} must hold a table of settings, not {data!r:.40}")
    return data


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Variables with a double underscore must name a setting, and none may nearly name one; the
    others belong to other programs.
    """
    by_variable = {ENVIRONMENT_PREFIX + name.replace(".", "__").upper(): name for name in _known()}
    found: dict[str, tuple[Any, str]] = {}
    if not isinstance(environ, Mapping):
        raise ConfigError(f"environ must hold variables by name, not {environ!r:.40}")
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        source = f"environment variable {variable}"
        if variable in by_variable:
            name = by_variable[variable]
            found[name] = (_parse(name, text, source), source)
        elif "__" in variable or (
            variable not in _OTHER_VARIABLES and _nearly_names(variable, by_variable)
        ):
            near = nearest_name(variable, list(by_variable))
            hint = f"did you mean {near}?" if near else "no such setting"
            raise ConfigError(f"unknown environment variable {variable}; {hint}")
    return found


def _nearly_names(variable: str, known: Iterable[str]) -> bool:
    """Whether a variable is a slip of the pen, or has one underscore where two belong."""
    single = {name.replace("__", "_") for name in known}
    return variable in single or bool(difflib.get_close_matches(variable, single, 1, 0.9))


def _flatten(tree: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Nested or dotted settings -> dotted name -> (value, source); unknown names are refused."""
    flat: dict[str, tuple[Any, str]] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in _known():
            flat[name] = (_parse(name, value, source), source)
        elif any(known.startswith(f"{name}.") for known in _known()):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{name} is a group of settings, not {value!r:.40} (from {source})"
                )
            flat.update(_flatten(value, source, f"{name}."))
        else:
            names = list(_known()) + sorted({k.split(".")[0] for k in _known() if "." in k})
            near = nearest_name(name, names)
            hint = (
                f"did you mean {near!r}?"
                if near
                else "TrainingConfig.fields() and ringrift train --help list them"
            )
            raise ConfigError(f"unknown setting {name!r} (from {source}); {hint}")
    return flat


def _parse(name: str, value: Any, source: str) -> Any:
    """Text to the field's type, as environment and command line bring it; others pass through."""
    kind = _known()[name].type
    if not isinstance(value, str) or kind is str or typing.get_origin(kind) is Literal:
        return value
    text = value.strip()
    try:
        if kind is bool:
            choices = {"true": True, "yes": True, "on": True, "1": True}
            choices |= {"false": False, "no": False, "off": False, "0": False}
            return choices[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if typing.get_origin(kind) is tuple:
            if text.startswith(("[", "(")):
                text = text[1:-1]
            parts = [part.strip().strip("'\"") for part in text.split(",") if part.strip()]
            element = typing.get_args(kind)[0]
            return tuple(element(part) for part in parts)
    except (ValueError, KeyError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ConfigError(
            f"{name} must be {wanted.get(kind, 'a comma-separated list')}, got {value!r} "
            f"(from {source})"
        ) from error
    raise TypeError(f"setting {name} has a type that text cannot give: {kind}")


def _build(flat: Mapping[str, tuple[Any, str]]) -> TrainingConfig:
    nested: dict[str, Any] = {}
    for name, (value, _) in flat.items():
        group, _, field = name.rpartition(".")
        if group:
            nested.setdefault(group, {})[field] = value
        else:
            nested[field] = value
    try:
        return TrainingConfig(**nested)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, flat) for e in error.errors())) from error


def _explain(error: Any, flat: Mapping[str, tuple[Any, str]]) -> str:
    """One pydantic error as 'training.batch_size: … (got -4, from …)'."""
    name = ".".join(str(part) for part in error["loc"])
    while name and name not in _known() and "." in name:
        name = name.rpartition(".")[0]
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "should")
    if error["type"] == "missing":
        message = "has too few values"
    if name in flat:
        value, source = flat[name]
        return f"{name} {message} (got {value!r}, from {source})"
    sources = sorted({s for n, (_, s) in flat.items() if n.startswith(f"{name}.")})
    return f"{name}: {message}" + (f" (from {', '.join(sources)})" if sources else "")


__all__ = [
    "ENVIRONMENT_PREFIX",
    "PRESETS",
    "ConfigError",
    "ConfigField",
    "FieldGroup",
    "TrainingConfig",
]
