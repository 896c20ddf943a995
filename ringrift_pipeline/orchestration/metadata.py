"""What an asset shows in the UI: typed numbers under the field's names, a picture where there is
one, where the artefact lies.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster import MaterializeResult, MetadataValue

from ringrift_pipeline.orchestration.names import CHAMPION
from ringrift_pipeline.orchestration.places import game_address
from ringrift_pipeline.store import Artefact

MOST_NUMBERS = 15
MOST_PICTURE = 50_000  # characters of a data URI, or of a text: it lives in the event log
FULL = ".full"  # what a name ends in before its suffix where it is the whole of a small picture
IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}

# What is shown first, by asset, where a room measures more than fifteen things. The UI plots whatever
# an asset ever showed: what is not among fifteen such names must not take the place of one that a
# generation lacks.
FIRST: dict[str, tuple[str, ...]] = {
    "selfplay_shards": tuple(
        f"selfplay/{name}"
        for name in (
            "games",
            "positions",
            "games_per_s",
            "positions_per_s",
            "mean_plies",
            "draw_rate",
            "seat_1_share",
            "policy_entropy",
            "mean_decisions",
            "mean_legal_moves",
            "mean_surprise",
            "full_search_fraction",
            "distinct_games",
            "opponent_games",
            "win_rate_opponent",
        )
    ),
    "checkpoint": (
        "train/loss",
        "train/loss_policy",
        "train/loss_value",
        "val/loss",
        "val/loss_policy",
        "val/policy_accuracy",
        "val/loss_value",
        "val/value_brier",
        "val/gain",
        "train/steps",
        "train/reuse",
        "train/max_visits",
        "train/learning_rate",
        "train/rows_per_s",
        "train/seconds",
    ),
    "ema_model": (
        "val/loss",
        "val/loss_policy",
        "val/policy_accuracy",
        "val/loss_value",
        "val/value_brier",
        "val/loss_gain",
        "val/precision_policy_kl",
        "val/gain",
        "train/step",
    ),
    "calibration_report": tuple(
        f"val/{name}"
        for name in (
            "ece",
            "ece_low",
            "ece_high",
            "ece_before",
            "ece_after",
            "ece_after_low",
            "ece_after_high",
            "temperature",
            "log_loss_before",
            "log_loss_after",
            "brier_before",
            "brier_after",
            "holdout_games",
            "games_judged",
            "holdout_positions",
        )
    ),
    "evaluation": (
        "eval/elo",
        "eval/elo_low",
        "eval/elo_high",
        "eval/promote",
        "eval/sprt_llr",
        "eval/games",
        *(
            f"eval/win_rate_{opponent}{end}"
            for opponent in ("champion", "heuristic", "random")
            for end in ("", "_low", "_high")
        ),
    ),
    CHAMPION: (  # of its promotion, and of its gauntlets
        "eval/elo",
        "eval/elo_low",
        "eval/elo_high",
        "eval/sprt_llr",
        "eval/games",
        *(f"eval/win_rate_{baseline}" for baseline in ("random", "heuristic", "rollout")),
        *(f"eval/win_rate_predecessor_{place}" for place in range(1, 8)),
    ),
}


# What is shown as text, where an artefact says it.
TOLD = (
    "parent_config",
    "parent_generation",
    "parent_digest",
    "parent_note",
    "search_precision",
    "search_backend",
    "scored_with",
    "weights",
)


def numbers(metadata: Mapping[str, Any], first: tuple[str, ...] = ()) -> dict[str, float | int]:
    """The finite numbers of an artefact's metadata that have a group in their name
    (``train/loss_policy``): those of ``first``, then as many others, as the room wrote them, as
    make fifteen with all of ``first``.
    """
    found = {
        name: value
        for name, value in _flatten(metadata)
        if "/" in name and not isinstance(value, bool)
    }
    others = [name for name in found if name not in first][: max(0, MOST_NUMBERS - len(first))]
    chosen = [*(name for name in first if name in found), *others]
    return {name: _short(found[name]) for name in chosen}


def _short(value: float | int) -> float | int:
    """Six significant digits, as much as anybody reads; the artefact has them all."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _flatten(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int]]:
    for key, value in metadata.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield name, value


def picture(path: Path) -> MetadataValue:
    """A PNG or SVG as a data URI in Markdown, which the UI shows without any server; the path of
    one that is too large for that.
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    uri = f"data:{IMAGES[path.suffix]};base64,{data}"
    if len(uri) > MOST_PICTURE:
        return MetadataValue.path(path)
    return MetadataValue.md(f"![{path.stem}]({uri})")


def text(path: Path) -> MetadataValue:
    """A Markdown file as it is; the path of one that is too long for the event log."""
    said = path.read_text(encoding="utf-8")
    return MetadataValue.md(said) if len(said) <= MOST_PICTURE else MetadataValue.path(path)


def of_artefact(artefact: Artefact) -> dict[str, Any]:
    """Dagster metadata of an artefact: pictures, games, numbers, digest, path."""
    shown = for_people(artefact) | games_of(artefact)
    shown |= numbers(artefact.metadata, FIRST.get(artefact.kind, ()))
    if artefact.metadata.get("anomalies"):  # of a training: steps left out and undone
        lines = "\n".join(f"- {line}" for line in artefact.metadata["anomalies"])
        shown["anomalies"] = MetadataValue.md(lines)
    shown["digest"] = artefact.digest
    shown["path"] = MetadataValue.path(artefact.path)
    for name in TOLD:
        if artefact.metadata.get(name) is not None:
            shown[name] = str(artefact.metadata[name])  # a number would be plotted
    return shown


def games_of(artefact: Artefact) -> dict[str, Any]:
    """Addresses of the recorded games that an artefact points at, on the page of `ringrift play`."""
    return {
        f"replay: {what}": MetadataValue.url(game_address(game))
        for what, game in (artefact.metadata.get("replay") or {}).items()
    }


def for_people(artefact: Artefact) -> dict[str, Any]:
    """An artefact's pictures and Markdown files, by their names without the ending; where there is
    a whole picture beside a small one, its path, which a browser cannot open.
    """
    shown: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    for name in artefact.files:
        path = artefact.path / name
        if path.suffix in IMAGES and path.stem.endswith(FULL):
            small = path.stem.removesuffix(FULL)
            whole[f"{small}, whole (file on the server)"] = MetadataValue.path(path)
        elif path.suffix in IMAGES:
            shown[path.stem] = picture(artefact.file(name))
        elif name.endswith(".md"):
            shown[path.stem] = text(artefact.file(name))
    return shown | whole  # first what can be looked at


def materialized(artefact: Artefact, beside: Artefact | None = None) -> MaterializeResult:
    """What an asset returns: the artefact's metadata, its digest as the data version.

    ``beside``: made with it, shown with its pictures and texts.
    """
    from dagster import DataVersion

    shown = of_artefact(artefact)
    if beside is not None:
        path = {f"{beside.kind}_path": MetadataValue.path(beside.path)}
        shown = for_people(beside) | shown | path
    return MaterializeResult(metadata=shown, data_version=DataVersion(artefact.digest[:16]))
