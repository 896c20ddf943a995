"""Quality scores against formulas written here a second time; the sampler against counting."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.enhancements import data_quality_scoring, random_order, weighted_sampling
from ringrift_pipeline.enhancements.data_quality_scoring import (
    DataQualityScorer,
    GameQualityScore,
    QualityWeightedSampler,
)

NOW = 1_700_000_000.0
HOUR = 3600.0


def test_freshness_is_a_true_half_life() -> None:
    scorer = DataQualityScorer(freshness_decay_hours=24.0)
    assert scorer.compute_freshness_score(NOW, NOW) == 1.0
    assert scorer.compute_freshness_score(NOW - 24 * HOUR, NOW) == pytest.approx(0.5, abs=1e-12)
    assert scorer.compute_freshness_score(NOW - 72 * HOUR, NOW) == pytest.approx(0.125, abs=1e-12)
    assert scorer.compute_freshness_score(NOW + HOUR, NOW) == 1.0
    assert scorer.compute_freshness_score(None, NOW) == 0.5


def test_length_is_continuous_where_the_reference_jumped() -> None:
    scorer = DataQualityScorer(min_game_length=20, max_game_length=500, optimal_game_length=100)
    scores = [scorer.score_game("g", n, current_time=NOW).length_score for n in range(1, 3000)]
    assert max(abs(np.diff(scores))) < 0.035
    assert scores[99] == 1.0
    assert scores[19] == pytest.approx(0.5)
    assert scores[499] == pytest.approx(0.5)
    assert abs(scores[500] - scores[499]) < 0.001
    assert scores == sorted(scores[:100]) + sorted(scores[100:], reverse=True)
    assert scorer.score_game("g", 0).length_score == 0.0


def test_lengths_fit_the_board() -> None:
    lengths = np.random.default_rng(0).integers(800, 1300, 500)
    scorer = DataQualityScorer.for_lengths(lengths, freshness_weight=0.0)
    assert scorer.score_game("g", int(np.median(lengths))).length_score > 0.99
    with pytest.raises(ValueError, match="lengths"):
        DataQualityScorer.for_lengths([])


@settings(max_examples=80)
@given(
    players=st.integers(2, 4),
    length=st.integers(0, 100_000),
    data=st.data(),
    entropy=st.none() | st.floats(0, 20),
    surprise=st.none() | st.floats(0, 50),
    age=st.none() | st.floats(-1e6, 1e9),
    bonus=st.floats(0.1, 5),
)
def test_every_score_lies_in_unit_interval_and_frame_agrees_with_one_game(
    players: int, length: int, data: st.DataObject, entropy, surprise, age, bonus: float
) -> None:
    scorer = DataQualityScorer(decisive_bonus=bonus)
    elos = data.draw(st.none() | st.lists(st.floats(0, 4000), min_size=players, max_size=players))
    values = data.draw(st.none() | st.lists(st.floats(0.01, 1), min_size=players, max_size=players))
    winners = data.draw(st.sets(st.integers(0, players - 1), min_size=1))
    outcome = [1 / len(winners) if seat in winners else 0.0 for seat in range(players)]
    stamp = None if age is None else NOW - age
    one = scorer.score_game(
        "g",
        length,
        elos=elos,
        outcome=outcome,
        mean_values=values,
        move_entropy=entropy,
        surprise=surprise,
        game_timestamp=stamp,
        current_time=NOW,
    )
    numbers = {name: value for name, value in one.to_dict().items() if name != "game_id"}
    assert all(0.0 <= value <= 1.0 for value in numbers.values()), numbers
    frame = pl.DataFrame(
        {
            "length": [length],
            "elos": [elos],
            "outcome": [outcome],
            "mean_values": [values],
            "policy_entropy": [entropy],
            "surprise": [surprise],
            "timestamp": [stamp],
        },
        schema={
            "length": pl.Int64,
            "elos": pl.List(pl.Float64),
            "outcome": pl.List(pl.Float64),
            "mean_values": pl.List(pl.Float64),
            "policy_entropy": pl.Float64,
            "surprise": pl.Float64,
            "timestamp": pl.Float64,
        },
    )
    row = scorer.score_frame(frame, NOW).row(0, named=True)
    pairs = {
        "total_score": one.total_score,
        "length_score": one.length_score,
        "balance_score": one.balance_score,
        "diversity_score": one.diversity_score,
        "decisiveness_score": one.decisive_score,
        "freshness_score": one.freshness_score,
        "surprise_score": one.surprise_score,
    }
    for name, expected in pairs.items():
        assert row[name] == pytest.approx(expected, abs=1e-9), name


def test_two_ratings_in_columns_count_as_a_list_of_two() -> None:
    rng = np.random.default_rng(0)
    elos = rng.normal(1500, 200, (50, 2))
    scorer = DataQualityScorer()
    listed = scorer.score_frame(pl.DataFrame({"length": [90] * 50, "elos": elos.tolist()}), NOW)
    columns = {"length": [90] * 50, "elo_p1": elos[:, 0], "elo_p2": elos[:, 1]}
    apart = scorer.score_frame(pl.DataFrame(columns), NOW)
    assert apart["balance_score"].to_list() == listed["balance_score"].to_list()
    assert apart["balance_score"].n_unique() > 20
    columns["elo_p2"] = np.where(np.arange(50) == 7, np.inf, elos[:, 1])
    with pytest.raises(ValueError, match="'elo_p2' is out of range in row 7"):
        scorer.score_frame(pl.DataFrame(columns), NOW)


def test_scoring_in_slices_is_scoring_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((101, 3)) + 0.01
    frame = pl.DataFrame(
        {
            "game": [f"g{i}" for i in range(101)],
            "length": rng.integers(0, 600, 101),
            "mean_values": values.tolist(),
            "timestamp": NOW - rng.random(101) * 1e6,
        }
    )
    whole = DataQualityScorer().score_frame(frame, NOW)
    monkeypatch.setattr(data_quality_scoring, "_SLICE", 10)
    assert DataQualityScorer().score_frame(frame, NOW).equals(whole)
    assert whole["game"].to_list() == frame["game"].to_list()


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10_000),
            st.none() | st.floats(0, 10),
            st.none() | st.floats(0, 10),
            st.none() | st.floats(0, 1e9),
        ),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 5),
)
def test_more_of_a_good_thing_never_lowers_a_score(rows: list[tuple], which: int) -> None:
    """Fresher, more surprising, more diverse or closer to the optimal length is better."""
    scorer = DataQualityScorer()
    schema = {"length": pl.Int64} | dict.fromkeys(
        ("policy_entropy", "surprise", "timestamp"), pl.Float64
    )
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    before = scorer.score_frame(frame, NOW)["total_score"].to_numpy()
    better = {
        0: (pl.col("length") + 100) // 2,
        1: (pl.col("length") + 300) // 4,
        2: pl.col("policy_entropy") + 0.5,
        3: pl.col("surprise") * 2,
        4: pl.col("timestamp") + 3600.0,
        5: pl.lit(100, dtype=pl.Int64).alias("length"),
    }[which]
    after = scorer.score_frame(frame.with_columns(better), NOW)["total_score"].to_numpy()
    assert (after >= before - 1e-12).all()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("outcome", [[1.0, 0.0], [1.0, None]]),
        ("outcome", [[1.0, 0.0], [0.0, 0.0]]),
        ("mean_values", [[0.5, 0.5], [0.5, -0.1]]),
        ("mean_values", [[0.5, 0.5], [0.2] * 5]),
        ("elos", [[1500.0, 1500.0], [1500.0, float("nan")]]),
        ("elos", [[1500.0, 1500.0], []]),
        ("winner", [1, 5]),
        ("winner", [1, -1]),
        ("policy_entropy", [0.5, -0.5]),
        ("timestamp", [0.5, float("inf")]),
    ],
)
def test_one_bad_row_is_found_behind_good_ones(column: str, values: list) -> None:
    scorer = DataQualityScorer()
    good = pl.DataFrame({"length": [50], column: [values[0]]})
    scorer.score_frame(good, NOW)
    unknown = pl.DataFrame({"length": [50], column: [None]}, schema=good.schema)
    scorer.score_frame(pl.concat([good, unknown]), NOW)
    bad = pl.DataFrame({"length": [50], column: [values[1]]}, schema=good.schema)
    with pytest.raises(ValueError, match=f"'{column}' is out of range in row 2"):
        scorer.score_frame(pl.concat([good, unknown, bad]), NOW)


def test_terms_mean_what_they_say() -> None:
    scorer = DataQualityScorer(max_elo_diff=400)

    def score(**facts) -> GameQualityScore:
        return scorer.score_game("g", 100, current_time=NOW, **facts)

    assert score(elo_p1=1500, elo_p2=1600).elo_score == pytest.approx(0.75)
    assert score(elos=[1500, 1500, 1800, 1600]).balance_score == pytest.approx(0.25)
    assert score(mean_values=[0.25] * 4).balance_score == pytest.approx(1.0)
    assert score(mean_values=[1.0, 0.0, 0.0]).balance_score == pytest.approx(0.0)
    assert score(move_entropy=1.5).diversity_score == pytest.approx(0.5)
    assert score(surprise=0.5).surprise_score == pytest.approx(0.5)
    assert score(winner=2).decisive_score == 1.0
    assert score().decisive_score == pytest.approx(0.8 / 1.2)
    assert score(outcome=[1, 0, 0]).decisive_score == 1.0
    shared = score(outcome=[0.5, 0.5, 0.0]).decisive_score
    assert 0.8 / 1.2 < shared < 1.0
    # everything perfect is exactly 1, where the reference gave more
    best = score(winner=1, elos=[1, 1], move_entropy=9, surprise=1e9, game_timestamp=NOW)
    assert best.total_score == pytest.approx(1.0)
    assert scorer.score_game("g", 100, pre_computed_quality=1.0).total_score <= 1.0


def test_weights_by_name() -> None:
    scorer = DataQualityScorer(weights={"length": 3, "surprise": 1})
    got = scorer.score_game("g", 100, surprise=0.0).total_score
    assert got == pytest.approx(0.75)
    with pytest.raises(ValueError, match="unknown term 'lenght'"):
        DataQualityScorer(weights={"lenght": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"game_length": -1}, "game_length"),
        ({"game_length": float("nan")}, "game_length"),
        ({"winner": 3}, "winner"),
        ({"winner": -1}, "winner"),
        ({"move_entropy": -0.1}, "move_entropy"),
        ({"move_entropy": float("nan")}, "move_entropy"),
        ({"game_timestamp": float("inf")}, "game_timestamp"),
        ({"elos": [1500.0]}, "elos"),
        ({"outcome": [0.0, 0.0]}, "outcome"),
        ({"pre_computed_quality": 1.1}, "pre_computed_quality"),
        ({"players": 5}, "players"),
    ],
)
def test_bad_games_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataQualityScorer().score_game(**{"game_id": "g", "game_length": 100} | arguments)


def test_bad_scorers_and_frames_are_refused() -> None:
    for arguments in (
        {"min_game_length": 200},
        {"freshness_decay_hours": 0},
        {"freshness_weight": 1.5},
        {"decisive_bonus": -1},
        {"weights": {"length": 0.0}},
    ):
        with pytest.raises(ValueError):
            DataQualityScorer(**arguments)
    scorer = DataQualityScorer()
    with pytest.raises(ValueError, match="'length'"):
        scorer.score_frame(pl.DataFrame({"winner": [1]}), NOW)
    with pytest.raises(ValueError, match="'surprise' is out of range in row 1"):
        scorer.score_frame(pl.DataFrame({"length": [5, 6], "surprise": [0.1, float("nan")]}), NOW)
    with pytest.raises(ValueError, match="'outcome' is out of range in row 0"):
        scorer.score_frame(pl.DataFrame({"length": [5], "outcome": [[1.0]]}), NOW)
    with pytest.raises(ValueError, match="'length' is out of range in row 1"):
        scorer.score_frame(pl.DataFrame({"length": [5, None]}), NOW)


def test_scoring_of_an_empty_frame_and_of_length_alone() -> None:
    scorer = DataQualityScorer()
    empty = pl.DataFrame(
        {"length": [], "outcome": [], "mean_values": []},
        schema={
            "length": pl.Int64,
            "outcome": pl.List(pl.Float32),
            "mean_values": pl.List(pl.Float32),
        },
    )
    assert scorer.score_frame(empty, NOW).height == 0
    alone = scorer.score_frame(pl.DataFrame({"length": [100]}), NOW)
    assert alone["total_score"][0] == pytest.approx(
        scorer.score_game("g", 100, current_time=NOW).total_score
    )


def test_scorer_state_round_trips() -> None:
    scorer = DataQualityScorer(optimal_game_length=123, weights={"length": 1, "balance": 3})
    other = DataQualityScorer()
    other.load_state_dict(scorer.state_dict())
    assert other.state_dict() == scorer.state_dict()
    with pytest.raises(ValueError, match="state"):
        other.load_state_dict({"nonsense": 1})


def test_sample_weights_are_proportional_to_quality() -> None:
    scorer = DataQualityScorer()
    weights = scorer.compute_sample_weights(np.array([0.1, 0.2, 0.8]), 1.0)
    assert weights == pytest.approx(np.array([0.1, 0.2, 0.8]) / 1.1)
    sharp = scorer.compute_sample_weights(np.array([0.1, 0.2, 0.8]), 0.5)
    assert sharp[2] / sharp[0] == pytest.approx(64.0)
    # worst and best are far apart, where the reference reached 2.3
    wide = scorer.compute_sample_weights(np.array([0.0, 1.0]), 1.0)
    assert wide[1] / wide[0] == pytest.approx(100.0)
    assert scorer.compute_sample_weights([0.0, 1.0], 1e9) == pytest.approx([0.5, 0.5])
    assert scorer.compute_sample_weights([0.0, 0.0]) == pytest.approx([0.5, 0.5])
    records = [GameQualityScore("a", 0.2, 0, 0, 0, 0), GameQualityScore("b", 0.6, 0, 0, 0, 0)]
    assert scorer.compute_sample_weights(records) == pytest.approx([0.25, 0.75])
    assert scorer.compute_sample_weights(torch.tensor([0.25, 0.75])) == pytest.approx([0.25, 0.75])
    for bad in ([], [1.2], [float("nan")], [[0.5]]):
        with pytest.raises(ValueError):
            scorer.compute_sample_weights(np.array(bad, dtype=float))
    with pytest.raises(ValueError, match="temperature"):
        scorer.compute_sample_weights([0.5], 0.0)


@settings(max_examples=100)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.integers(1, 300),
    st.floats(0.1, 10),
    st.integers(0, 2**32),
)
def test_every_count_is_within_one_of_its_expectation(
    scores: list[float], draws: int, temperature: float, seed: int
) -> None:
    sampler = QualityWeightedSampler(np.array(scores), draws, temperature=temperature, seed=seed)
    powered = np.maximum(scores, 0.01) ** (1 / temperature)
    expected = powered / powered.sum() * draws
    for epoch in range(2):
        counts = np.bincount(sampler.draw(epoch), minlength=len(scores))
        assert counts.sum() == draws == len(sampler)
        assert (np.abs(counts - expected) < 1 + 1e-9).all()


def test_counts_over_epochs_have_the_right_mean() -> None:
    weights = np.array([0.05, 0.1, 0.25, 0.6, 0.0])
    sampler = QualityWeightedSampler(None, 7, weights=weights, seed=3)
    counts = sum(np.bincount(sampler.draw(epoch), minlength=5) for epoch in range(4000)) / 4000
    assert counts == pytest.approx(7 * weights, abs=0.03)


def test_neighbours_are_not_bound_together() -> None:
    # equal weights, half of the items drawn: a comb over a fixed order has two outcomes only
    sampler = QualityWeightedSampler(np.full(20, 0.5), 10, seed=0)
    outcomes = {tuple(sorted(sampler.draw(epoch))) for epoch in range(50)}
    assert len(outcomes) == 50


def test_counts_over_a_thousand_seeds_have_the_right_mean() -> None:
    weights = np.random.default_rng(1).exponential(size=40)
    expected = 25 * weights / weights.sum()
    samplers = [QualityWeightedSampler(None, 25, weights=weights, seed=s) for s in range(1000)]
    counts = np.array([np.bincount(sampler.draw(), minlength=40) for sampler in samplers])
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    # each count is one of two whole numbers, so its variance is p (1 - p) of the fraction
    fraction = expected % 1.0
    error = np.sqrt(fraction * (1 - fraction) / 1000)
    assert (np.abs(counts.mean(axis=0) - expected) < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("items", [70_000, 300_000])
def test_many_items_are_dealt_and_drawn_as_few_are(items: int, monkeypatch) -> None:
    monkeypatch.setattr(random_order, "PIECE", 2**16)  # so that the shuffle deals too
    monkeypatch.setattr(weighted_sampling, "PIECE", 90_000)
    weights = np.random.default_rng(2).exponential(size=items)
    weights[60_000:] *= np.arange(items - 60_000) % 3 > 0
    weights[180_000:] = 0.0  # one piece and more
    sampler = QualityWeightedSampler(None, 150_001, weights=weights, seed=4)
    drawn = sampler.draw()
    counts = np.bincount(drawn, minlength=items)
    expected = 150_001 * weights / weights.sum()
    assert drawn.size == 150_001 and (np.abs(counts - expected) < 1 + 1e-6).all()
    assert not counts[weights == 0.0].any()
    # in random order: a position tells nothing of the item, nor an item of the next one
    position = np.arange(drawn.size)
    assert abs(np.corrcoef(position, drawn)[0, 1]) < 4.5 / math.sqrt(drawn.size)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4.5 / math.sqrt(drawn.size)
    assert np.array_equal(
        drawn, QualityWeightedSampler(None, 150_001, weights=weights, seed=4).draw()
    )


def test_no_distance_between_dealt_items_binds_them() -> None:
    """Of equal items half are drawn: those at any distance go together half of the time."""
    items = 100_000
    sampler = QualityWeightedSampler(None, items // 2, weights=np.ones(items), seed=0)
    taken = np.zeros(items)
    taken[sampler.draw()] = 1.0
    for distance in (1, 2, 3, 64, 255, 256, 257, 1000, 50_000):
        together = float((taken[distance:] * taken[:-distance]).mean())
        # a bound pair would make this 0 or 1/2; dealt to one of 256 piles it moves it by 1/1024
        assert together == pytest.approx(0.25, abs=0.01), distance


def test_without_replacement() -> None:
    scores = np.array([1.0, 1.0, 0.02, 0.02, 0.02, 0.5])
    sampler = QualityWeightedSampler(scores, 4, replacement=False, seed=1)
    seen = np.zeros(6)
    for epoch in range(3000):
        drawn = sampler.draw(epoch)
        assert len(set(drawn)) == 4
        seen += np.bincount(drawn, minlength=6)
    assert seen / 3000 == pytest.approx(sampler.expected_counts, abs=0.03)
    assert sampler.expected_counts[:2] == pytest.approx([1, 1])
    everything = QualityWeightedSampler(scores, replacement=False)
    assert sorted(everything) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="without replacement"):
        QualityWeightedSampler(scores, 7, replacement=False)
    with pytest.raises(ValueError, match="num_samples must be .* below 4294967297"):
        QualityWeightedSampler(scores, 10**12)
    with pytest.raises(ValueError, match="positive weight"):
        QualityWeightedSampler(None, 2, False, weights=[1.0, 0.0])


def test_same_seed_and_epoch_same_draw() -> None:
    scores = np.linspace(0.1, 1, 50)
    one, two = (QualityWeightedSampler(scores, 200, seed=5) for _ in range(2))
    torch.manual_seed(1)
    np.random.seed(1)
    first = list(one)
    torch.manual_seed(2)
    np.random.seed(2)
    assert list(two) == first == list(one)
    one.set_epoch(1)
    assert list(one) != first
    assert list(QualityWeightedSampler(scores, 200, seed=6)) != first
    # nearby seeds and epochs do not share streams
    assert list(QualityWeightedSampler(scores, 200, seed=6)) != list(one)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_one_draw(world_size: int) -> None:
    scores = np.linspace(0.1, 1, 50)
    ranks = [
        QualityWeightedSampler(scores, 100, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    parts = [list(sampler) for sampler in ranks]
    assert len({len(part) for part in parts}) == 1
    counts = np.bincount(np.concatenate(parts), minlength=50)
    assert (np.abs(counts - ranks[0].expected_counts) < 1 + 1e-9).all()
    if 100 % world_size == 0:
        whole = QualityWeightedSampler(scores, 100, seed=5)
        assert sorted(whole) == sorted(np.concatenate(parts).tolist())


@pytest.mark.slow
def test_more_items_than_float32_and_multinomial_can_take() -> None:
    items = 2**24 + 1000
    weights = np.ones(items)
    weights[items // 2 :] = 2.0
    sampler = QualityWeightedSampler(None, 30_000, weights=weights)
    drawn = sampler.draw()
    assert float((drawn < items // 2).mean()) == pytest.approx(1 / 3, abs=0.01)
    assert np.unique(drawn).size == 30_000  # expectations are far below 1
    everything = QualityWeightedSampler(None, weights=weights).draw()
    counts = np.bincount(everything, minlength=items)
    assert np.flatnonzero(np.bincount(counts[: items // 2])).tolist() == [0, 1]
    assert np.flatnonzero(np.bincount(counts[items // 2 :])).tolist() == [1, 2]


def test_importance_corrections_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    scores = rng.uniform(0.05, 1, 30)
    for replacement, draws in ((True, 40), (False, 12)):
        sampler = QualityWeightedSampler(scores, draws, replacement, seed=2)
        means = []
        for epoch in range(4000):
            drawn = sampler.draw(epoch)
            corrections = sampler.importance_weights(drawn)
            means.append((corrections * values[drawn]).mean())
        error = np.std(means) / math.sqrt(len(means))
        assert np.mean(means) == pytest.approx(values.mean(), abs=4 * error + 1e-12)
    indices = torch.tensor([3, 4])
    as_tensor = sampler.importance_weights(indices)
    assert isinstance(as_tensor, torch.Tensor) and as_tensor.device == indices.device
    assert sampler.importance_weights(beta=0.0) == pytest.approx(np.ones(30))


def test_resuming_inside_an_epoch() -> None:
    scores = np.linspace(0.1, 1, 50)
    sampler = QualityWeightedSampler(scores, 100, seed=5)
    sampler.set_epoch(3)
    whole = list(sampler)
    state = sampler.state_dict(consumed=40)
    resumed = QualityWeightedSampler(scores, 100, seed=0)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[40:]
    assert list(resumed) == whole
    other = QualityWeightedSampler(scores[::-1].copy(), 100)
    with pytest.raises(ValueError, match="does not fit"):
        other.load_state_dict(state)


def test_loader_takes_it_and_bad_arguments_are_refused() -> None:
    sampler = QualityWeightedSampler(np.array([0.2, 0.9]), 10)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(2)), batch_size=5, sampler=sampler
    )
    assert sum(len(batch[0]) for batch in loader) == 10
    for arguments in (
        {"num_samples": 0},
        {"num_samples": 2.5},
        {"rank": 2, "world_size": 2},
        {"seed": -1},
        {"weights": [1.0]},
    ):
        with pytest.raises(ValueError):
            QualityWeightedSampler(np.array([0.5]), **arguments)
    with pytest.raises(ValueError, match="either"):
        QualityWeightedSampler(None)
    for weights in ([0.0], [-1.0, 2.0], [float("nan")]):
        with pytest.raises(ValueError, match="weights"):
            QualityWeightedSampler(None, weights=weights)


def test_counts_of_millions_are_those_of_float64() -> None:
    """In float32 the cumulative sum of a million items is off by more than many items weigh."""
    items, draws = 2**20 + 1000, 2**22
    weights = np.random.default_rng(5).pareto(1.1, items) + 1e-3  # a few are drawn 10,000 times
    counts = np.bincount(
        QualityWeightedSampler(None, draws, weights=weights, seed=3).draw(), minlength=items
    )
    expected = weights / math.fsum(weights) * draws
    assert counts.sum() == draws and expected.max() > 1e4
    assert (counts >= np.floor(expected - 1e-6)).all()
    assert (counts <= np.ceil(expected + 1e-6)).all()


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"elos": [1.0, 2.0, 3.0], "outcome": [1.0, 0.0]}, "elos 3, outcome 2"),
        ({"mean_values": [0.5, 0.5], "outcome": [1.0, 0.0, 0.0]}, "mean_values 2"),
        ({"players": 2, "winner": 3}, "winner"),
        ({"winner": 3, "outcome": [0.0, 1.0]}, "winner"),
        ({"players": 3, "elos": [1.0, 2.0]}, "players"),
        ({"players": 3, "elo_p1": 1.0, "elo_p2": 2.0}, "elo_p1"),
    ],
)
def test_facts_about_another_number_of_seats_are_refused(facts: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DataQualityScorer().score_game("g", 50, **facts)


def test_three_seats_are_told_by_any_fact() -> None:
    scorer = DataQualityScorer()
    for facts in ({"players": 3}, {"elos": [1.0, 2.0, 3.0]}, {"mean_values": [0.2, 0.3, 0.5]}):
        assert scorer.score_game("g", 50, 3, **facts).decisive_score == 1.0


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"elos": [[1.0] * 3, [1.0] * 2], "outcome": [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]}, "'elos'"),
        ({"mean_values": [[0.5] * 2] * 2, "winner": [2, 3]}, "'winner'"),
    ],
)
def test_columns_of_another_number_of_seats_are_refused(columns: dict, named: str) -> None:
    games = pl.DataFrame({"length": [40, 50], **columns})
    with pytest.raises(ValueError, match=f"column {named} does not fit the seats .* in row 1"):
        DataQualityScorer().score_frame(games, 0.0)
    fine = games.with_columns(
        pl.lit(None, dtype=games.schema[name]).alias(name) for name in columns if name != "winner"
    )
    DataQualityScorer().score_frame(fine, 0.0)  # what is not known fits


@pytest.mark.parametrize("winner", [[1.0, 1.5], [0.5, None], [math.nan, 1.0]])
def test_half_a_winner_is_refused_in_frames_as_in_games(winner: list) -> None:
    scorer = DataQualityScorer()
    with pytest.raises(ValueError, match="column 'winner' is out of range in row"):
        scorer.score_frame(pl.DataFrame({"length": [30, 40], "winner": winner}), 0.0)
    whole = [pl.Series([1.0, None]), pl.Series([1, None]), pl.Series([1, None], dtype=pl.UInt8)]
    for column in whole:
        frame = scorer.score_frame(pl.DataFrame({"length": [30, 40], "winner": column}), 0.0)
        assert frame["decisiveness_score"].to_list() == pytest.approx([1.0, 0.8 / 1.2])
