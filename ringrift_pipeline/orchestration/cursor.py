"""What ``evaluation_landed`` remembers from one tick to the next, as JSON.

For each config the storage id of the last evaluation handled. Under ``held`` that of an evaluation
which waits for its config to be resumed; it has been promoted already, if the gate said so. Under
``failed`` an evaluation that was decided because a blocking check had failed: it is looked at again
once something was run for its generation since. Earlier versions had no ``failed``: what they stopped
at is found by its decision. ``offered`` are the configs whose generations were once made launchable.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ringrift_pipeline.orchestration.configs import CONFIGS

HELD, FAILED, OFFERED = "held", "failed", "offered"


@dataclass(frozen=True)
class Stopped:
    """An evaluation that failed its checks. ``run``: the newest run of its generation, if that was
    over when the checks were looked at.
    """

    storage_id: int
    generation: int
    run: str | None


@dataclass
class Cursor:
    """By config; see the module. ``earlier``: it was written by a version without ``failed``."""

    handled: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    failed: dict[str, Stopped] = field(default_factory=dict)
    offered: set[str] = field(default_factory=set)
    earlier: bool = False

    @property
    def text(self) -> str:
        """As the next tick gets it."""
        held = {HELD: self.held} if self.held else {}
        failed = {config: asdict(stopped) for config, stopped in self.failed.items()}
        offered = {OFFERED: sorted(self.offered)} if self.offered else {}
        return json.dumps({**self.handled, **held, FAILED: failed, **offered}, sort_keys=True)

    def stop(self, config: str, stopped: Stopped) -> None:
        """Remember an evaluation that failed; of a config's, that of the newest generation."""
        known = self.failed.get(config)
        if known is None or known.generation <= stopped.generation:
            self.failed[config] = stopped

    def go_back(self, newest: int) -> None:
        """Begin no later than behind the log's newest event. Where later ones were deleted, SQLite gives
        their ids out again.
        """
        self.handled = {config: min(known, newest) for config, known in self.handled.items()}
        self.held = {config: known for config, known in self.held.items() if known <= newest}
        self.failed = {
            config: stopped
            for config, stopped in self.failed.items()
            if stopped.storage_id <= newest
        }

    def go_on(self, config: str, generation: int) -> None:
        """A generation passed its checks: it and those before it need not be looked at again."""
        known = self.failed.get(config)
        if known is not None and known.generation <= generation:
            del self.failed[config]


def read_cursor(text: str | None) -> Cursor:
    """The cursor's JSON, also of earlier versions; unknown configs are dropped, nonsense starts
    over (run keys and the decisions protect).
    """
    try:
        loaded = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        loaded = {}
    if not isinstance(loaded, dict):
        loaded = {}
    failed = {config: _stopped(value) for config, value in _by_config(loaded.get(FAILED)).items()}
    return Cursor(
        handled=_storage_ids(loaded),
        held=_storage_ids(loaded.get(HELD)),
        failed={config: stopped for config, stopped in failed.items() if stopped is not None},
        offered=_configs(loaded.get(OFFERED)),
        earlier=bool(loaded) and FAILED not in loaded,
    )


def _by_config(loaded: Any) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        return {}
    return {config: loaded[config] for config in CONFIGS if config in loaded}


def _configs(loaded: Any) -> set[str]:
    return {config for config in CONFIGS if isinstance(loaded, list) and config in loaded}


def _storage_ids(loaded: Any) -> dict[str, int]:
    """What may be storage ids, by config."""
    return {config: value for config, value in _by_config(loaded).items() if _is_number(value)}


def _stopped(value: Any) -> Stopped | None:
    try:
        stopped = Stopped(value["storage_id"], value["generation"], value["run"])
    except (TypeError, KeyError):
        return None
    sound = _is_number(stopped.storage_id) and _is_number(stopped.generation)
    return stopped if sound and isinstance(stopped.run, str | None) else None


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0
