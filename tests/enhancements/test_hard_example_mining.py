"""The miner against a plain dictionary, and each thing the reference project's miner got wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.enhancements.example_selection import is_member, top_with_limit
from ringrift_pipeline.enhancements.hard_example_mining import HardExampleMiner
from ringrift_pipeline.enhancements.sample_slots import SampleSlots


def ready(**changes) -> HardExampleMiner:
    """A miner that mines from the first sample and does not fade."""
    return HardExampleMiner(
        **{"min_samples_before_mining": 0, "decay_rate": 1.0, "buffer_size": 1000, **changes}
    )


class PlainMiner:
    """Hardness as the docstring says, one sample at a time."""

    def __init__(self, buffer_size: int, decay: float, uncertainty: float, surprise: float) -> None:
        self.buffer_size, self.decay = buffer_size, decay
        self.weights = (uncertainty, surprise)
        self.samples: dict[int, dict] = {}
        self.seen = 0

    def record(self, rows, losses, references, uncertainties, surprises) -> None:
        self.seen += len(rows)
        for row in set(rows):
            at = [k for k, r in enumerate(rows) if r == row]
            loss, ref, unc, sur = (
                sum(values[k] for k in at) / len(at)
                for values in (losses, references, uncertainties, surprises)
            )
            if row in self.samples:
                old = self.samples[row]
                loss, unc, sur = (
                    0.5 * old["loss"] + 0.5 * loss,
                    0.5 * old["uncertainty"] + 0.5 * unc,
                    0.5 * old["surprise"] + 0.5 * sur,
                )
            self.samples[row] = {
                "loss": loss,
                "uncertainty": unc,
                "surprise": sur,
                "hardness": max(0.0, loss - ref) + self.weights[0] * unc + self.weights[1] * sur,
                "at": self.seen,
            }

    def hardness(self) -> dict[int, float]:
        return {
            row: s["hardness"] * self.decay ** ((self.seen - s["at"]) / self.buffer_size)
            for row, s in self.samples.items()
        }


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_hardness_equals_the_plain_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decay = float(rng.uniform(0.2, 1.0))
    miner = HardExampleMiner(
        buffer_size=64,
        uncertainty_weight=0.3,
        surprise_weight=0.7,
        decay_rate=decay,
        min_samples_before_mining=0,
    )
    plain = PlainMiner(64, decay, 0.3, 0.7)
    for _ in range(12):
        size = int(rng.integers(1, 12))
        rows = rng.integers(0, 40, size)
        losses, references, uncertainties, surprises = rng.exponential(size=(4, size))
        miner.record_batch(
            rows,
            losses,
            uncertainties,
            surprises=surprises,
            reference_losses=references,
        )
        plain.record(rows.tolist(), losses, references, uncertainties, surprises)
    expected = plain.hardness()
    found = {example.index: example for example in miner.hardest(100)}
    assert found.keys() == expected.keys()
    for row, example in found.items():
        assert example.hardness == pytest.approx(expected[row], rel=1e-9, abs=1e-12)
        assert example.loss == pytest.approx(plain.samples[row]["loss"])
        assert example.surprise == pytest.approx(plain.samples[row]["surprise"])
    assert [e.hardness for e in miner.hardest(100)] == sorted(expected.values(), reverse=True) or (
        np.allclose([e.hardness for e in miner.hardest(100)], sorted(expected.values())[::-1])
    )


def test_the_hardest_are_kept_when_the_data_set_is_larger_than_the_buffer() -> None:
    miner = ready(buffer_size=100)
    losses = np.random.default_rng(0).permutation(20_000).astype(float)
    for start in range(0, 20_000, 500):
        miner.record_batch(np.arange(start, start + 500), losses[start : start + 500])
    assert miner.get_statistics()["tracked_examples"] == 100
    assert {e.index for e in miner.hardest(100)} == set(np.argsort(-losses)[:100].tolist())


def test_one_batch_larger_than_the_buffer() -> None:
    miner = ready(buffer_size=10)
    miner.record_batch(np.arange(5000), np.arange(5000.0))
    assert [e.index for e in miner.hardest(3)] == [4999, 4998, 4997]
    assert miner.get_statistics()["tracked_examples"] == 10


def test_only_hard_examples_are_drawn_and_in_proportion() -> None:
    miner = ready(loss_threshold_percentile=90.0, max_times_sampled=10_000, seed=1)
    losses = np.ones(100)
    losses[90:] = 10.0
    losses[99] = 100.0
    miner.record_batch(np.arange(100), losses)
    drawn = np.concatenate([miner.get_hard_indices(1) for _ in range(2000)])
    assert set(drawn.tolist()) <= set(range(90, 100))
    # row 99 has 100 of 190 parts of the hardness
    assert np.mean(drawn == 99) == pytest.approx(100 / 190, abs=0.04)
    indices, scores = miner.get_hard_indices(50, return_scores=True)
    assert np.unique(indices).size == indices.size == 10
    np.testing.assert_allclose(scores, losses[indices])


def test_a_mixed_batch_has_the_size_asked_for_before_warm_up_and_after() -> None:
    miner = HardExampleMiner(min_samples_before_mining=1000)
    batch = miner.create_mixed_batch_indices(512, np.arange(10_000))
    assert batch.shape == (512,) and np.unique(batch).size == 512
    assert miner.get_hard_indices(10).size == 0
    miner.record_batch(np.arange(1000), np.arange(1000.0))
    batch = miner.create_mixed_batch_indices(512, np.arange(10_000))
    assert batch.shape == (512,) and np.unique(batch).size == 512
    hard = np.isin(batch, np.arange(800, 1000)).sum()
    assert hard >= int(0.3 * 512)


@pytest.mark.parametrize("size", [1, 5, 100, 30_000])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["size", "rows", "shifted"])
def test_mixed_batches_of_any_data_set(size: int, fraction: float, kind: str) -> None:
    miner = ready(hard_fraction=fraction)
    miner.record_batch(np.arange(200), np.arange(200.0))
    population = {"size": size, "rows": np.arange(size), "shifted": np.arange(size) + 150}[kind]
    rows = set(range(size)) if kind != "shifted" else set(range(150, 150 + size))
    for _ in range(3):
        batch = miner.create_mixed_batch_indices(64, population)
        assert batch.shape == (64,) and batch.dtype == np.int64
        assert set(batch.tolist()) <= rows
        assert np.unique(batch).size == min(size, 64)


def test_the_random_part_is_uniform_over_the_others() -> None:
    miner = ready(hard_fraction=0.0, seed=3)
    counts = np.zeros(50)
    for _ in range(2000):
        counts[miner.create_mixed_batch_indices(10, 50)] += 1
    expected = 2000 * 10 / 50
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_max_times_sampled_is_a_cap_that_outlives_the_buffer() -> None:
    miner = ready(buffer_size=20, max_times_sampled=3, loss_threshold_percentile=0.0)
    miner.record_batch([7], [100.0])
    drawn = np.concatenate([miner.get_hard_indices(5) for _ in range(10)])
    assert drawn.tolist() == [7, 7, 7]
    # crowd it out of the buffer, bring it back: still at its cap
    miner.record_batch(np.arange(100, 5100), np.full(5000, 500.0))
    miner.get_statistics()
    assert 7 not in {e.index for e in miner.hardest(100)}
    miner.record_batch([7], [1e6])
    assert 7 not in miner.get_hard_indices(21)
    assert miner.hardest(1)[0].index == 7 and miner.hardest(1)[0].times_sampled == 3
    statistics = miner.get_statistics()
    assert statistics["max_times_sampled"] == 3 and statistics["examples_at_cap"] >= 1


def test_the_cap_holds_for_mixed_batches_and_for_counted_weights() -> None:
    miner = ready(max_times_sampled=4, loss_threshold_percentile=90.0, hard_fraction=0.5)
    miner.record_batch(np.arange(1000), np.arange(1000.0))
    for _ in range(100):
        miner.create_mixed_batch_indices(64, 1000)
        miner.get_sample_weights([999], count=True)
    assert max(e.times_sampled for e in miner.hardest(1000)) == 4
    assert miner.get_sample_weights([999, 0]).tolist() == [1.0, 1.0]


def test_at_most_a_share_of_one_game() -> None:
    miner = ready(max_game_share=0.25, loss_threshold_percentile=0.0, max_times_sampled=1000)
    games = np.array([2**62 + 5] * 80 + [1] * 10 + [2] * 10)
    losses = np.where(games > 10, 1000.0, 1.0)
    miner.record_batch(np.arange(100), losses, games=games)
    for _ in range(20):
        drawn = games[miner.get_hard_indices(20)]
        _, counts = np.unique(drawn, return_counts=True)
        assert drawn.size == 15 and counts.max() == 5
    batch = miner.create_mixed_batch_indices(20, 100)
    assert batch.size == 20


def test_a_game_limit_still_finds_the_many_small_games_behind_a_big_one() -> None:
    miner = ready(max_game_share=0.1, loss_threshold_percentile=0.0, buffer_size=5000)
    games = np.concatenate([np.zeros(4000, dtype=np.int64), np.arange(1, 1001)])
    losses = np.where(games == 0, 1e6, 1.0)
    miner.record_batch(np.arange(5000), losses, games=games)
    drawn = games[miner.get_hard_indices(50)]
    assert drawn.size == 50 and np.count_nonzero(drawn == 0) == 5


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 4)), max_size=60),
    st.integers(1, 12),
    st.integers(1, 4),
)
@settings(max_examples=80)
def test_top_with_limit_equals_taking_one_after_the_other(
    items: list, number: int, limit: int
) -> None:
    scores = np.array([score + k / 1000 for k, (score, _) in enumerate(items)])
    groups = np.array([group for _, group in items], dtype=np.int64)
    expected: list[int] = []
    taken: dict[int, int] = {}
    for position in np.argsort(-scores, kind="stable").tolist():
        group = int(groups[position])
        if len(expected) < number and (group < 0 or taken.get(group, 0) < limit):
            expected.append(position)
            taken[group] = taken.get(group, 0) + 1
    assert top_with_limit(scores, groups, number, limit).tolist() == expected


@given(st.integers(-5, 20), st.integers(-5, 40), st.sampled_from([-3, -1, 1, 2, 5]))
@settings(max_examples=60)
def test_membership(start: int, stop: int, step: int) -> None:
    rows = np.arange(0, 45)
    population = range(start, stop, step)
    expected = [row in population for row in rows.tolist()]
    assert is_member(rows, population).tolist() == expected
    positive = np.array([row for row in population if row >= 0], dtype=np.int64)
    assert is_member(rows, positive).tolist() == expected


def test_nan_is_skipped_and_reported_and_does_not_silence_the_miner() -> None:
    miner = ready()
    assert miner.record_batch([1, 2, 3], [1.0, math.nan, math.inf]) == 1
    assert miner.record_batch([4, 5], [1.0, 2.0], [math.nan, 0.5]) == 1
    assert miner.get_statistics()["skipped_non_finite"] == 3
    assert miner.get_statistics()["tracked_examples"] == 2
    assert set(miner.get_hard_indices(10).tolist()) == {5}


def test_all_zero_losses_can_be_drawn() -> None:
    miner = ready(max_times_sampled=1000, seed=0)
    miner.record_batch(np.arange(50), np.zeros(50))
    drawn = np.concatenate([miner.get_hard_indices(5) for _ in range(200)])
    assert np.unique(drawn).size == 50
    assert miner.get_hard_indices(5).size == 5


def test_hardness_below_the_reference_model_is_zero() -> None:
    miner = ready()
    miner.record_batch([0, 1, 2], [5.0, 5.0, 5.0], reference_losses=[5.0, 1.0, 9.0])
    hardness = {e.index: e.hardness for e in miner.hardest(3)}
    assert hardness[1] == pytest.approx(4.0) and max(hardness[0], hardness[2]) < 1e-20


def test_fading_counts_samples_not_steps_and_survives_a_large_epoch() -> None:
    def after_an_epoch(batch: int) -> float:
        miner = HardExampleMiner(buffer_size=10_000, decay_rate=0.99)
        miner.record_batch([0], [100.0])
        for start in range(1, 200_001, batch):
            rows = np.arange(start, start + batch)
            miner.record_batch(rows, np.full(rows.size, 0.01))
        return miner.hardest(1)[0].hardness

    assert after_an_epoch(500) == pytest.approx(100.0 * 0.99**20, rel=1e-9)
    assert after_an_epoch(5000) == pytest.approx(after_an_epoch(500), rel=1e-9)


@pytest.mark.parametrize(
    "arguments",
    [
        {"indices": [1, 2, 3], "losses": [1.0, 2.0]},
        {"indices": [1, 2], "losses": [1.0, 2.0], "uncertainties": [1.0]},
        {"indices": [1, 2], "losses": [1.0, 2.0], "games": [1]},
        {"indices": [1, 2], "losses": [1.0, 2.0], "games": [1, -1]},
        {"indices": [1, -2], "losses": [1.0, 2.0]},
        {"indices": [1.5, 2.0], "losses": [1.0, 2.0]},
        {"indices": [[1], [2]], "losses": [1.0, 2.0]},
        {"indices": [2**40], "losses": [1.0]},
    ],
)
def test_bad_batches_are_refused(arguments: dict) -> None:
    miner = ready()
    with pytest.raises(ValueError):
        miner.record_batch(**arguments)
    assert miner.get_statistics()["total_samples_seen"] == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"buffer_size": 0},
        {"hard_fraction": 1.5},
        {"loss_threshold_percentile": 101.0},
        {"uncertainty_weight": -0.1},
        {"surprise_weight": math.nan},
        {"decay_rate": 0.0},
        {"decay_rate": 1.1},
        {"min_samples_before_mining": -1},
        {"max_times_sampled": 0},
        {"max_game_share": 0.0},
        {"smoothing": 0.0},
        {"seed": 10**400},
        {"seed": -1},
        {"seed": True},
    ],
)
def test_bad_settings_are_refused(setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        HardExampleMiner(**setting)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([2**63 + 5, 2**64 - 1], np.uint64),
        np.array([1, 2**63], np.uint64),
        range(2**63, 2**63 + 4),
        range(2**64),
    ],
)
def test_rows_beyond_int64_are_refused(rows: np.ndarray | range) -> None:
    miner = ready()
    miner.record_batch([1, 2], [1.0, 2.0])
    before = str(miner.state_dict())
    with pytest.raises(ValueError, match="all_indices must be below"):
        miner.create_mixed_batch_indices(2, rows)
    with pytest.raises(
        ValueError, match=r"indices must be data-set rows .* got 9223372036854775813"
    ):
        miner.record_batch(np.array([1, 2**63 + 5], np.uint64), [1.0, 2.0])
    assert str(miner.state_dict()) == before
    small = miner.create_mixed_batch_indices(2, np.array([1, 2], np.uint64))
    assert sorted(small.tolist()) == [1, 2] and small.dtype == np.int64


def test_hashed_games_are_told_apart() -> None:
    games = np.array([2**63 + 5, 2**64 - 1, 2**64 - 1, 2**64 - 1], np.uint64)
    miner = ready(max_game_share=0.25, loss_threshold_percentile=0.0)
    miner.record_batch(np.arange(4), [1.0, 2.0, 3.0, 4.0], games=games)
    found = {example.index: example.game for example in miner.hardest()}
    assert found[1] == found[2] == found[3] != found[0] and min(found.values()) >= 0
    assert len(miner.get_hard_indices(4)) == 2  # one of each game
    other = ready(max_game_share=0.25, loss_threshold_percentile=0.0)
    other.load_state_dict(miner.state_dict())
    other.load_examples(np.arange(4), np.ones(4), games)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        ready().create_mixed_batch_indices(4, np.zeros(0, dtype=np.int64))


def test_loaded_examples_are_mined_at_once_and_replaced_by_what_is_recorded() -> None:
    miner = HardExampleMiner(buffer_size=3, min_samples_before_mining=1000, decay_rate=1.0)
    miner.load_examples([5, 6, 7, 8], [1.0, 2.0, 3.0, 0.5], games=[0, 0, 1, 1])
    assert [(e.index, e.hardness, e.game) for e in miner.hardest(9)] == [
        (7, pytest.approx(3.0), 1),
        (6, pytest.approx(2.0), 0),
        (5, pytest.approx(1.0), 0),
    ]
    assert miner.get_hard_indices(1).size == 1
    miner.record_batch([7], [0.25])
    found = {e.index: e for e in miner.hardest(9)}
    assert found[7].hardness == pytest.approx(0.25) and found[7].game == 1
    assert math.isnan(found[6].loss)
    for bad in (([1, 1], [1.0, 1.0]), ([1], [math.nan]), ([1], [-1.0]), ([1, 2], [1.0])):
        with pytest.raises(ValueError):
            miner.load_examples(*bad)


def test_sample_weights() -> None:
    miner = HardExampleMiner(min_samples_before_mining=100, loss_threshold_percentile=80.0)
    assert miner.get_sample_weights([1, 2]).tolist() == [1.0, 1.0]
    miner.record_batch(np.arange(100), np.arange(100.0))
    weights = miner.get_sample_weights(torch.arange(200), 0.5, 3.0)
    assert weights.shape == (200,)
    assert set(np.flatnonzero(weights == 3.0).tolist()) == set(range(80, 100))
    assert (weights[100:] == 0.5).all()
    assert miner.get_statistics()["max_times_sampled"] == 0


def test_between_two_thresholds_nothing_costs_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    miner = HardExampleMiner(buffer_size=20_000, seed=2)
    rng = np.random.default_rng(0)
    miner.record_batch(np.arange(20_000), rng.exponential(size=20_000))
    passes = []
    for name in ("used", "release"):
        whole = getattr(SampleSlots, name)
        monkeypatch.setattr(
            SampleSlots,
            name,
            lambda *a, name=name, whole=whole: (passes.append(name), whole(*a))[1],
        )

    def batches(number: int) -> None:
        for _ in range(number):
            rows = rng.choice(40_000, 100, replace=False)
            miner.record_batch(rows, rng.exponential(size=100))
            miner.get_hard_indices(50)
            miner.create_mixed_batch_indices(100, 40_000)
            miner.get_sample_weights(rows)

    batches(1)
    passes.clear()
    batches(24)  # 2,400 samples: less than an eighth
    assert passes == []
    batches(10)
    assert passes


def test_hardness_is_that_of_now_between_two_thresholds() -> None:
    miner = HardExampleMiner(
        buffer_size=50_000, decay_rate=1.0, max_times_sampled=10_000, smoothing=1.0, seed=0
    )
    losses = np.ones(50_000)
    losses[:10_000] = 2.0
    losses[0] = 1e6
    miner.record_batch(np.arange(50_000), losses)
    assert all(0 in miner.get_hard_indices(20) for _ in range(5))
    miner.record_batch([0, 60_000], [0.5, 1e6])  # one is learned, another comes
    for _ in range(20):
        drawn = miner.get_hard_indices(20)
        assert 0 not in drawn and 60_000 in drawn and np.unique(drawn).size == 20
    miner.record_batch([60_000, 5], [2.0, 20_000.0])
    share = np.mean([5 in miner.get_hard_indices(1) for _ in range(2000)])
    assert share == pytest.approx(0.5, abs=0.05)  # 20,000 of 40,000


def test_asking_for_numbers_changes_nothing() -> None:
    asked, left = (HardExampleMiner(buffer_size=3000, seed=1) for _ in range(2))
    for miner in (asked, left):
        rng = np.random.default_rng(0)
        trail = []
        for _ in range(30):
            rows = rng.choice(20_000, 400, replace=False)
            miner.record_batch(rows, rng.exponential(size=400))
            if miner is asked:
                assert miner.get_statistics()["tracked_examples"] <= 3000
                miner.hardest(5)
                miner.state_dict()
            trail.append(miner.get_hard_indices(30).tolist())
        if miner is asked:
            expected = trail
    assert trail == expected


def test_a_pool_that_is_used_up_still_gives_what_is_left() -> None:
    miner = ready(
        buffer_size=10_000, max_times_sampled=1, loss_threshold_percentile=50.0, hard_fraction=1.0
    )
    miner.record_batch(np.arange(10_000), np.arange(10_000.0))
    drawn = np.concatenate([miner.get_hard_indices(300) for _ in range(20)])
    assert sorted(drawn.tolist()) == list(range(5_000, 10_000))
    batch = miner.create_mixed_batch_indices(64, 100)
    assert batch.size == 64 and batch.max() < 100


def noisy_share_of_what_is_mined(with_reference: bool) -> tuple[float, float]:
    """Train on labels of which a fifth are random; (share of noise mined, share of noise)."""
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(12, 5, generator=generator)

    def data(rows: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        features = torch.randn(rows, 12, generator=generator)
        labels = (features @ teacher).argmax(dim=1)
        noisy = rng.random(rows) < 0.2
        shift = torch.from_numpy(rng.integers(1, 5, rows))
        return features, torch.where(torch.from_numpy(noisy), (labels + shift) % 5, labels), noisy

    def fit(student: torch.nn.Linear, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(student(x), y, reduction="none")
        student.zero_grad()
        losses.mean().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.3 * parameter.grad
        return losses.detach()

    torch.manual_seed(0)
    held_out, reference = data(4000), torch.nn.Linear(12, 5)
    for _ in range(300):
        fit(reference, *held_out[:2])
    x, y, noisy = data(4000)
    with torch.no_grad():
        reference_losses = torch.nn.functional.cross_entropy(reference(x), y, reduction="none")
    student = torch.nn.Linear(12, 5)
    miner = ready(buffer_size=4000, max_times_sampled=1000, hard_fraction=0.5, seed=0)
    for _ in range(150):
        rows = torch.from_numpy(miner.create_mixed_batch_indices(128, 4000))
        losses = fit(student, x[rows], y[rows])
        extra = {"reference_losses": reference_losses[rows]} if with_reference else {}
        miner.record_batch(rows, losses, **extra)
    drawn = np.zeros(4000)
    for example in miner.hardest(4000):
        drawn[example.index] = example.times_sampled
    assert drawn.sum() > 5000
    return float(drawn[noisy].sum() / drawn.sum()), float(noisy.mean())


def test_with_reference_losses_mining_does_not_collect_label_noise() -> None:
    share, base = noisy_share_of_what_is_mined(with_reference=True)
    assert share < 1.1 * base
    share, base = noisy_share_of_what_is_mined(with_reference=False)
    assert share > 2.5 * base


def drive(miner: HardExampleMiner, rng: np.random.Generator, steps: int) -> list:
    trail = []
    for _ in range(steps):
        batch = miner.create_mixed_batch_indices(32, 400)
        miner.record_batch(batch, rng.exponential(size=32), games=batch // 7)
        trail.append((batch.tolist(), miner.get_sample_weights(batch, count=True).tolist()))
    return trail


def test_saved_and_loaded_the_miner_goes_on_bit_for_bit(tmp_path) -> None:
    def new() -> HardExampleMiner:
        return HardExampleMiner(
            buffer_size=60, min_samples_before_mining=50, max_game_share=0.2, seed=11
        )

    whole = new()
    rng = np.random.default_rng(5)
    expected = drive(whole, rng, 60)
    first = new()
    rng = np.random.default_rng(5)
    got = drive(first, rng, 30)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = new()
    second._generator = np.random.default_rng(999)  # whatever it was, loading replaces it
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    got += drive(second, rng, 30)
    assert got == expected
    assert second.hardest(60) == whole.hardest(60)
    with pytest.raises(ValueError, match="capacity"):
        HardExampleMiner(buffer_size=61).load_state_dict(first.state_dict())


def test_seed_decides_and_the_global_generator_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    runs = [drive(ready(seed=s), np.random.default_rng(1), 5) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert np.random.get_state()[1].tolist() == before
    shared = np.random.default_rng(4)
    miner = ready(seed=shared)
    first = drive(miner, np.random.default_rng(1), 5)
    state, saved = shared.bit_generator.state, miner.state_dict()
    assert state != np.random.default_rng(4).bit_generator.state
    miner.reset()
    assert shared.bit_generator.state == state  # others draw from it as well
    miner.load_state_dict(saved)
    miner.reset()
    assert shared.bit_generator.state == state
    assert miner.get_statistics()["tracked_examples"] == 0
    assert drive(miner, np.random.default_rng(1), 5) == first


def test_a_batch_far_larger_than_the_data_set_is_whole_passes_over_it() -> None:
    miner = ready(hard_fraction=0.0, seed=3)
    batch = miner.create_mixed_batch_indices(1_000_003, [5, 2, 11])  # in loops: minutes
    assert sorted(np.unique(batch, return_counts=True)[1].tolist()) == [333_334, 333_334, 333_335]
    assert len({tuple(batch[:50]), tuple(batch[50:100]), tuple(batch[100:150])}) == 3
    before = miner.state_dict()["generator"]
    with pytest.raises(ValueError, match="batch_size must be .* below 16777217"):
        miner.create_mixed_batch_indices(10**15, [5, 2, 11])
    assert miner.state_dict()["generator"] == before


def test_hardness_stays_finite_whatever_is_recorded() -> None:
    miner = ready(uncertainty_weight=1e6, surprise_weight=1e6)
    with pytest.raises(ValueError, match="uncertainty_weight"):
        ready(uncertainty_weight=1e308)
    for sign in (1.0, -1.0, 1.0):
        miner.record_batch(
            [0, 1, 2], [sign * 1e149, 1.0, 2.0], [1e149, 1.0, 1.0], surprises=[1e149, 0, 0]
        )
        miner.record_batch([0, 3], [sign * 1e308, sign * 1e308], [-1e308, 1e308])
    assert miner.get_statistics()["skipped_non_finite"] == 6
    hardest = miner.hardest(9)
    assert [example.index for example in hardest] == [0, 2, 1]
    assert all(math.isfinite(e.hardness) and math.isfinite(e.loss) for e in hardest)
    assert math.isfinite(miner.get_statistics()["hardness_threshold"])
    ready().load_state_dict(miner.state_dict())
