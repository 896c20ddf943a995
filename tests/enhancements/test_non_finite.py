"""A number that is not finite in a step: its rows are named, and it halts or goes on as it is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.non_finite import (
    MOST_NAMED,
    NonFiniteStepError,
    guilty_samples,
)
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.enhancements.training_facade import TrainingEnhancementsFacade

from .test_training_facade import Net, make_batch, new, steady, weights_of

BAD = (2, 5)  # samples of a batch


def poisoned(seed: int = 0) -> dict[str, Any]:
    """A batch whose rows 102 and 105 have NaN in the features."""
    batch = make_batch(seed)
    batch["indices"] = torch.arange(100, 108)
    batch["features"][2, 1] = torch.nan
    batch["features"][5, 0] = torch.nan
    return batch


def bad_gradient(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Finite losses; the gradient of the samples ``bad`` is NaN in the value head and below."""
    policy, value = model(batch["features"])
    losses = (value[:, 0] - batch["value_targets"]).square() + policy.square().mean(dim=1)
    bad = batch["bad"].nonzero()[:, 0]
    return losses.index_add(0, bad, torch.sqrt(value.float()[bad, 0] * 0.0))


def marked(seed: int, bad: tuple[int, ...] = ()) -> dict[str, Any]:
    batch = make_batch(seed)
    batch["indices"] = torch.arange(100, 108)
    batch["bad"] = torch.isin(torch.arange(8), torch.tensor(bad))
    return batch


