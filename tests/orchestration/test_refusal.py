"""Nothing gets worse: broken and old weights take the candidate's place in the real pipeline.

A small loop of real generations, each run as the sensor asks for it: a barely trained model becomes
champion by the floor, a trained one beats it, then weights with noise and the first model's old
weights are landed as the next two candidates. What the gate asks for is the default; the check of the
calibration is looser, for it would stop the noised weights before they came to the gate.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetCheckKey, AssetKey, DagsterInstance

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.settings import run_values
from ringrift_pipeline.selfplay import load_plan, plan_generation
from ringrift_pipeline.store import Store

from .test_sensor import tick

pytestmark = pytest.mark.whole

CONFIG = "square8_2p"
SETTINGS = {
    "preset": "smoke",
    "device": "cpu",
    "seed": 6,
    "selfplay": {
        "games": 96,
        "games_per_shard": 48,
        "workers": 1,
        "full_search_fraction": 1.0,
    },
    "search": {"simulations": 4, "cheap_simulations": 2, "precision": "float32"},
    "network": {"blocks": 1, "channels": 16, "value_channels": 8},
    "training": {"max_steps": 8, "batch_size": 64, "holdout_fraction": 0.2, "threads": 1},
    "optimizer": {"learning_rate": 5e-3},
    "schedule": {"warmup_steps": 2},
    "averaging": {"enabled": True, "decay_half_life_samples": 500.0},
    "calibration": {"bins": 3, "bootstrap": 20, "min_games": 2},
    "evaluation": {
        "games": 64,
        "max_games": 240,
        "simulations": 4,
        "anchor_games": 4,
        "opponents": ["random", "champion"],
        "elo0": 0.0,
        "elo1": 35.0,
        "alpha": 0.05,
        "beta": 0.05,
    },
    "feedback": {"enabled": False},
}
BEFORE = names.ASSETS[: names.ASSETS.index("ema_model") + 1]
AFTER = names.ASSETS[len(BEFORE) :]

Change = Callable[[Store, Path], object]


class SmallLoop:
    """Runs what the sensor asks for, in this process."""

    def __init__(self, data: Path, instance: DagsterInstance) -> None:
        self.store, self.instance = Store(data), instance
        self.cursor: str | None = None
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])

    def run(self, generation: int, values: dict[str, Any], landed: Change | None = None) -> Any:
        """A generation; ``landed`` changes the candidate's folder before it is judged."""
        job = defs.get_repository_def().get_job(names.job_name(CONFIG))

        def execute(assets: tuple[str, ...]) -> None:
            result = job.execute_in_process(
                run_config={"resources": {"settings": {"config": values}}},
                partition_key=names.generation_key(generation),
                instance=self.instance,
                asset_selection=[names.asset_key(CONFIG, name) for name in assets],
                raise_on_error=True,
            )
            assert result.success

        execute(BEFORE)
        if landed is not None:
            self.land(generation, landed)
        execute(AFTER)
        ticked = tick(self.instance, self.cursor)
        self.cursor = ticked.cursor
        return ticked

    def land(self, generation: int, change: Change) -> None:
        """A faulty step: other weights under the candidate's name."""
        old = self.store.require(CONFIG, generation, "ema_model")
        with self.store.create(CONFIG, generation, "ema_model", old.metadata) as draft:
            for name in old.files:
                shutil.copyfile(old.file(name), draft / name)
            change(self.store, draft.path)

    def told(self) -> list[Any]:
        """What the UI shows of the check that tells of the gate, newest first."""
        key = AssetCheckKey(AssetKey([CONFIG, "evaluation"]), "gate_passed")
        records = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=9)
        return [record.event.asset_check_evaluation for record in records if record.event]


