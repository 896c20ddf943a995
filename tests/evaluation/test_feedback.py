"""Settings of the next generation, read from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation import next_settings
from ringrift_pipeline.selfplay import plan_generation
from ringrift_pipeline.store import Store

CONFIG = "hex8_2p"
FALLING = (1500.0, 1440.0, 1380.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def land(
    store: Store, generation: int, elo: Any, half: float = 15.0, settings: Any = None
) -> TrainingConfig:
    """A planned and evaluated generation; the settings that the next one is asked for."""
    settings = settings or TrainingConfig()
    store.write_plan(CONFIG, generation, {"settings": settings.to_dict()})
    rate(store, generation, elo, half)
    return next_settings(store, CONFIG, generation + 1, settings).settings


def rate(store: Store, generation: int, elo: Any, half: float = 15.0) -> None:
    numbers = {"eval/elo": elo, "eval/elo_low": elo - half, "eval/elo_high": elo + half}
    with store.create(CONFIG, generation, "evaluation", numbers):
        pass


def factors(settings: TrainingConfig) -> tuple[float, float, float]:
    own = settings.feedback
    return own.rate_factor, own.exploration_factor, own.selfplay_factor


def chain(store: Store, ratings: Any, **more: Any) -> list[TrainingConfig]:
    """Generations one after the other, each planned with what was asked for."""
    asked = [TrainingConfig()]
    for generation, elo in enumerate(ratings):
        asked.append(land(store, generation, elo, settings=asked[-1], **more))
    return asked


def test_the_factors_build_up_while_it_falls_and_stop_at_their_bounds(store: Store) -> None:
    asked = chain(store, [1500.0 - 60.0 * at for at in range(12)])
    assert [factors(one) for one in asked[:3]] == [(1.0, 1.0, 1.0)] * 3
    assert factors(asked[3]) == pytest.approx((0.7, 1.0, 1.25))
    assert factors(asked[4]) == pytest.approx((0.49, 1.0, 1.5625))
    assert factors(asked[-1]) == pytest.approx((0.1, 1.0, 2.0))
    first, last = TrainingConfig(), asked[-1]
    assert last.optimizer == first.optimizer and last.selfplay == first.selfplay  # as typed
    assert last.effective_learning_rate == pytest.approx(2e-4)
    assert last.effective_games == 1024 and last.effective_temperature == 1.0


def test_a_plateau_explores_and_a_rise_keeps_what_there_is(store: Store) -> None:
    flat = chain(store, [1400.0 + (at % 2) for at in range(10)], half=8.0)
    assert factors(flat[-1])[0] < 0.9 and factors(flat[-1])[1:] == (1.5, 2.0)  # both bounds
    for at in range(10, 14):
        asked = land(store, at, 1400.0 + 400 * (at - 9), half=8.0, settings=flat[-1])
    assert factors(asked) == (pytest.approx(factors(flat[-1])[0] * 1.05), 1.5, 2.0)


def test_without_the_heuristic_the_scale_is_random_plays(store: Store) -> None:
    settings = TrainingConfig().with_overrides({"evaluation.opponents": ["random"]})
    for generation, elo in enumerate((1500.0, 1440.0, 1380.0)):
        store.write_plan(CONFIG, generation, {"settings": settings.to_dict()})
        numbers = {
            "eval/elo_over_random": elo,
            "eval/elo": 1200.0,
        }  # the second: an older version's
        numbers |= {"eval/elo_over_random_low": elo - 15, "eval/elo_over_random_high": elo + 15}
        with store.create(CONFIG, generation, "evaluation", numbers):
            pass
    assert factors(next_settings(store, CONFIG, 3, settings).settings)[0] == pytest.approx(0.7)


def test_noise_changes_nothing(store: Store) -> None:
    asked = chain(store, [1400.0, 1300.0, 1450.0, 1350.0, 1420.0, 1330.0], half=90.0)
    assert {factors(one) for one in asked} == {(1.0, 1.0, 1.0)}


def test_asking_again_gives_the_same(store: Store) -> None:
    asked = chain(store, FALLING)
    again = next_settings(store, CONFIG, 3, asked[2])
    assert again.settings == asked[3] and again.decision.trend == "falling"  # type: ignore[union-attr]
    assert "falls" in again.note
    store.write_plan(CONFIG, 3, {"settings": asked[3].to_dict()})
    assert next_settings(store, CONFIG, 3, asked[2]).settings == asked[3]  # its own plan is no past
    for generation in (3, 4):  # nor is what came after it
        land(store, generation, 1900.0, settings=asked[3])
    assert next_settings(store, CONFIG, 3, asked[2]).settings == asked[3]


def test_an_evaluation_made_again_counts_once_and_the_newest_holds(store: Store) -> None:
    asked = chain(store, FALLING)
    for _ in range(3):
        rate(store, 2, 1380.0)
    assert next_settings(store, CONFIG, 3, asked[2]).settings == asked[3]
    rate(store, 2, 1560.0)
    again = next_settings(store, CONFIG, 3, asked[2])
    assert factors(again.settings) == (1.0, 1.0, 1.0)
    assert again.decision.evaluations == 3  # type: ignore[union-attr]


def test_no_evaluation_is_judged_twice_over_a_gap(store: Store) -> None:
    asked = chain(store, FALLING)
    store.write_plan(CONFIG, 3, {"settings": asked[3].to_dict()})  # planned, never evaluated
    after = next_settings(store, CONFIG, 4, asked[3])
    assert factors(after.settings) == factors(asked[3]) and after.decision is None
    assert "0003 has no rating" in after.note
    # the gap is on the axis: 60 Elo in two generations are 30 in each
    landed = land(store, 4, 1320.0, half=1.0, settings=asked[3])
    assert factors(landed) == pytest.approx((0.49, 1.0, 1.5625))
    slope = next_settings(store, CONFIG, 5, asked[3]).decision.slope  # type: ignore[union-attr]
    assert -50.0 < slope < -30.0  # type: ignore[operator]


def test_the_factors_go_on_in_a_new_loop_unless_some_are_given(store: Store) -> None:
    asked = chain(store, FALLING)
    typed = TrainingConfig().with_overrides({"optimizer.learning_rate": 1e-3})
    resumed = next_settings(store, CONFIG, 3, typed).settings
    assert factors(resumed) == factors(asked[3])
    assert resumed.effective_learning_rate == pytest.approx(0.7e-3)
    store.write_plan(CONFIG, 3, {"settings": asked[3].to_dict()})
    assert factors(next_settings(store, CONFIG, 4, typed).settings) == factors(asked[3])
    given = typed.with_overrides({"feedback.selfplay_factor": 0.5})
    assert factors(next_settings(store, CONFIG, 4, given).settings) == (0.7, 1.0, 0.5)
    # 1 is a factor too: whoever asks for it ends the feedback so far
    reset = TrainingConfig.load(base=asked[3], environ={}, overrides={"feedback.rate_factor": "1"})
    assert factors(next_settings(store, CONFIG, 4, reset).settings) == (1.0, 1.0, 1.25)
    reset = typed.with_overrides({"feedback.rate_factor": 1.0})
    assert factors(next_settings(store, CONFIG, 4, reset).settings) == (1.0, 1.0, 1.25)


def test_it_can_be_turned_off(store: Store) -> None:
    chain(store, FALLING)
    off = TrainingConfig().with_overrides({"feedback.enabled": False})
    result = next_settings(store, CONFIG, 3, off)
    assert result.settings == off and result.decision is None
    assert next_settings(store, CONFIG, 0, off).settings == off


def test_ratings_of_another_kind_of_evaluation_are_left_out(store: Store) -> None:
    """Twice the simulations is another scale: the drop to it is no fall."""
    asked = chain(store, (1500.0, 1510.0))
    other = asked[-1].with_overrides({"evaluation.simulations": 32})
    for generation, elo in ((2, 1300.0), (3, 1300.0)):
        last = land(store, generation, elo, settings=other)
    assert factors(last) == (1.0, 1.0, 1.0)
    assert next_settings(store, CONFIG, 4, other).decision.evaluations == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("odd", [None, "high", float(2**70)])
def test_a_generation_without_a_usable_rating_is_a_gap(store: Store, odd: Any) -> None:
    asked = chain(store, (1500.0, 1440.0))
    store.write_plan(CONFIG, 2, {"settings": asked[2].to_dict()})
    high = odd + 1.0 if isinstance(odd, float) else 2.0
    numbers = {"eval/elo": odd, "eval/elo_low": 1.0, "eval/elo_high": high}
    with store.create(CONFIG, 2, "evaluation", numbers):
        pass
    result = next_settings(store, CONFIG, 3, asked[2])
    assert result.decision is None and factors(result.settings) == (1.0, 1.0, 1.0)
    last = land(store, 3, 1320.0, settings=asked[2])
    assert factors(last) == pytest.approx((0.7, 1.0, 1.25))


def test_an_earlier_evaluation_that_is_damaged_is_a_gap(store: Store) -> None:
    asked = chain(store, FALLING)
    store.require(CONFIG, 1, "evaluation").path.joinpath("manifest.json").write_text("{}")
    result = next_settings(store, CONFIG, 3, asked[2])
    assert result.decision.evaluations == 2  # type: ignore[union-attr]


def test_the_plan_of_the_next_generation_has_the_games(store: Store) -> None:
    settings = TrainingConfig().with_overrides(
        {"selfplay.games": 30, "selfplay.games_per_shard": 8, "feedback.selfplay_factor": 1.25}
    )
    plan = plan_generation(store, CONFIG, 0, settings)
    assert plan.games == 38 and [shard["games"] for shard in plan.shards] == [8, 8, 8, 8, 6]
    assert plan.settings.selfplay.games == 30
    least = settings.with_overrides({"feedback.selfplay_factor": 1e-3})
    assert plan_generation(store, CONFIG, 1, least).games == 1