def with_bad_gradients(**settings: Any) -> TrainingEnhancementsFacade:
    model = Net(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    config = FacadeConfig(**settings)
    return TrainingEnhancementsFacade(
        model=model, optimizer=optimizer, config=config, loss_fn=bad_gradient
    )


def unchanged(facade: TrainingEnhancementsFacade, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights_of(facade.model), before, strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_rows_of_a_loss_that_is_not_finite_are_named(precision: str) -> None:
    facade = new(precision=precision)
    steady(facade, 12)
    before = weights_of(facade.model)
    stats = facade.train_step(poisoned())
    assert stats.anomaly == "non_finite" and stats.rows == (102, 105)
    assert "sample 2, 5 of the step (data-set row 102, 105)" in stats.message
    assert unchanged(facade, before)
    assert facade.train_step(make_batch(3)).stepped


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("choice", ["skip", "halt"])
def test_without_a_monitor_a_loss_that_is_not_finite_is_no_overflow_of_its_scale(
    precision: str, choice: str
) -> None:
    facade = new(precision=precision, on_non_finite=choice, enable_anomaly_detection=False)
    facade.train_step(make_batch(0))
    if facade.scaler is not None:
        assert facade.scaler.get_scale() > 1.0  # so high that a gradient might overflow it
    before = weights_of(facade.model)
    if choice == "halt":
        with pytest.raises(NonFiniteStepError, match=r"the loss is nan.*row 102, 105") as caught:
            facade.train_step(poisoned())
        assert caught.value.rows == (102, 105)
    else:
        stats = facade.train_step(poisoned())
        assert stats.anomaly == "non_finite" and stats.rows == (102, 105)
        assert "the loss is nan" in stats.message and "overflowed" not in stats.message
    assert unchanged(facade, before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_overflow_in_the_forward_pass_names_every_row_that_overflowed(precision: str) -> None:
    facade = new(precision=precision)
    steady(facade, 12)
    batch = make_batch(0)
    batch["indices"] = torch.arange(100, 108)
    with torch.no_grad():
        facade.model.value.bias.fill_(3e38)  # of which the squared error has no float32
    stats = facade.train_step(batch)
    assert stats.anomaly == "non_finite" and stats.rows == tuple(range(100, 108))


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_rows_and_parameters_of_a_gradient_are_named(
    accumulation: int, clip: bool, precision: str
) -> None:
    facade = with_bad_gradients(
        enable_gradient_clipping=clip,
        precision=precision,
        gradient_accumulation_steps=accumulation,
    )
    for step in range(3 * accumulation):
        facade.train_step(marked(step))
    if facade.scaler is not None:
        facade.scaler.update(0.5)  # so low that it cannot be its fault
    before = weights_of(facade.model)
    calls = int(facade.model.calls)
    for step in range(accumulation - 1):
        facade.train_step(marked(step))
    stats = facade.train_step(marked(7, BAD))
    assert stats.anomaly == "non_finite" and np.isfinite(stats.loss)
    assert stats.rows == (102, 105)
    where = " of batch 1" if accumulation == 2 else ""
    assert f"by sample 2{where}, 5{where} of the step (data-set row 102, 105)" in stats.message
    assert "body.weight, body.bias, value.weight, value.bias" in stats.message
    assert "policy" not in stats.message
    assert unchanged(facade, before)
    assert int(facade.model.calls) == calls + accumulation  # looking for them left no trace


def test_looking_for_the_rows_leaves_the_random_state_alone() -> None:
    states = []
    for bad in ((), BAD):
        torch.manual_seed(3)
        with_bad_gradients().train_step(marked(0, bad))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("patience", [1, 5])
def test_halt_ends_training_at_the_first_one(kind: str, patience: int) -> None:
    settings = {"on_non_finite": "halt", "divergence_patience": patience}
    facade = with_bad_gradients(**settings) if kind == "gradient" else new(**settings)
    make = marked if kind == "gradient" else make_batch
    batches = [make(step) for step in range(4)]
    for batch in batches:
        assert facade.train_step(batch).stepped
    before = weights_of(facade.model)
    bad = marked(5, BAD) if kind == "gradient" else poisoned()
    with pytest.raises(NonFiniteStepError, match=r"halted before step 5.*row 102, 105") as caught:
        facade.train_step(bad)
    assert caught.value.rows == (102, 105)
    assert unchanged(facade, before) and facade.progress.rollbacks == 0
    assert all(p.grad is None for p in facade.model.parameters())
    assert facade.train_step(batches[0]).stepped


def test_halt_is_for_what_is_not_finite_and_not_for_spikes() -> None:
    facade = new(on_non_finite="halt")
    steady(facade, 15)
    batch = make_batch(0)
    batch["value_targets"] = batch["value_targets"] + 1e4
    assert facade.train_step(batch).anomaly == "spike"


def test_refused_batches_are_left_out_and_in_a_row_roll_back() -> None:
    facade = new(divergence_patience=3, max_rollbacks=1, gradient_accumulation_steps=2)
    assert facade.refuse_batch("row 4 is no data", (4,)).anomaly == "bad_data"  # before any step
    for step in range(25):  # twelve and a half of a step
        facade.train_step(make_batch(step % 7))
    before = weights_of(facade.model)
    stats = facade.refuse_batch("row 4 is no data", (4,))
    assert (stats.anomaly, stats.rows, stats.stepped) == ("bad_data", (4,), False)
    assert stats.message == "step left out: row 4 is no data" and unchanged(facade, before)
    assert facade.accumulator.pending_batches == 0
    found = [facade.refuse_batch("row 4 is no data") for _ in range(2)]
    assert [stats.anomaly for stats in found] == ["bad_data", "divergence"]
    assert "row 4 is no data" in found[1].message and "rollback 1" in found[1].message
    assert not found[1].should_stop
    found = [facade.refuse_batch("row 4 is no data") for _ in range(3)]
    assert found[-1].should_stop and "max_rollbacks" in found[-1].stop_reason


def test_a_refused_batch_halts_where_it_is_told_to() -> None:
    facade = new(on_non_finite="halt")
    with pytest.raises(NonFiniteStepError, match="before step 1: row 4 is no data") as caught:
        facade.refuse_batch("row 4 is no data", (4,))
    assert caught.value.rows == (4,) and facade.progress.skipped == 0


def test_rolling_back_from_outside_of_a_step() -> None:
    facade = new(snapshot_every=1000)
    with pytest.raises(NonFiniteStepError, match="no good state"):
        facade.roll_back("held-out loss is nan")
    first = weights_of(facade.model)
    steady(facade, 5)
    assert not unchanged(facade, first)
    message = facade.roll_back("held-out loss is nan", (3,))
    assert "the held-out loss is nan: back to the state of step 0" in message
    assert unchanged(facade, first) and facade.progress.rollbacks == 1
    halting = new(on_non_finite="halt")
    steady(halting, 5)
    before = weights_of(halting.model)
    with pytest.raises(NonFiniteStepError, match="held-out loss is nan"):
        halting.roll_back("held-out loss is nan")
    assert unchanged(halting, before)


def test_the_setting_reaches_the_facade() -> None:
    for choice in ("skip", "halt"):
        config = TrainingConfig().with_overrides({"stability.on_non_finite": choice})
        assert FacadeConfig.from_training_config(config, 10).on_non_finite == choice
    with pytest.raises(ValueError, match="on_non_finite"):
        FacadeConfig(on_non_finite="whatever")  # type: ignore[arg-type]


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=12))
def test_the_first_guilty_samples_are_found(size: int, bad: set[int]) -> None:
    asked = 0

    def finite(which: np.ndarray) -> bool:
        nonlocal asked
        asked += 1
        return not bad & set(which.tolist())

    expected = sorted(i for i in bad if i < size)[:MOST_NAMED]
    assert guilty_samples(finite, size) == expected
    assert asked <= 1 + 2 * max(1, len(expected)) * max(1, (size - 1).bit_length())
