"""The last ensemble at work: whom the champion meets in selfplay, and who is asked for doubt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.store.errors import CorruptArtefactError, MissingArtefactError
from ringrift_pipeline.store.kinds import (
    EMA_MODEL,
    ENSEMBLE,
    ENSEMBLE_MEMBERS,
    EVALUATION,
    EVALUATION_FILE,
)
from ringrift_pipeline.store.manifest import ManifestMismatch, relative_path, require_fields

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store


@dataclass(frozen=True)
class Member:
    """A model of an ensemble: its verified artefact, and what the ensemble says of it."""

    name: str
    weight: float
    artefact: Artefact


def newest_ensemble(store: Store, config: str, generation: int) -> Artefact | None:
    """The ensemble of the newest generation before ``generation`` that has one that verifies."""
    for earlier in sorted(store.generations(config), reverse=True):
        if earlier >= generation:
            continue
        try:
            found = store.current(config, earlier, ENSEMBLE)
        except CorruptArtefactError:
            continue
        if found is not None:
            return found
    return None


def listed_members(ensemble: Artefact) -> list[dict[str, Any]]:
    """What an ensemble says of its members: ``name``, ``path`` below the data root, ``digest`` and
    ``weight``. Raises CorruptArtefactError where it says something else.
    """
    found = ensemble.read_json(ENSEMBLE_MEMBERS)
    try:
        if not isinstance(found, list):
            raise ManifestMismatch(f"it cannot be a {type(found).__name__}")
        for entry in found:
            if not isinstance(entry, dict):
                raise ManifestMismatch(f"a member cannot be a {type(entry).__name__}")
            require_fields(entry, name=str, path=str, digest=str, weight=(int, float))
            relative_path(entry["path"])
            if not math.isfinite(entry["weight"]):
                raise ManifestMismatch(f"a member cannot have the weight {entry['weight']}")
    except (ManifestMismatch, OverflowError) as error:
        raise CorruptArtefactError(
            ensemble.path / ENSEMBLE_MEMBERS, str(error), "remove the ensemble and make it again"
        ) from None
    return found


def ensemble_members(store: Store, ensemble: Artefact) -> list[Member]:
    """Members of positive weight whose models are still there and verify, in the listed order.
    Raises CorruptArtefactError as `listed_members`.
    """
    members = []
    for entry in listed_members(ensemble):
        try:
            artefact = store.open(Path(store.root) / entry["path"])
        except (CorruptArtefactError, MissingArtefactError):
            continue  # an ensemble does without a member
        if artefact.digest == entry["digest"] and entry["weight"] > 0.0:
            members.append(Member(entry["name"], float(entry["weight"]), artefact))
    return members


def draw_opponents(
    store: Store,
    ensemble: Artefact,
    champion: dict[str, Any],
    sizes: Sequence[int],
    *,
    fraction: float,
    players: int,
    generator: np.random.Generator,
) -> list[dict[str, Any] | None]:
    """Whom the champion meets in each shard, None for nobody.

    Candidates are the averaged models of ``ensemble`` other than the champion. Each shard draws
    one by ``ModelEnsemble.sample_model``: by prioritised fictitious self-play (Vinyals et al.
    2019, "hard": those the champion loses to come more often) where the store's evaluations tell
    how the champion did against one of them, else by weight.

    Parameters
    ----------
    champion:
        The plan's reference.
    sizes:
        Games of every shard.
    fraction:
        Share of all games, in [0, 1]; rounded over all shards, not in each.
    generator:
        Source of the draws, one a shard that has such games.

    Returns
    -------
    list
        A shard's ``{"name", "generation", "digest", "path", "games", "first_seat"}``: its games
        0 to ``games`` - 1 are against that model, and the champion sits on seat
        ``(first_seat + game) % players`` (from 0). Seats rotate on from shard to shard.
    """
    members = [
        member
        for member in ensemble_members(store, ensemble)
        if member.artefact.kind == EMA_MODEL and member.artefact.digest != champion["digest"]
    ]
    games = [
        math.floor(fraction * (before + size) + 0.5) - math.floor(fraction * before + 0.5)
        for before, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)
    ]
    if not members or not any(games):
        return [None] * len(sizes)
    pool, mode = _pool(
        store, ensemble, members, champion["digest"], champion["generation"], players
    )
    by_name = {member.name: member.artefact for member in members}
    entries: list[dict[str, Any] | None] = []
    met = 0
    for count in games:
        if not count:
            entries.append(None)
            continue
        _, name = pool.sample_model(generator, mode=mode)
        model = by_name[name]
        entries.append(
            {
                "name": name,
                "generation": model.generation,
                "digest": model.digest,
                "path": model.path.relative_to(Path(store.root).resolve()).as_posix(),
                "games": count,
                "first_seat": met % players,
            }
        )
        met += count
    return entries


def _pool(
    store: Store,
    ensemble: Artefact,
    members: list[Member],
    champion: str,
    generation: int,
    players: int,
) -> tuple[Any, Any]:
    """The members as a ``ModelEnsemble`` that knows the results of the champion, which is of
    ``generation``, and how to draw.
    """
    from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
    from ringrift_pipeline.network import load_model

    pool = ModelEnsemble(value_kind="logits")
    # one of the two was the candidate of the evaluation in which they met
    asked = {member.artefact.generation for member in members} | {generation}
    asked = {number for number in asked if number <= ensemble.generation}
    known = results_of(store, ensemble.config, asked, champion, players)
    for member in members:
        pool.add_model(load_model(member.artefact.path), member.weight, member.name)
        if member.artefact.digest in known:
            pool.record_result(member.name, *known[member.artefact.digest])
    return pool, "pfsp" if {m.artefact.digest for m in members} & set(known) else "weight"


def results_of(
    store: Store, config: str, generations: Iterable[int], champion: str, players: int
) -> dict[str, tuple[float, float]]:
    """The champion's (points, games) against other models, by their digest.

    Read from the evaluations of ``generations``, where it was the candidate or met one. There one
    model holds one seat against the other in all the rest; a share w of the win is turned into
    the points of a game between two: w (n - 1) / (w (n - 1) + 1 - w) for n players (Luce's
    choice axiom: what strengths a and b = 1 - a with a / (a + (n - 1) b) = w make of it).
    """
    results: dict[str, tuple[float, float]] = {}
    for generation in sorted(generations):
        try:
            evaluation = store.current(config, generation, EVALUATION)
        except CorruptArtefactError:
            continue
        if evaluation is None:
            continue
        report = evaluation.read_json(EVALUATION_FILE)
        models = {
            f"generation:{number:04d}": digest
            for number, kind, digest in evaluation.metadata.get("inputs", {}).get("artefacts", [])
            if kind == EMA_MODEL
        }
        candidate = report["candidate"]["digest"]
        for match in report.get("matches", []):
            other = models.get(match["opponent"])
            if other is None or champion not in (candidate, other):
                continue
            share = float(match["win_rate"]) * (players - 1)
            points = share / (share + 1.0 - float(match["win_rate"]))
            met = other
            if champion == other:
                met, points = candidate, 1.0 - points
            before = results.get(met, (0.0, 0.0))
            games = float(match["games"])
            results[met] = (before[0] + points * games, before[1] + games)
    return results
