"""Names that may become path parts, and the paths made of them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from datetime import datetime
from pathlib import Path

from ringrift_pipeline.store.errors import InvalidNameError, OutsideError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_GENERATION = re.compile(r"[0-9]{4}|[1-9][0-9]{4,8}")
LARGEST_GENERATION = 999_999_999
PLAN = "plan.json"
_RESERVED = frozenset({PLAN})

MANIFEST = "manifest.json"
NOTE = ".reason.json"  # ends the name of the note beside something in quarantine
POINTER = "current.json"


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be one path part; raise InvalidNameError otherwise.

    Allowed: 1-100 ASCII letters, digits, dots, dashes and underscores, beginning with a letter or
    digit, not ending in a dot. That leaves no room for separators, ``..`` or hidden names.
    """
    if not is_name(name):
        raise InvalidNameError(
            f"{name!r} is no valid {what}: use 1-100 letters, digits, '.', '-' and '_', "
            "beginning with a letter or digit and not ending with '.'"
        )
    return name


def is_name(name: object) -> bool:
    """Whether `check_name` would take it: people put copies of all kinds beside what is ours."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and name not in _RESERVED


def generation_key(generation: int) -> str:
    """The text form of a generation: zero-padded to four digits, ``7 -> "0007"``.

    Raises InvalidNameError for anything but an integer from 0 to `LARGEST_GENERATION`.
    """
    if isinstance(generation, bool) or not isinstance(generation, int) or generation < 0:
        raise InvalidNameError(
            f"{generation!r} is no generation: it must be an integer of at least 0"
        )
    if generation > LARGEST_GENERATION:
        raise InvalidNameError(f"there are no generations beyond {LARGEST_GENERATION}")
    return f"{generation:04d}"


def parse_generation(key: str) -> int | None:
    """The generation a folder name stands for, or None if it is not one."""
    return int(key) if _GENERATION.fullmatch(key) else None


def landed_when(name: str) -> datetime | None:
    """When an artefact landed, by the name of its folder; None for another name."""
    try:
        return datetime.strptime(name.partition("Z-")[0] + "+0000", "%Y%m%dT%H%M%S.%f%z")
    except ValueError:
        return None


_told: set[Path] = set()  # generations whose plan is gone, of which the log has said so


def _tell_of_a_lost_plan(folder: Path) -> None:
    """A generation begins with its plan: one that holds artefacts and no plan has lost it."""
    if folder in _told:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        if any(entry.is_dir() and not entry.name.startswith(".") for entry in entries):
            _told.add(folder)
            _log.warning(
                "%s is gone: restore it; its generation is left out until then", folder / PLAN
            )


class Layout:
    """Every path of one data root. Makes no folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def config(self, config: str) -> Path:
        return self.root / check_name(config, "config")

    def leads_outside(self, path: Path, config: str | None = None) -> bool:
        """Do links lead from ``path`` out of the config's folder (None: of the data root)?

        The data root and a config's folder may be links themselves, to another disk; below them
        the store makes none.
        """
        base = os.path.realpath(self.root if config is None else self.config(config))
        real = os.path.realpath(path)
        return real != base and not real.startswith(base.rstrip(os.sep) + os.sep)

    def inside(self, path: Path, config: str | None = None) -> Path:
        """``path``. Raises OutsideError if links lead from there to elsewhere."""
        if self.leads_outside(path, config):
            raise OutsideError(
                f"{path} leads to {os.path.realpath(path)}, outside of what is kept there: put the "
                "files themselves in the place of the link, or remove it"
            )
        return path

    def generations(self, config: str) -> Path:
        return self.config(config) / "generations"

    def generation(self, config: str, generation: int) -> Path:
        return self.generations(config) / generation_key(generation)

    def planned(self, config: str) -> list[int]:
        """Generations that have a plan, ascending. The log says, once a process, where one is gone."""
        folder = self.generations(config)
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for name in names:
            number = parse_generation(name)
            if number is None:
                continue
            if os.path.exists(os.path.join(folder, name, PLAN)):
                found.append(number)
            else:
                _tell_of_a_lost_plan(folder / name)
        return sorted(found)

    def plan(self, config: str, generation: int) -> Path:
        return self.generation(config, generation) / PLAN

    def kind(self, config: str, generation: int, kind: str) -> Path:
        return self.generation(config, generation) / check_name(kind, "artefact kind")

    def pointer(self, config: str, generation: int, kind: str) -> Path:
        return self.kind(config, generation, kind) / POINTER

    def champion(self, config: str) -> Path:
        return self.config(config) / "champion.json"

    def champions(self, config: str) -> Path:
        return self.config(config) / "champions.jsonl"

    def switches(self, config: str) -> Path:
        return self.config(config) / "switches.json"

    def quarantine(self, config: str) -> Path:
        return self.config(config) / "quarantine"

    def lock(self, config: str | None, name: str) -> Path:
        base = self.root if config is None else self.config(config)
        return self.inside(base / ".locks" / f"{check_name(name, 'lock name')}.lock", config)
