"""A landed evaluation starts a generation with the settings that the ratings' trend asks for."""

from __future__ import annotations

from typing import Any

import pytest
from dagster import DagsterInstance

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.settings import resolve, run_values
from ringrift_pipeline.selfplay import plan_generation
from ringrift_pipeline.store import Store

from .landing import Land, fake_evaluation
from .test_sensor import keys, tick

CONFIG = "square8_2p"


class Chain:
    """Generations one after the other: each is planned with what the sensor asked for."""

    def __init__(self, instance: DagsterInstance, store: Store, land: Land) -> None:
        self.instance, self.store, self.land = instance, store, land
        self.cursor: str | None = None
        self.generation = -1
        plan_generation(store, CONFIG, 0, TrainingConfig.preset("smoke"))

    def next(self, elo: float, half: float = 15.0, **more: Any) -> Any:
        """Land the next generation's evaluation; the run that the sensor asks for."""
        self.generation += 1
        self.land(CONFIG, self.generation, rating=(elo, half), **more)
        return self.look()

    def look(self) -> Any:
        result = tick(self.instance, self.cursor)
        self.cursor = result.cursor
        (request,) = result.run_requests
        assert request.run_key == f"{CONFIG}/{self.generation + 1:04d}"
        values = run_values(request.run_config)
        plan_generation(self.store, CONFIG, self.generation + 1, resolve(values))
        return request

    def decision(self) -> dict[str, Any]:
        return self.store.require(CONFIG, self.generation, "decision").metadata["feedback"]


@pytest.fixture
def chain(instance: DagsterInstance, store: Store, land: Land) -> Chain:
    return Chain(instance, store, land)


def sent(request: Any) -> dict[str, Any]:
    return run_values(request.run_config)


def factors(request: Any) -> tuple[float, float, float]:
    own = sent(request)["feedback"]
    return own["rate_factor"], own["exploration_factor"], own["selfplay_factor"]


def test_a_fall_is_met_with_a_lower_rate_and_more_games(chain: Chain, store: Store) -> None:
    for elo in (1500, 1440):
        assert factors(chain.next(elo)) == (1.0, 1.0, 1.0)
    request = chain.next(1380)
    assert factors(request) == pytest.approx((0.7, 1.0, 1.25))
    assert sent(request)["optimizer"]["learning_rate"] == 2e-3  # as it was typed
    assert sent(request)["selfplay"]["games"] == 320
    assert request.tags[names.TREND_TAG] == "falling"
    assert request.tags[names.FACTORS_TAG] == "rate x0.7, exploration x1, selfplay x1.25"
    told = chain.decision()
    assert told["trend"] == "falling" and told["slope"] == pytest.approx(-60.0)
    assert told["low"] < -60.0 < told["high"] < -10.0
    assert told["games"] == 400 and told["learning_rate"] == pytest.approx(1.4e-3)
    assert "falls" in told["reason"]
    plan = plan_generation(store, CONFIG, 3, resolve({}))  # the one that was made
    assert plan.games == 400 and plan.settings.effective_learning_rate == pytest.approx(1.4e-3)
    run = chain.instance.create_run_for_job(  # what is asked for can be launched
        defs.get_repository_def().get_job(request.job_name),
        run_config=request.run_config,
        tags={**request.tags, names.PARTITION_TAG: "0003"},
    )
    assert run.run_config == request.run_config


def test_a_plateau_is_met_with_exploration(chain: Chain) -> None:
    for elo in (1400, 1401, 1399):
        request = chain.next(elo, half=5.0)
    assert factors(request) == pytest.approx((0.9, 1.1, 1.15))
    assert resolve(sent(request)).effective_temperature == pytest.approx(1.1)


def test_noise_starts_the_same_again(chain: Chain) -> None:
    for elo in (1400, 1300, 1450, 1330):
        request = chain.next(elo, half=90.0)
        assert factors(request) == (1.0, 1.0, 1.0)
        assert request.tags[names.TREND_TAG] == "undecided"