def noised(store: Store, folder: Path) -> None:
    """The champion's weights, those of its policy with noise twice as large as they are, as files
    that verify. Its values are left alone: with noise they are not calibrated either, which
    `calibration_sound` sees before anybody plays.
    """
    import torch

    from ringrift_pipeline.network import load_model, save_model
    from ringrift_pipeline.network.checkpoint import read_model_metadata

    champion = store.champion(CONFIG)
    assert champion is not None
    model = load_model(champion.path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not name.startswith("policy."):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += 2.0 * tensor.std(correction=0) * noise
    save_model(folder, model, read_model_metadata(folder))


def older(store: Store, folder: Path) -> None:
    """Generation 0's weights."""
    first = store.require(CONFIG, 0, "ema_model")
    for name in first.files:
        shutil.copyfile(first.file(name), folder / name)


@contextlib.contextmanager
def small_loop(data: Path) -> Iterator[tuple[SmallLoop, list[Any]]]:
    """Generations 0 to 3, and what the sensor said after each."""
    with pytest.MonkeyPatch.context() as patch, DagsterInstance.ephemeral() as instance:
        patch.setenv("RINGRIFT_DATA", str(data))
        made = SmallLoop(data, instance)
        ticks = [made.run(0, SETTINGS)]
        for change, steps in ((None, 400), (noised, 2), (older, 2)):
            (request,) = ticks[-1].run_requests
            values = run_values(request.run_config)
            values["training"] = {**values["training"], "max_steps": steps}
            ticks.append(made.run(int(request.partition_key), values, change))
        yield made, ticks


def test_worse_candidates_are_refused_and_the_loop_goes_on(tmp_path: Path) -> None:
    """One test: the loop takes half a minute, which nobody needs twice."""
    with small_loop(tmp_path) as (made, ticks):
        a_better_model_is_promoted(made)
        for generation in (2, 3):
            noised_and_older_weights_are_refused(made, ticks, generation)
        the_reason_is_in_the_ui(made)
        the_loop_goes_on_from_the_champion(made, ticks)
        the_list_of_ratings_tells_them_apart(made)


def a_better_model_is_promoted(made: SmallLoop) -> None:
    """The same gate lets through who is better: what follows is not refused for its size."""
    assert [one.generation for one in made.store.champions(CONFIG)] == [0, 1]
    assert made.store.require(CONFIG, 1, "decision").metadata["promoted"]


def noised_and_older_weights_are_refused(
    made: SmallLoop, ticks: list[Any], generation: int
) -> None:
    decision = made.store.require(CONFIG, generation, "decision").metadata
    assert decision["promoted"] is False
    assert decision["reasons"][0].startswith("not 35 Elo better than the champion")
    assert ticks[generation].asset_events == []  # no word of a new champion
    gate = made.store.require(CONFIG, generation, "evaluation").read_json("report.json")["gate"]
    assert gate["sprt"]["verdict"] == "reject"


def the_reason_is_in_the_ui(made: SmallLoop) -> None:
    told = made.told()
    assert [one.passed for one in told] == [False, False, True, True]
    for shown in told[:2]:
        assert shown.severity.value == "WARN"
        assert shown.description.startswith(
            "promotion refused, generation:0001 stays champion: not 35 Elo better"
        )
        assert "log likelihood ratio" in shown.description
        assert "even is 50.0%" in shown.metadata["generation:0001 wins"].value


def the_loop_goes_on_from_the_champion(made: SmallLoop, ticks: list[Any]) -> None:
    champion = made.store.champion(CONFIG)
    assert champion is not None and champion.generation == 1
    third = load_plan(made.store, CONFIG, 3)
    (request,) = ticks[3].run_requests  # the loop goes on
    assert request.run_key == f"{CONFIG}/0004"
    from ringrift_pipeline.orchestration.settings import resolve

    fourth = plan_generation(made.store, CONFIG, 4, resolve(run_values(request.run_config)))
    for plan in (third, fourth):
        assert plan.champion is not None and plan.champion["digest"] == champion.digest
        # nor do the weights that were refused live on in the training
        assert plan.parent is not None and plan.parent["digest"] == champion.digest
    second = load_plan(made.store, CONFIG, 2)
    assert second.parent is not None and second.parent["generation"] == 1


def the_list_of_ratings_tells_them_apart(made: SmallLoop) -> None:
    import polars as pl

    table = pl.read_parquet(made.store.require(CONFIG, 3, "rating_list").file("ratings.parquet"))
    rating = dict(zip(table["player"], table["rating"], strict=True))
    generations = [f"generation:{g:04d}" for g in range(4)]
    assert set(rating) == {"random", "heuristic", "rollout", *generations}
    assert max(generations, key=rating.__getitem__) == "generation:0001"
    rows = {row["player"]: row for row in table.iter_rows(named=True)}
    for refused in ("generation:0002", "generation:0003"):
        assert rows[refused]["rating"] < rows["generation:0001"]["rating"]
        assert rows[refused]["promoted"] is False
