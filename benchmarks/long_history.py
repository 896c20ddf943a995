"""A history of many generations, made by the store and by Dagster's own instance for
``many_generations.py``: small in content, but with the names, numbers, reports, games and pictures
that the rooms give it.
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from bulk_storage import Bulk

from ringrift_pipeline.orchestration.names import ASSETS

PROMOTED = 10  # one generation in so many is
LISTED = 200  # generations from one rating list to the next, while the history is made
SHARDS, GAMES = 2, 512  # of a generation
SETS = 12  # of games of a match in an evaluation
PICTURES = {
    "selfplay_shards": "entropy.png",
    "quality_scores": "scores.png",
    "hard_examples": "gallery.svg",
    "checkpoint": "loss.png",
    "calibration_report": "reliability.png",
}
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
EACH = timedelta(minutes=5)


# --- a history ----------------------------------------------------------------------------------


class History:
    """A data root whose history of one config grows."""

    def __init__(self, root: Path, config: str) -> None:
        from ringrift_pipeline.store import Store

        self.root, self.config, self.store = root, config, Store(root)
        self.random = np.random.default_rng(1)
        self.size = 0
        self.champion: Any = None
        self.models: dict[int, Any] = {}
        self.run: Any = None
        self.evaluated: dict[int, int] = {}  # storage id of a generation's evaluation

    @cached_property
    def settings(self) -> Any:
        from ringrift_pipeline.enhancements import TrainingConfig

        changed = {"selfplay.games": GAMES, "selfplay.games_per_shard": GAMES // SHARDS}
        return TrainingConfig.preset("smoke").with_overrides(changed | {"device": "cpu"})

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The first generation's plan, which the others are like."""
        from ringrift_pipeline.selfplay import plan_generation

        return plan_generation(self.store, self.config, 0, self.settings, BEGINNING).raw

    def grow(self, size: int) -> None:
        """Add generations until there are so many; the newest is left undecided."""
        from ringrift_pipeline.evaluation.rating_list import rate_all
        from ringrift_pipeline.orchestration.instance import open_instance

        fsync, os.fsync = os.fsync, lambda _: None
        try:
            with open_instance(self.root) as instance:
                self._first_run(instance)
                with Bulk(instance) as bulk:
                    while self.size < size:
                        number = self.size
                        made = self._artefacts(number)
                        made["rating_list"] = None
                        if number % LISTED == LISTED - 1:
                            made["rating_list"] = rate_all(self.store, self.config, number)
                        self._events(instance, bulk, number, made)
                        self.size += 1
                        if self.size < size:
                            self._decide(number)
                        if number % 25 == 0:
                            bulk.commit()
        finally:
            os.fsync = fsync

    # -- in the store

    def _land(self, number: int, kind: str, about: dict[str, Any], **files: Any) -> Any:
        with self.store.create(self.config, number, kind, about) as draft:
            for name, content in files.items():
                if not name:  # several files, which it names itself
                    content(draft)
                    continue
                path = draft / name.replace("__", ".")
                if callable(content):
                    content(path)
                elif isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    path.write_text(json.dumps(content))
            if kind in PICTURES:
                size = int(self.random.integers(6_000, 30_000))
                (draft / PICTURES[kind]).write_bytes(self.random.bytes(size))
        return draft.artefact

    def _artefacts(self, number: int) -> dict[str, Any]:
        """Everything of a generation but its decision; the artefacts that assets report."""
        from ringrift_pipeline.orchestration.metadata import FIRST
        from ringrift_pipeline.selfplay.plan import Plan

        plan = self._write_plan(number)
        digest = Plan.from_dict(plan).digest
        for shard in plan["shards"]:
            about = {"plan": digest, "games": shard["games"], "positions": 60 * shard["games"]}
            kind = f"selfplay-shard-{shard['index']:04d}"
            self._land(number, kind, about, shard__arrow=f"{number}/{kind}".encode())
        numbers = self.random.random(40).round(6).tolist()
        names = {
            "quality_scores": [f"selfplay/quality_{n}" for n in ("mean", "min", "max")],
            "hard_examples": [f"train/hardness_{n}" for n in ("mean", "p90", "max")],
            "ema_model": ["train/average_gain", "val/loss"],
            "ensemble": ["val/ensemble_gain"],
            "calibration_report": ["val/ece_before", "val/ece_after", "val/temperature"],
            **FIRST,
        }
        made: dict[str, Any] = {}
        for kind in ASSETS:
            about: dict[str, Any] = dict(zip(names.get(kind, ()), numbers, strict=False))
            files: dict[str, Any] = {"data__bin": f"{kind}/{number}".encode()}
            if kind == "selfplay_shards":
                about |= {"selfplay/games": GAMES, "selfplay/player": "network", "plan": digest}
                figure = {"value": 100.0 + numbers[0], "error": 1.0}
                about["measures"] = {"plies": figure, "policy_entropy": figure}
                files = {"shards__json": [], "summary__json": {"games": GAMES}}
            elif kind == "ema_model":
                files = {"": self._save_model}
            elif kind == "ensemble":
                files = {"members__json": self._members(number)}
            elif kind == "evaluation":
                about, files = self._evaluation(number)
            made[kind] = self._land(number, kind, about, **files)
            if kind == "ema_model":
                self.models[number] = made[kind]
                self.models.pop(number - 100, None)
        return made

    @cached_property
    def _network(self) -> Any:
        from ringrift_pipeline.game import get_rules
        from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork

        rules = get_rules(self.config)
        return RingRiftNetwork(NetworkConfig(1, 4, 4, rules.geometry, rules.players), seed=1)

    def _save_model(self, folder: Path) -> None:
        """A network that is like no other generation's."""
        from ringrift_pipeline.network import save_model

        next(self._network.parameters()).data += 1e-3
        save_model(folder, self._network, {})

    def _write_plan(self, number: int) -> dict[str, Any]:
        when = (BEGINNING + number * EACH).isoformat()
        plan = {**self.plan, "generation": number, "created": when, "played": GAMES * number}
        plan["seed"] = int(self.random.integers(1 << 50))
        plan["shards"] = [{**one, "seed": plan["seed"] + one["index"]} for one in plan["shards"]]
        plan["champion"] = self.champion
        parent = self.models.get(number - 1)
        plan["parent"] = parent and self._named(parent)
        plan["window"] = [
            {"generation": earlier, "shard": index, "digest": secrets.token_hex(32)}
            for earlier in range(max(0, number - 8), number)
            for index in range(SHARDS)
        ]
        return self.store.write_plan(self.config, number, plan)

    def _named(self, artefact: Any) -> dict[str, Any]:
        path = artefact.path.relative_to(self.root).as_posix()
        return {"generation": artefact.generation, "digest": artefact.digest, "path": path}

    def _members(self, number: int) -> list[dict[str, Any]]:
        newest = [one for one in sorted(self.models) if one > number - 4]
        return [
            {"name": f"ema-{one:04d}", "kind": "ema_model", "weight": 1.0}
            | self._named(self.models[one])
            for one in newest
        ]

    def _evaluation(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metadata and files of an evaluation: games whose winners chance picks."""
        import polars as pl

        from ringrift_pipeline.evaluation.matches import GAMES_SCHEMA, OPENING_DECISIONS

        model, name = self.models[number], f"generation:{number:04d}"
        others = {"random": 0.97, "heuristic": 0.75}
        artefacts = [[number, "ema_model", model.digest]]
        if self.champion is not None:
            others[f"generation:{self.champion['generation']:04d}"] = 0.52
            artefacts.append([self.champion["generation"], "ema_model", self.champion["digest"]])
        rows = []
        for other, chance in others.items():
            for game in range(2 * SETS):
                won = bool(self.random.random() < chance)
                turn = game % 2
                players = [name, other] if turn == 0 else [other, name]
                ranks = [0, 1] if won == (turn == 0) else [1, 0]
                row = {"match": other, "set": game // 2, "rotation": turn, "players": players}
                row |= {"ranks": ranks, "shares": [float(1 - rank) for rank in ranks]}
                row |= {"winner": ranks.index(0) + 1, "plies": 60, "decisions": 50, "reason": 1}
                rows.append(row | {"opening": [1, 2, 3]})
        games = pl.DataFrame(rows, schema=GAMES_SCHEMA)
        promote = number % PROMOTED == 0
        elo = 1300.0 + 100.0 * float(np.log1p(number)) + float(self.random.normal(0, 15))
        rating = {"rating": elo, "low": elo - 60, "high": elo + 60}
        report = {
            "config": self.config,
            "generation": number,
            "candidate": {"name": name, "generation": number, "digest": model.digest},
            "champion": self.champion,
            "simulations": self.settings.evaluation.simulations,
            "opening_decisions": OPENING_DECISIONS,
            "confidence": self.settings.evaluation.confidence,
            "games": games.height,
            "matches": [
                {"opponent": other, "games": 2 * SETS, "sets": SETS, "win_rate": chance}
                | {"low": chance - 0.1, "high": chance + 0.1, "even": 0.5, "mean_plies": 60.0}
                for other, chance in others.items()
            ],
            "ratings": {name: rating},
            "gate": {"promote": promote, "reasons": ["as chance would have it"], "floors": []},
        }
        about = {"eval/elo": elo, "eval/elo_low": elo - 60, "eval/elo_high": elo + 60}
        about |= {"eval/games": games.height, "promote": promote, "reasons": ["chance"]}
        about |= {f"eval/win_rate_{other}": chance for other, chance in others.items()}
        about["inputs"] = {"artefacts": artefacts}
        return about, {"report__json": report, "games__parquet": games.write_parquet}

    def _decide(self, number: int) -> None:
        """What the sensor does of an evaluation."""
        promoted = number % PROMOTED == 0
        if promoted:
            model = self.models[number]
            self.store.promote(self.config, number, model, {"gate": {"promote": True}})
            self.champion = self._named(model)
        decision = {"promoted": promoted, "reasons": ["chance"], "next": number + 1, "end": None}
        decision |= {"last_generation": None, "feedback": None, "run": self.run.run_id}
        self._land(number, "decision", decision | {"storage_id": self.evaluated[number]})

    def decided(self) -> None:
        """The sensor has decided on the newest generation meanwhile."""
        if (self.size - 1) % PROMOTED == 0:
            self.champion = self._named(self.models[self.size - 1])

    # -- in Dagster

    def _first_run(self, instance: Any) -> None:
        """A run of the generation's job as `submit_generation` makes it; the others are like it."""
        from ringrift_pipeline.orchestration.settings import run_config
        from ringrift_pipeline.orchestration.submit import submit_generation

        if self.run is not None:
            return
        told = run_config(self.settings)
        run = instance.get_run_by_id(submit_generation(instance, self.config, 0, told))
        instance.delete_run(run.run_id)
        self.run = run

    def _events(self, instance: Any, bulk: Bulk, number: int, made: dict[str, Any]) -> None:
        """The run of a generation, from its creation to its end."""
        from dagster import AssetCheckEvaluation, AssetMaterialization
        from dagster import DagsterEventType as Kind
        from dagster._core.definitions.asset_checks.asset_check_evaluation import (
            AssetCheckEvaluationTargetMaterializationData,
        )
        from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG
        from dagster._core.events import (
            AssetMaterializationPlannedData,
            DagsterEvent,
            EngineEventData,
            StepMaterializationData,
            StepSuccessData,
        )
        from dagster._core.storage.dagster_run import DagsterRunStatus
        from dagster._core.utils import make_new_run_id
        from dagster_shared.record import copy

        from ringrift_pipeline.orchestration import names
        from ringrift_pipeline.orchestration.checks import CHECKS
        from ringrift_pipeline.orchestration.metadata import materialized
        from ringrift_pipeline.orchestration.step import BEGAN, SECONDS

        key = names.generation_key(number)
        clock = (BEGINNING + number * EACH).timestamp()
        tags = {**self.run.tags, names.PARTITION_TAG: key}
        run = copy(
            self.run, run_id=make_new_run_id(), tags=tags, status=DagsterRunStatus.NOT_STARTED
        )
        self.run = run
        instance.run_storage.add_run(run)
        if not instance.has_dynamic_partition(names.partitions_name(self.config), key):
            instance.add_dynamic_partitions(names.partitions_name(self.config), [key])

        def tell(kind: Kind, data: Any = None, step: str | None = None, message: str = "") -> None:
            event = DagsterEvent(
                kind.value, run.job_name, event_specific_data=data, step_key=step, message=message
            )
            instance.report_dagster_event(event, run.run_id, timestamp=clock)

        for kind in (Kind.PIPELINE_ENQUEUED, Kind.PIPELINE_STARTING, Kind.PIPELINE_START):
            tell(kind)
        for name in ASSETS:
            planned = AssetMaterializationPlannedData(names.asset_key(self.config, name), key)
            tell(Kind.ASSET_MATERIALIZATION_PLANNED, planned, names.node_name(self.config, name))
        for name in ASSETS:
            step = names.node_name(self.config, name)
            clock += EACH.total_seconds() / 10
            tell(Kind.STEP_START, step=step)
            result = materialized(made[name], made["rating_list"] if name == "evaluation" else None)
            version = made[name].digest[:16]
            told = AssetMaterialization(
                names.asset_key(self.config, name),
                metadata=result.metadata,
                partition=key,
                tags={DATA_VERSION_TAG: version, CODE_VERSION_TAG: "1"},
            )
            tell(Kind.ASSET_MATERIALIZATION, StepMaterializationData(told, []), step)
            landed = bulk.newest()
            if name == "evaluation":
                self.evaluated = {number: landed}
            target = AssetCheckEvaluationTargetMaterializationData(
                storage_id=landed, run_id=run.run_id, timestamp=clock
            )
            for check in CHECKS:
                if check.asset == name:
                    judged = AssetCheckEvaluation(
                        names.asset_key(self.config, name),
                        check.name,
                        True,
                        {"rows": 1000, "val/share": 0.5, "eval/llr": 1.5},
                        target,
                        description="as it should be",
                        blocking=check.blocking,
                        partition=key,
                    )
                    tell(Kind.ASSET_CHECK_EVALUATION, judged, step)
            work = EngineEventData({BEGAN: clock, SECONDS: 20.0})
            tell(Kind.ENGINE_EVENT, work, step, "The step's own work took 20.0 s.")
            tell(Kind.STEP_SUCCESS, StepSuccessData(20_000.0), step)
        tell(Kind.PIPELINE_SUCCESS)
