"""The flags that every verb takes, and what they come to."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import platformdirs
import typer

from ringrift_pipeline.orchestration.configs import CONFIGS
from ringrift_pipeline.orchestration.places import data_folder

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.store import Store


class InputError(ValueError):
    """Bad input on the command line: one line that says what was wrong and what to do."""


def _config(value: str) -> str:
    if value not in CONFIGS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(CONFIGS)}")
    return value


def _preset(value: str | None) -> str | None:
    from ringrift_pipeline.enhancements.training_config import PRESETS

    if value is not None and value not in PRESETS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(PRESETS)}")
    return value


def _resume(value: str) -> str:
    from ringrift_pipeline.training.inputs import check_resume

    try:
        return check_resume(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


SETTINGS = "Settings"

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        callback=_config,
        metavar="NAME",
        help="Board and number of players: square8_2p, hex8_3p, … hexagonal_4p.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "-d",
        file_okay=False,
        help="Folder that everything is kept under. Default: $RINGRIFT_DATA, else ./data.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        callback=_preset,
        metavar="NAME",
        help="Settings to start from: smoke (minutes on two cores), hour or day.",
        rich_help_panel=SETTINGS,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Root of every random stream.", rich_help_panel=SETTINGS),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto (CUDA where present), cpu, cuda, cuda:N or mps.",
        rich_help_panel=SETTINGS,
    ),
]
ResumeOption = Annotated[
    str,
    typer.Option(
        "--resume",
        callback=_resume,
        metavar="auto|PATH|never",
        help="Unfinished work: go on with it, go on from the state in a folder, or begin anew.",
        rich_help_panel=SETTINGS,
    ),
]
SettingsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        exists=True,
        dir_okay=False,
        help="TOML, YAML or JSON file of settings.",
        rich_help_panel=SETTINGS,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="One setting, such as selfplay.games=200; may be repeated.",
        rich_help_panel=SETTINGS,
    ),
]
ShowOption = Annotated[
    bool,
    typer.Option(
        "--show-settings",
        help="Print the settings as they come out of preset, file, environment and flags, and stop.",
        rich_help_panel=SETTINGS,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, alone.")
]


@dataclass(frozen=True)
class Common:
    """The flags of every verb. A flag that a verb has no use for is taken and ignored, so that
    the same line works with all of them.
    """

    config: ConfigOption = "square8_2p"
    data: DataOption = None
    preset: PresetOption = None
    seed: SeedOption = None
    device: DeviceOption = None
    resume: ResumeOption = "auto"
    settings_file: SettingsFileOption = None
    overrides: SetOption = None
    show_settings: ShowOption = False
    as_json: JsonOption = False

    @property
    def root(self) -> Path:
        """The data root, absolute."""
        return data_folder(self.data)

    def store(self) -> Store:
        """The store under the data root."""
        from ringrift_pipeline.store import Store

        return Store(self.root)

    @property
    def says_settings(self) -> bool:
        """Whether a flag names a setting."""
        named = (self.preset, self.settings_file, self.overrides, self.device)
        return any(named) or self.seed is not None

    def settings(self) -> TrainingConfig:
        """What a new generation is planned with: defaults < preset < file < environment < flags.

        Without a preset the newest generation's settings stand in for the defaults. A preset has
        the sizes that suit ``config``.

        Raises:
            ConfigError: an unknown setting, a value out of bounds.
            InputError: a device that is not there.
        """
        from ringrift_pipeline.enhancements.training_config import TrainingConfig

        overrides: dict[str, Any] = {}
        for text in self.overrides or []:
            name, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"--set {text}: write NAME=VALUE, such as selfplay.games=200")
            overrides[name.strip()] = value.strip()
        if self.seed is not None:
            overrides["seed"] = self.seed
        if self.device is not None:
            overrides["device"] = self.device
        settings = TrainingConfig.load(
            preset=self.preset,
            file=self.settings_file,
            overrides=overrides,
            base=None if self.preset else self._before(),
            config=self.config,
        )
        check_device(settings.device)
        return settings

    def processes(self, planned: TrainingConfig) -> int:
        """`training.processes`, which any training may be given: by flag, environment or file, else
        as its generation was planned. ConfigError for a number that cannot be.
        """
        from ringrift_pipeline.enhancements.training_config import TrainingConfig

        said: dict[str, Any] = {}
        for text in self.overrides or []:
            name, _, value = text.partition("=")
            if name.strip() == "training.processes":
                said[name.strip()] = value.strip()
        settings = TrainingConfig.load(file=self.settings_file, overrides=said, base=planned)
        return settings.training.processes

    def upcoming(self) -> TrainingConfig:
        """`settings` with the factors that the trend of the ratings asks of a new generation."""
        from ringrift_pipeline.evaluation.feedback import next_settings

        store = self.store()
        number = max(store.generations(self.config), default=-1) + 1
        return next_settings(store, self.config, number, self.settings()).settings

    def _before(self) -> TrainingConfig | None:
        """The settings of the config's newest generation."""
        from ringrift_pipeline.enhancements.training_config import TrainingConfig

        store = self.store()
        generations = store.generations(self.config)
        if not generations:
            return None
        return TrainingConfig.from_dict(store.read_plan(self.config, generations[-1])["settings"])


def check_cache(root: Path) -> None:
    """InputError if compiled kernels, which run as code, would lie under the data root: such roots
    are copied and handed on.
    """
    named = os.environ.get("RINGRIFT_KERNEL_CACHE")
    cache = Path(named or platformdirs.user_cache_dir("ringrift_pipeline")).expanduser().resolve()
    if cache.is_relative_to(root):
        raise InputError(
            f"the folder of compiled kernels {cache} lies under the data root {root}: name one "
            "outside in RINGRIFT_KERNEL_CACHE"
        )


def check_device(device: str) -> None:
    """InputError if torch has no such device here."""
    if device in ("auto", "cpu"):
        return
    from ringrift_pipeline.network import resolve_device

    try:
        resolve_device(device)
    except ValueError as error:
        raise InputError(f"--device: {error}") from None


def with_common(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``verb(common, …)`` the flags of every verb, after its own."""
    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values()][1:]
    shared = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=item.default,
            annotation=_ANNOTATIONS[item.name],
        )
        for item in fields(Common)
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

    @functools.wraps(verb)
    def wrapped(**values: Any) -> Any:
        common = Common(**{item.name: values.pop(item.name) for item in fields(Common)})
        check_cache(common.root)
        if common.show_settings:
            typer.echo(json.dumps(common.upcoming().to_dict(), indent=2))
            return None
        if common.says_settings:  # refused here, whatever the verb makes of them
            common.settings()
        return verb(common, **values)

    wrapped.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in [*keyword, *shared]}
    return wrapped


_ANNOTATIONS: dict[str, Any] = {
    "config": ConfigOption,
    "data": DataOption,
    "preset": PresetOption,
    "seed": SeedOption,
    "device": DeviceOption,
    "resume": ResumeOption,
    "settings_file": SettingsFileOption,
    "overrides": SetOption,
    "show_settings": ShowOption,
    "as_json": JsonOption,
}
