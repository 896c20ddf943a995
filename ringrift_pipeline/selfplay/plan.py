"""The plan of a generation: written first, and all that later steps read.

A plan fixes everything a generation's result depends on: the resolved settings, who plays
(the champion, or the heuristic as long as there is none) and against whom, the model the
training starts from, the last ensemble, the earlier shards in the training window, the seed of
every shard, and one time stamp.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.selfplay.plan_form import check_form
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.store import Artefact, Store

PLAN_FORMAT = 1


class PlanError(ValueError):
    """A plan cannot be made, or one that was read cannot be used."""


@dataclass(frozen=True)
class Plan:
    """One generation's plan, a typed view of ``raw`` (the content of ``plan.json``).

    Attributes
    ----------
    config, generation:
        Which loop, and which turn of it.
    champion:
        ``{"generation", "digest", "path"}`` of the model that plays, None for the heuristic.
    parent:
        The same for the model that training starts from, None for fresh weights; with
        ``"config"`` where it is another config's (``finetune.source``).
    window:
        Earlier shards that training also reads: ``{"generation", "shard", "digest"}``; how many
        follows from the games played so far (:func:`windowing.window_games`).
    shards:
        This generation's shards: ``{"index", "games", "seed"}``, and ``"opponent"`` where some
        of the games are against an earlier model (see :func:`opponents.draw_opponents`).
    seed:
        Root seed of the generation; ``seed_for`` derives the seed of each step from it.
    created:
        ISO time stamp, UTC; freshness counts from here, never from the wall clock.
    ensemble:
        ``{"generation", "digest", "path"}`` of the last ensemble, None where there was none.
    finetune:
        For every generation of a config that began with another's model: ``{"source"}`` (that
        model: ``{"config", "generation", "digest", "path"}``), ``"generation"`` (which began with
        it) and ``"samples"`` (rows its Fisher information is measured on). Else None.
    precision:
        ``float32`` or ``bfloat16``, the arithmetic of the network in selfplay: what
        ``search.precision`` meant on the machine and device that the plan was made for, for the
        models that play.
    backend:
        ``torch`` or ``openvino``, likewise what ``search.backend`` meant there.
    played:
        Games that the earlier generations had played when this was planned, those included that
        were deleted since; None in plans of earlier versions.
    holdout:
        ``{"generation", "fraction"}``, ascending: of the games from that generation to the next
        entry's, the smallest share that a plan since has held out; None in plans of earlier
        versions. See :meth:`holdout_fraction`.
    device:
        Where the plan is carried out, if not where its settings say; not part of the plan.
    processes:
        Likewise, among how many processes its training is divided.
    """

    raw: dict[str, Any] = field(repr=False)
    config: str
    generation: int
    champion: dict[str, Any] | None
    parent: dict[str, Any] | None
    window: tuple[dict[str, Any], ...]
    shards: tuple[dict[str, Any], ...]
    seed: int
    created: str
    ensemble: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None
    precision: str = "float32"
    backend: str = "torch"
    played: int | None = None
    holdout: tuple[dict[str, Any], ...] | None = None
    device: str | None = None
    processes: int | None = None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Plan:
        """Check ``raw`` and wrap it; PlanError names what is missing or unknown."""
        if raw.get("format") != PLAN_FORMAT:
            raise PlanError(
                f"this plan has format {raw.get('format')!r}, this version reads {PLAN_FORMAT}: "
                "start a new generation, or use the version that wrote it"
            )
        wrong = check_form(raw)
        if wrong is not None:
            raise PlanError(f"plan.json: {wrong}")
        return cls(
            raw=raw,
            config=raw["config"],
            generation=int(raw["generation"]),
            champion=raw["champion"],
            parent=raw["parent"],
            window=tuple(raw["window"]),
            shards=tuple(raw["shards"]),
            seed=int(raw["seed"]),
            created=raw["created"],
            ensemble=raw.get("ensemble"),  # plans of earlier versions name none
            finetune=raw.get("finetune"),
            precision=raw.get("precision", "float32"),  # all that earlier versions knew
            backend=raw.get("backend", "torch"),
            played=raw.get("played"),
            holdout=None if raw.get("holdout") is None else tuple(raw["holdout"]),
        )

    @cached_property
    def settings(self) -> TrainingConfig:
        """The resolved settings this generation was planned with."""
        from ringrift_pipeline.enhancements.training_config import TrainingConfig

        settings = TrainingConfig.from_dict(self.raw["settings"])
        elsewhere = {"device": self.device, "training.processes": self.processes}
        said = {name: value for name, value in elsewhere.items() if value is not None}
        return settings.with_overrides(said) if said else settings

    def on_device(self, device: str) -> Plan:
        """The same plan, carried out on another device than it was made for."""
        return replace(self, device=device)

    def in_processes(self, processes: int) -> Plan:
        """The same plan, its training divided among another number of processes."""
        return replace(self, processes=processes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, in hexadecimal."""
        text = json.dumps(self.raw, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def games(self) -> int:
        """Games that this generation plays, over all its shards."""
        return sum(int(shard["games"]) for shard in self.shards)

    @property
    def created_at(self) -> datetime:
        """``created`` as an aware datetime."""
        return datetime.fromisoformat(self.created)

    def shard(self, index: int) -> dict[str, Any]:
        """Entry ``index`` of ``shards``; PlanError if the plan has no such shard."""
        if not 0 <= index < len(self.shards):
            raise PlanError(
                f"{self.config} generation {self.generation:04d} has shards 0 to "
                f"{len(self.shards) - 1}, not {index}"
            )
        return self.shards[index]

    def holdout_fraction(self, generation: int) -> float:
        """Share of a generation's games that the training window holds out: the smallest in force
        since they were played, for what a model was trained on cannot judge its successors.
        """
        fraction = self.settings.training.holdout_fraction
        if generation < self.generation:
            noted = [one for one in self.holdout or () if one["generation"] <= generation]
            fraction = min([fraction, *(one["fraction"] for one in noted[-1:])])
        return fraction

    def seed_for(self, step: str) -> int:
        """A seed of 63 bits for the named step, the same whenever it is asked for."""
        key = int.from_bytes(hashlib.sha256(step.encode()).digest()[:4], "big")
        sequence = np.random.SeedSequence(self.seed, spawn_key=(key,))
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def plan_generation(
    store: Store,
    config: str,
    generation: int,
    settings: TrainingConfig,
    now: datetime | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Plan:
    """Write the plan of a generation and return it; a plan already there is returned as it is.

    The champion of the moment plays (one before it, where its files are damaged: the store's
    `serving_champion`); while there is none, the heuristic does. Training starts
    from the newest earlier generation's EMA model, promoted or not, so that gains too small for
    the gate add up; but from the champion, if that model was found worse beyond doubt or was never
    evaluated: broken or old weights are not handed on. In ``selfplay.opponent_fraction`` of the games the
    champion meets an earlier model of the last ensemble, where that has one besides it.

    Where there is no earlier model of this config, ``finetune.source`` may name another config's;
    once a config has a model of its own, that setting changes nothing.

    Damaged shards of the window are played again, which takes time: ``progress`` is told then.

    Raises
    ------
    Interrupted
        if ``should_stop`` says so while shards are played again.
    CorruptArtefactError, MissingArtefactError
        if the champion's files are damaged or gone, and those of every one before it.
    PlanError
        if the generation is negative or a setting cannot be planned with: ``finetune.source``
        names a model that is not there, or one of another geometry or network shape;
        ``search.backend`` is not installed here, or cannot run on ``device``.
    ValueError
        if the config is unknown (the message lists the known ones).
    """
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import MissingBackendError, resolve_backend, resolve_precision
    from ringrift_pipeline.selfplay.opponents import draw_opponents, newest_ensemble
    from ringrift_pipeline.selfplay.windowing import window_of

    players = get_rules(config).players
    if generation < 0:
        raise PlanError(f"generations count from 0, not {generation}")
    existing = _existing(store, config, generation)
    if existing is not None:
        return existing
    try:
        backend = resolve_backend(settings.search.backend, settings.device)
    except (MissingBackendError, ValueError) as error:
        raise PlanError(f"search.backend or device: {error}") from error
    root = np.random.SeedSequence(settings.seed, spawn_key=(_key(config), generation))
    seed = _state(root)
    sizes = _shard_sizes(settings.effective_games, settings.selfplay.games_per_shard)
    champion = _champion(store, config)
    ensemble = newest_ensemble(store, config, generation)
    opponents: list[dict[str, Any] | None] = [None] * len(sizes)
    if champion is not None and ensemble is not None:
        opponents = draw_opponents(
            store,
            ensemble,
            champion,
            sizes,
            fraction=settings.selfplay.opponent_fraction,
            players=players,
            generator=np.random.default_rng(
                np.random.SeedSequence(seed, spawn_key=(_key("opponents"),))
            ),
        )
    paths = {model["path"] for model in (champion, *opponents) if model is not None}
    playing = [store.open(store.root / path, verify=False).metadata for path in sorted(paths)]
    parent = _parent(store, config, generation, champion)
    window, played, holdout = window_of(
        store, config, generation, sum(sizes), settings, Reporter(progress, should_stop)
    )
    finetune = _finetune(store, config, generation, settings, parent)
    if parent is None and finetune is not None:
        parent = finetune["source"]
    raw = {
        "format": PLAN_FORMAT,
        "config": config,
        "generation": generation,
        "created": (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "champion": champion,
        "parent": parent,
        "window": window,
        "played": played,
        "holdout": holdout,
        "ensemble": ensemble
        and _reference(store, ensemble.generation, ensemble.digest, ensemble.path),
        "shards": [
            {"index": index, "games": games, "seed": _state(child)}
            | ({"opponent": opponent} if opponent else {})
            for index, (games, child, opponent) in enumerate(
                zip(sizes, np.random.SeedSequence(seed).spawn(len(sizes)), opponents, strict=True)
            )
        ],
        "precision": resolve_precision(settings.search.precision, settings.device, playing),
        "backend": backend,
        "settings": settings.to_dict(),
    }
    if finetune is not None:
        raw["finetune"] = finetune
    return Plan.from_dict(store.write_plan(config, generation, raw))


def load_plan(store: Store, config: str, generation: int) -> Plan:
    """Read a generation's plan; the store's MissingArtefactError if there is none."""
    return Plan.from_dict(store.read_plan(config, generation))


def open_model(store: Store, reference: dict[str, Any]) -> Artefact:
    """The verified artefact behind a plan's ``champion``, ``parent``, … entry.

    Raises
    ------
    PlanError
        if the artefact is no longer the one the plan was made with.
    """
    artefact = store.open(Path(store.root) / reference["path"], verify=True)
    if artefact.digest != reference["digest"]:
        raise PlanError(
            f"the plan names model {reference['digest'][:12]} of generation "
            f"{reference['generation']:04d}, but {reference['path']} holds "
            f"{artefact.digest[:12]}: restore that folder, or start a new generation"
        )
    return artefact


def _existing(store: Store, config: str, generation: int) -> Plan | None:
    if generation not in store.generations(config):
        return None
    return load_plan(store, config, generation)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _state(sequence: np.random.SeedSequence) -> int:
    # 53 bits: exact in every JSON reader, the browser's included.
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(11))


def _shard_sizes(games: int, per_shard: int) -> list[int]:
    full, rest = divmod(games, per_shard)
    return [per_shard] * full + ([rest] if rest else [])


def _reference(store: Store, generation: int, digest: str, path: Path) -> dict[str, Any]:
    relative = Path(path).resolve().relative_to(Path(store.root).resolve())
    return {"generation": generation, "digest": digest, "path": relative.as_posix()}


def _champion(store: Store, config: str) -> dict[str, Any] | None:
    from ringrift_pipeline.store import serving_champion

    champion = serving_champion(store, config)
    if champion is None:
        return None
    return _reference(store, champion.generation, champion.digest, champion.path)


def _parent(
    store: Store, config: str, generation: int, champion: dict[str, Any] | None
) -> dict[str, Any] | None:
    for earlier in sorted(store.generations(config), reverse=True):
        if earlier >= generation:
            continue
        model = store.last_good(config, earlier, "ema_model")
        if model is not None:
            if champion is not None and not _is_handed_on(store, model):
                return champion
            return _reference(store, earlier, model.digest, model.path)
    return None


def _is_handed_on(store: Store, model: Artefact) -> bool:
    """Whether the model was evaluated, and nothing says beyond doubt that it wins less than its
    share against the champion of its day or a baseline that the gate required it to hold.

    One that a blocking check kept from being evaluated is not.
    """
    from ringrift_pipeline.selfplay.evaluated import evaluation_of

    found = evaluation_of(store, model)
    if found is None:
        return False
    _, report = found
    floors = report.get("gate", {}).get("floors", ())
    required = {floor["baseline"] for floor in floors if floor["required"]}
    required |= {(report.get("champion") or {}).get("name")}
    return not any(
        match["high"] < match["even"]
        for match in report.get("matches", ())
        if match["opponent"] in required
    )


def _finetune(
    store: Store,
    config: str,
    generation: int,
    settings: TrainingConfig,
    parent: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """The plan's ``finetune`` entry: the first generation's, as long as its weights live on."""
    from ringrift_pipeline.selfplay.finetuning import source_model

    if parent is not None:
        return load_plan(store, config, parent["generation"]).finetune
    if not settings.finetune.source:
        return None
    source = source_model(store, config, settings)
    return {
        "source": {
            "config": source.config,
            **_reference(store, source.generation, source.digest, source.path),
        },
        "generation": generation,
        "samples": settings.finetune.ewc_samples,
    }