def test_a_repeated_evaluation_and_a_restart_change_nothing(
    chain: Chain, instance: DagsterInstance, land: Land
) -> None:
    for elo in (1500, 1440, 1380):
        request = chain.next(elo)
    land(CONFIG, 2, rating=(1380, 15.0))  # materialized again
    again = tick(instance, chain.cursor).run_requests[-1]
    assert again.run_key == request.run_key and again.run_config == request.run_config
    asked = {r.run_key: r for r in tick(instance, None).run_requests}  # a cursor that was lost
    assert asked[request.run_key].run_config == request.run_config
    assert asked[request.run_key].tags == request.tags


def test_a_generation_without_a_rating_is_a_gap(chain: Chain, land: Land) -> None:
    chain.next(1500)
    chain.generation = 1
    land(CONFIG, 1)
    assert factors(chain.look()) == (1.0, 1.0, 1.0)
    assert "no rating" in chain.decision()["reason"]
    chain.next(1380)
    assert chain.decision()["slope"] is None  # two ratings are too few
    assert factors(chain.next(1320)) == pytest.approx((0.7, 1.0, 1.25))


def test_the_end_of_the_loop_is_told_what_the_trend_was(
    chain: Chain, instance: DagsterInstance, land: Land
) -> None:
    for elo in (1500, 1440):
        chain.next(elo, last=2)
    land(CONFIG, 2, rating=(1380, 15.0), last=2)
    chain.generation = 2
    assert keys(tick(instance, chain.cursor)) == []
    assert chain.decision()["trend"] == "falling"


def test_the_night_plays_with_the_factors(store: Store) -> None:
    """The nightly schedule starts a generation, too."""
    from ringrift_pipeline.orchestration.instance import open_instance

    from .test_schedules import tick as schedule_tick

    for generation, elo in enumerate((1500, 1440, 1380)):
        fake_evaluation(store, CONFIG, generation, True, (elo, 15.0))
        with store.create(CONFIG, generation, "selfplay_shards"):
            pass
    with open_instance(store.root) as instance:
        (request,) = schedule_tick("nightly_selfplay", instance).run_requests
    assert request.tags[names.PARTITION_TAG] == "0003"
    assert factors(request) == pytest.approx((0.7, 1.0, 1.25))


def test_the_command_line_plays_with_the_factors(
    store: Store, monkeypatch: pytest.MonkeyPatch, no_servers: None
) -> None:
    """``ringrift selfplay`` and a new ``ringrift loop`` begin a generation, too."""
    from ringrift_pipeline import cli, selfplay
    from ringrift_pipeline.orchestration import loop

    for generation, elo in enumerate((1500, 1440, 1380)):
        fake_evaluation(store, CONFIG, generation, True, (elo, 15.0))
        with store.create(CONFIG, generation, "selfplay_shards"):
            pass
        with store.create(CONFIG, generation, "decision"):
            pass
    begun: list[TrainingConfig] = []

    class Begun(Exception):
        pass

    def submit(instance: Any, config: str, generation: int, values: Any) -> None:
        assert (config, generation) == (CONFIG, 3)
        begun.append(resolve(run_values(values)))
        raise Begun

    def plan(
        store: Store, config: str, generation: int, settings: TrainingConfig, **hooks: Any
    ) -> None:
        assert (config, generation) == (CONFIG, 3)
        begun.append(settings)
        raise Begun

    monkeypatch.setattr(loop, "submit_generation", submit)
    monkeypatch.setattr(selfplay, "plan_generation", plan)
    settings = TrainingConfig.preset("smoke")
    with pytest.raises(Begun), loop.Loop(loop.LoopRequest(CONFIG, store.root, settings, 1)):
        pass
    with pytest.raises(Begun):
        cli.run(["selfplay", "--preset", "smoke"])
    for one in begun:
        assert one.effective_games == 400 and one.feedback.rate_factor == pytest.approx(0.7)
    assert len(begun) == 2


def test_a_plan_that_cannot_be_read_ends_its_own_config_only(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    store.write_plan("hex8_2p", 0, {"settings": {"selfplay": {"games": -1}}})
    land("hex8_2p", 0, rating=(1500, 15.0))
    land(CONFIG, 0, rating=(1500, 15.0))
    assert keys(tick(instance)) == [f"{CONFIG}/0001"]
    decision = store.require("hex8_2p", 0, "decision").metadata
    assert decision["next"] is None and "selfplay.games" in decision["reasons"][-1]
