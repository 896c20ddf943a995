"""Per-sample losses against formulas written out; the tracker against a plain dictionary."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.enhancements import FacadeConfig
from ringrift_pipeline.enhancements.per_sample_loss import (
    PerSampleLossRecord,
    PerSampleLossTracker,
    compute_loss_parts,
    compute_per_sample_loss,
)


def formula_policy(logits: list[float], target: list[float], legal: list[bool]) -> float:
    top = max(x for x, ok in zip(logits, legal, strict=True) if ok)
    total = sum(math.exp(x - top) for x, ok in zip(logits, legal, strict=True) if ok)
    return -sum(
        t * (x - top - math.log(total))
        for x, t, ok in zip(logits, target, legal, strict=True)
        if ok and t
    )


def random_batch(seed: int, size: int = 5, actions: int = 7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, actions, generator=generator)
    legal = torch.rand(size, actions, generator=generator) < 0.6
    legal[:, 0] = True
    target = torch.rand(size, actions, generator=generator) * legal
    return logits, target / target.sum(dim=1, keepdim=True), legal


@pytest.mark.parametrize("how", ["mask", "inf", "both"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_masked_policy_is_the_cross_entropy_over_legal_actions(how: str, seed: int) -> None:
    logits, target, legal = random_batch(seed)
    given_logits = logits.clone() if how == "mask" else logits.masked_fill(~legal, -math.inf)
    given_logits.requires_grad_()
    parts = compute_loss_parts(
        given_logits,
        target,
        torch.zeros(5),
        torch.zeros(5),
        legal_mask=None if how == "inf" else legal,
    )
    expected = [
        formula_policy(a, b, c)
        for a, b, c in zip(logits.tolist(), target.tolist(), legal.tolist(), strict=True)
    ]
    torch.testing.assert_close(parts.policy, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(parts.total.sum(), given_logits)
    softmax = logits.masked_fill(~legal, -math.inf).softmax(dim=1)
    torch.testing.assert_close(gradient, softmax - target, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("validate", [True, False])
def test_minus_infinity_with_zero_target_is_finite(validate: bool) -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    target = torch.tensor([[0.25, 0.0, 0.75]])
    loss = compute_per_sample_loss(
        logits, target, torch.zeros(1, 1), torch.zeros(1), validate=validate
    )
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 0.0
    index = compute_per_sample_loss(
        logits, torch.tensor([2]), torch.zeros(1), torch.zeros(1), validate=validate
    )
    assert index.item() == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_a_row_without_policy_target_has_no_policy_loss() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    soft = torch.zeros(3, 4)
    soft[1, 2] = 1.0
    index = torch.tensor([-100, 2, -100])
    dead = logits.masked_fill(torch.tensor([[True], [False], [False]]), -math.inf)
    for scores, target in ((logits, soft), (logits, index), (dead, soft)):
        parts = compute_loss_parts(scores, target, torch.zeros(3), torch.ones(3))
        assert parts.policy[0] == 0.0 and parts.policy[2] == 0.0 and parts.policy[1] > 0.0
        (gradient,) = torch.autograd.grad(parts.total.sum(), logits, retain_graph=True)
        assert torch.isfinite(gradient).all() and gradient[0].abs().sum() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_single(dtype: torch.dtype) -> None:
    logits, target, legal = random_batch(3)
    half = logits.to(dtype)
    got = compute_per_sample_loss(
        half, target, torch.zeros(5, dtype=dtype), torch.zeros(5), legal_mask=legal
    )
    want = compute_per_sample_loss(
        half.float(), target, torch.zeros(5), torch.zeros(5), legal_mask=legal
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_scalar_value_is_the_squared_error_of_the_raw_prediction() -> None:
    logits, target, _ = random_batch(1)
    prediction = torch.tensor([2.5, -3.0, 0.5, 0.0, 1.0])
    wanted = torch.tensor([1.0, -1.0, 0.0, 0.0, 1.0])
    expected = (prediction - wanted) ** 2
    for a in (prediction, prediction[:, None]):
        for b in (wanted, wanted[:, None], wanted.double()):
            parts = compute_loss_parts(logits, target, a, b, 0.5, value_weight=2.0)
            assert torch.equal(parts.value, expected)
            torch.testing.assert_close(parts.total, 0.5 * parts.policy + 2.0 * expected)


def test_seat_values_as_logits_probabilities_and_winning_seat() -> None:
    logits, target, _ = random_batch(2)
    seats = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor(
        [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1], [0.25] * 4, [0, 1, 0, 0]],
        dtype=torch.float32,
    )
    expected = torch.tensor(
        [
            formula_policy(a, b, [True] * 4)
            for a, b in zip(seats.tolist(), wanted.tolist(), strict=True)
        ]
    )
    auto = compute_loss_parts(logits, target, seats, wanted)
    torch.testing.assert_close(auto.value, expected)
    given_probabilities = compute_loss_parts(
        logits, target, seats.softmax(dim=1), wanted, value_kind="probabilities"
    )
    torch.testing.assert_close(given_probabilities.value, expected)
    winner = torch.tensor([0, 1, 3, 2, 1])
    by_index = compute_loss_parts(logits, target, seats, winner)
    one_hot = torch.nn.functional.one_hot(winner, 4).float()
    torch.testing.assert_close(
        by_index.value, compute_loss_parts(logits, target, seats, one_hot).value
    )


def test_two_seats_use_only_their_columns_of_a_four_seat_head() -> None:
    logits, target, _ = random_batch(2)
    head = torch.randn(5, 4)
    head[:, 2:] = -math.inf
    wanted = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]] * 2 + [[0.5, 0.5, 0, 0]])
    parts = compute_loss_parts(logits, target, head, wanted)
    narrow = compute_loss_parts(logits, target, head[:, :2], wanted[:, :2])
    torch.testing.assert_close(parts.value, narrow.value)


def test_win_draw_loss_from_results_and_from_distributions() -> None:
    logits, target, _ = random_batch(4)
    head = torch.randn(5, 3)
    results = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.25])
    spread = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.75, 0.25]])
    expected = -(spread * head.log_softmax(dim=1)).sum(dim=1)
    for wanted, kind in ((results, "auto"), (results[:, None], "wdl"), (spread, "wdl")):
        parts = compute_loss_parts(logits, target, head, wanted, value_kind=kind)
        torch.testing.assert_close(parts.value, expected)


def test_reduction() -> None:
    logits, target, legal = random_batch(5)
    value, wanted = torch.randn(5), torch.randn(5)
    each = compute_per_sample_loss(logits, target, value, wanted, 1.0, "none", legal_mask=legal)
    assert each.shape == (5,)
    for how in ("mean", "sum"):
        got = compute_per_sample_loss(logits, target, value, wanted, 1.0, how, legal_mask=legal)
        torch.testing.assert_close(got, getattr(each, how)())
    with pytest.raises(ValueError, match="reduction"):
        compute_per_sample_loss(logits, target, value, wanted, 1.0, "average")


def test_weighting_samples_weights_their_gradients() -> None:
    logits, target, _ = random_batch(6)
    logits.requires_grad_()
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0])
    each = compute_per_sample_loss(logits, target, torch.zeros(5), torch.zeros(5))
    (weighted,) = torch.autograd.grad((weights * each).sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad(each.sum(), logits)
    torch.testing.assert_close(weighted, plain * weights[:, None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_targets": torch.full((2, 3), 0.5)}, "sum to 1"),
        ({"policy_targets": torch.tensor([[2.0, -1.0, 0.0], [1.0, 0, 0]])}, "negative"),
        ({"policy_targets": torch.tensor([[math.nan, 1.0, 0.0], [1.0, 0, 0]])}, "finite"),
        ({"policy_targets": torch.tensor([0, 3])}, r"\[0, 3\)"),
        ({"policy_targets": torch.tensor([0.0, 1.0])}, "integer"),
        ({"policy_targets": torch.tensor([0, 1, 2])}, "policy_targets must be"),
        ({"policy_logits": torch.zeros(3)}, "policy_logits"),
        ({"value_pred": torch.zeros(3)}, "value"),
        ({"value_targets": torch.zeros(2, 2)}, "scalar"),
        ({"value_targets": torch.tensor([math.inf, 0.0])}, "not finite"),
        ({"value_pred": torch.zeros(3, 1), "value_targets": torch.zeros(3)}, "samples"),
        ({"value_kind": "tanh"}, "value_kind"),
        ({"value_pred": torch.zeros(2, 3), "value_targets": torch.tensor([2.0, 0.0])}, "-1, 1"),
        (
            {
                "value_pred": torch.tensor([[3.0, -1.0]] * 2),
                "value_targets": torch.tensor([[1.0, 0.0]] * 2),
                "value_kind": "probabilities",
            },
            "logits",
        ),
        ({"legal_mask": torch.ones(2, 3)}, "legal_mask"),
        ({"legal_mask": torch.tensor([[True] * 3, [False, True, True]])}, "illegal .* row 1"),
        ({"policy_logits": torch.tensor([[-math.inf, 0, 0], [0, 0, 0]])}, "illegal .* row 0"),
        ({"policy_weight": -1.0}, "policy_weight"),
        ({"value_weight": math.nan}, "value_weight"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    arguments = {
        "policy_logits": torch.zeros(2, 3),
        "policy_targets": torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]),
        "value_pred": torch.zeros(2),
        "value_targets": torch.zeros(2),
    }
    with pytest.raises(ValueError, match=message):
        compute_per_sample_loss(**{**arguments, **change})


def test_a_model_that_broke_gives_nan_not_an_error() -> None:
    logits = torch.tensor([[math.nan, 0.0], [0.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = compute_per_sample_loss(logits, target, torch.zeros(2), torch.zeros(2))
    assert torch.isnan(loss[0]) and loss[1].item() == pytest.approx(math.log(2))


OVERFLOWED = {
    "no finite logit": [-math.inf, -math.inf, -math.inf],
    "NaN": [-math.inf, math.nan, 0.0],
    "infinite": [-math.inf, math.inf, 0.0],
    "huge": [-math.inf, 6e4, -1.0],
    "huge and negative": [-math.inf, -1e38, -2e38],
}


@pytest.mark.parametrize("logits", OVERFLOWED.values(), ids=OVERFLOWED)
@pytest.mark.parametrize("indexed", (True, False))
@pytest.mark.parametrize("masked", (True, False))
def test_logits_that_overflowed_give_a_loss_that_is_not_finite(
    logits: list[float], indexed: bool, masked: bool
) -> None:
    """Under a target, in this row or in another of the batch; what the mask forbids is refused."""
    rows = torch.tensor([logits, [0.0, -math.inf, 0.0], [0.0, 0.0, -math.inf]])
    rows.requires_grad_()
    actions = torch.tensor([0, 1, 0])
    targets = actions if indexed else torch.eye(3)[actions]
    mask = torch.tensor([[True] * 3, [True] * 3, [True, False, True]]) if masked else None
    zeros = torch.zeros(3)
    parts = compute_loss_parts(rows, targets, zeros, zeros, legal_mask=mask)
    assert not torch.isfinite(parts.policy[:2]).any()
    assert parts.policy[2].item() == pytest.approx(0.0 if masked else math.log(2))
    seats = compute_loss_parts(
        torch.zeros(3, 2), torch.zeros(3, 2), rows, targets, value_kind="logits"
    )
    assert not torch.isfinite(seats.value[:2]).any()
    forbidden = torch.tensor([[True] * 3, [True, False, True], [True] * 3])
    with pytest.raises(ValueError, match="illegal .* row 1"):
        compute_loss_parts(rows, targets, zeros, zeros, legal_mask=forbidden)


def test_a_row_without_legal_actions_and_without_target_is_no_overflow() -> None:
    logits = torch.tensor([[-math.inf, -math.inf], [-math.inf, 0.0]])
    zeros = torch.zeros(2)
    targets = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert compute_loss_parts(logits, targets, zeros, zeros).policy.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="illegal .* row 1"):
        compute_loss_parts(logits, targets.flip(1), zeros, zeros)


def test_unchecked_logits_without_a_finite_one_give_an_infinite_loss() -> None:
    logits = torch.tensor([[-math.inf, -math.inf, 5.0], [0.0, 0.0, -math.inf]])
    zeros, mask = torch.zeros(2), torch.tensor([[True, True, False], [True, True, True]])
    for targets in (torch.tensor([0, 1]), torch.eye(3)[:2]):
        parts = compute_loss_parts(logits, targets, zeros, zeros, legal_mask=mask, validate=False)
        assert parts.policy.tolist() == [math.inf, pytest.approx(math.log(2))]
    idle = compute_loss_parts(
        logits, torch.tensor([-100, 1]), zeros, zeros, legal_mask=mask, validate=False
    )
    assert idle.policy.tolist() == [0.0, pytest.approx(math.log(2))]


# --- the tracker ---------------------------------------------------------------------------


class PlainTracker:
    """What the tracker must do, as slowly as one likes."""

    def __init__(self, max_samples: int, history: int) -> None:
        self.samples: OrderedDict[int, dict[int, float]] = OrderedDict()
        self.max_samples, self.history = max_samples, history

    def record(self, indices: list[int], losses: list[float], epoch: int) -> None:
        last = {}
        for index, loss in zip(indices, losses, strict=True):
            last.pop(index, None)
            last[index] = loss
        last = dict(list(last.items())[-self.max_samples :])
        for index in last:
            if index in self.samples:
                self.samples.move_to_end(index)
        new = [index for index in last if index not in self.samples]
        while len(self.samples) + len(new) > self.max_samples:
            self.samples.popitem(last=False)
        for index in new:
            self.samples[index] = {}
        for index, loss in last.items():
            self.samples[index][epoch] = loss


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 1)),
        max_size=40,
    ),
    st.integers(1, 9),
)
@settings(max_examples=60)
def test_tracker_equals_a_plain_one(batches: list, max_samples: int) -> None:
    tracker = PerSampleLossTracker(max_samples=max_samples, history_epochs=2)
    plain = PlainTracker(max_samples, 2)
    epoch = 0
    for number, (indices, step) in enumerate(batches):
        epoch += step
        losses = [float(number + k / 10) for k in range(len(indices))]
        tracker.record_batch(indices, losses, epoch, number)
        plain.record(indices, losses, epoch)
        if number == len(batches) // 2:  # a save in the middle changes nothing
            restored = PerSampleLossTracker(max_samples=max_samples, history_epochs=2)
            restored.load_state_dict(tracker.state_dict())
            tracker = restored
    assert tracker.get_statistics()["tracked_samples"] == len(plain.samples)
    for index in range(31):
        expected = list(plain.samples.get(index, {}).items())[-2:]
        assert tracker.get_sample_history(index) == expected
    newest = {i: list(h.values())[-1] for i, h in plain.samples.items()}
    hardest = sorted(newest.items(), key=lambda item: (-item[1], item[0]))
    assert tracker.get_hardest_samples(5) == hardest[:5]


def test_least_recently_seen_is_evicted_not_the_recently_touched() -> None:
    tracker = PerSampleLossTracker(max_samples=3)
    tracker.record_batch([1, 2, 3], [1.0, 2.0, 3.0], epoch=0)
    tracker.record_batch([1], [1.5], epoch=0)  # 1 is now the newest, 2 the oldest
    tracker.record_batch([4], [4.0], epoch=0)
    assert tracker.get_record(2) is None
    assert tracker.get_record(1) == PerSampleLossRecord(
        1, 1.5, pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True), 0, 0
    )


def test_record_keeps_policy_and_value_parts() -> None:
    tracker = PerSampleLossTracker(max_samples=10)
    tracker.record_batch(
        torch.tensor([7, 5]),
        torch.tensor([1.5, 3.0]),
        epoch=2,
        batch_idx=4,
        policy_losses=torch.tensor([1.0, 2.0]),
        value_losses=np.array([0.5, 1.0]),
    )
    assert tracker.get_record(7) == PerSampleLossRecord(7, 1.5, 1.0, 0.5, 2, 4)
    statistics = tracker.get_statistics()
    assert statistics["mean_loss"] == 2.25
    assert statistics["mean_policy_loss"] == 1.5
    assert statistics["mean_value_loss"] == 0.75
    assert statistics["max_loss"] == 3.0
    tracker.reset_epoch()
    assert tracker.get_hardest_samples() == []
    assert tracker.get_sample_history(5) == [(2, 3.0)]


def test_learning_curves() -> None:
    tracker = PerSampleLossTracker(max_samples=10, learned_loss=1.0, history_epochs=2)
    curves = {
        0: [0.5, 0.4, 0.3, 0.2],  # early
        1: [2.0, 0.9, 0.8, 0.7],  # early: the second epoch
        2: [3.0, 3.0, 2.0, 0.5],  # late
        3: [3.0, 0.5, 2.0, 2.5],  # forgotten
        4: [3.0, 2.9, 2.8, 2.7],  # never
        5: [0.5, 2.0, 0.5, 0.5],  # learned, forgotten, learned again: late
    }
    assert tracker.get_learning_curve(0) == "unseen"
    for epoch in range(4):
        tracker.record_batch(list(curves), [c[epoch] for c in curves.values()], epoch)
        tracker.reset_epoch()
    found = {name: set(indices.tolist()) for name, indices in tracker.learning_curves().items()}
    assert found == {"early": {0, 1}, "late": {2, 5}, "forgotten": {3}, "never_learned": {4}}
    assert [tracker.get_learning_curve(i) for i in (1, 2, 3, 4)] == [
        "early",
        "late",
        "forgotten",
        "never_learned",
    ]
    assert tracker.get_forgetting_count(5) == 1 and tracker.get_forgetting_count(0) == 0


def test_learned_threshold_is_half_the_first_epochs_mean() -> None:
    tracker = PerSampleLossTracker(max_samples=10)
    tracker.record_batch([0, 1], [1.0, 3.0], epoch=0)
    assert tracker.get_learning_curve(0) == "unknown"
    tracker.record_batch([0, 1], [0.9, 2.0], epoch=1)
    assert tracker.learned_loss == 1.0
    assert tracker.get_learning_curve(0) == "early"
    assert tracker.get_learning_curve(1) == "never_learned"


def test_losses_near_the_largest_float_leave_a_state_that_loads() -> None:
    tracker = PerSampleLossTracker(8)
    tracker.record_batch([0, 1, 2], [1.7e308, 1.7e308, 1.0], 0, 0)
    tracker.reset_epoch()
    tracker.record_batch([0], [1.0], 1, 0)
    state = tracker.state_dict()
    assert state["learned_loss"] == 0.5 and state["skipped"] == 2
    PerSampleLossTracker(8).load_state_dict(state)


def test_tracker_refuses_and_skips_what_it_must() -> None:
    tracker = PerSampleLossTracker(max_samples=4)
    with pytest.raises(ValueError, match="losses must have shape"):
        tracker.record_batch([1, 2, 3], [1.0, 2.0], epoch=0)
    with pytest.raises(ValueError, match="rows in"):
        tracker.record_batch([-1], [1.0], epoch=0)
    with pytest.raises(ValueError, match="integers"):
        tracker.record_batch([0.5], [1.0], epoch=0)
    assert tracker.record_batch([1, 2, 3], [1.0, math.nan, math.inf], epoch=0) == 1
    statistics = tracker.get_statistics()
    assert statistics["skipped_non_finite"] == 2 and statistics["mean_loss"] == 1.0
    with pytest.raises(ValueError, match="max_samples"):
        PerSampleLossTracker(max_samples=0)
    other = PerSampleLossTracker(max_samples=5)
    with pytest.raises(ValueError, match="capacity"):
        other.load_state_dict(tracker.state_dict())


def test_empty_tracker_has_statistics() -> None:
    statistics = PerSampleLossTracker().get_statistics()
    assert statistics["mean_loss"] == 0.0 and statistics["tracked_samples"] == 0


def test_a_loss_of_nothing_is_refused() -> None:
    arguments = torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2)
    with pytest.raises(ValueError, match="policy_weight and value_weight must not both be 0"):
        compute_per_sample_loss(*arguments, 0.0, value_weight=0.0)
    with pytest.raises(ValueError, match="policy_weight and value_weight must not both be 0"):
        FacadeConfig(policy_weight=0.0, value_weight=0.0)


@pytest.mark.parametrize(
    ("entry", "damage"),
    [
        ("queue", lambda queue: queue[:, :0]),
        ("queue", lambda queue: queue[:, 1:]),
        ("queue", lambda queue: queue[:, [0, 0, *range(2, queue.shape[1])]]),
        ("queue", lambda queue: queue.flip(1)),
        ("queue", lambda queue: torch.stack([queue[0], queue[1] + 1])),
        ("stamp", lambda stamp: torch.full_like(stamp, -1)),
        ("stamp", lambda stamp: stamp.flip(0)),
        ("touches", lambda touches: touches - 1),
        ("touches", lambda touches: 0),
    ],
)
@pytest.mark.parametrize("full", [True, False])
def test_a_queue_that_would_be_searched_for_ever_is_refused(entry, damage, full: bool) -> None:
    """Dropping the oldest goes through the queue until it has found enough of them."""
    tracker = PerSampleLossTracker(4)
    tracker.record_batch([7, 3, 9, 1] if full else [7, 3, 9], [1.0] * (4 if full else 3), 0)
    saved = tracker.state_dict()
    other = PerSampleLossTracker(4)
    with pytest.raises(ValueError, match=entry):
        other.load_state_dict({**saved, entry: damage(saved[entry])})
    assert other.get_statistics()["tracked_samples"] == 0
    other.load_state_dict(saved)
    for tracked in (tracker, other):
        tracked.record_batch([20, 21], [2.0, 2.0], 1)
        assert [i for i in (7, 3, 9, 1) if tracked.get_record(i)] == ([9, 1] if full else [3, 9])
