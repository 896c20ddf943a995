"""What the checks take for a number, a whole number, an array, and what they say of the rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ringrift_pipeline.enhancements import argument_checks as checks
from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.draw_counts import DrawCounts
from ringrift_pipeline.enhancements.training_batch import read_batch
from ringrift_pipeline.enhancements.training_statistics import check_figures

HUGE = 10**5000  # more digits than Python prints


@pytest.mark.parametrize("value", [3, 3.0, np.float16(3), np.int8(3), np.uint64(3), np.float64(3)])
def test_real_numbers_of_every_kind_are_taken(value: Any) -> None:
    assert checks.check_number("x", value, 3.0, 3.0) == 3.0
    assert type(checks.check_number("x", value)) is float
    if not isinstance(value, float | np.floating):
        assert checks.check_whole("x", value, 3, 4) == 3
        assert type(checks.check_whole("x", value, 3)) is int


@pytest.mark.parametrize(
    "value",
    [HUGE, -HUGE, 10**400, np.complex64(1 + 1j), np.complex128(1), np.timedelta64(1, "D"), 1j, True,
     np.True_, "1", None, np.array(1.0), torch.tensor(1.0), np.longdouble("1e4000")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_number_that_a_float_holds_is_refused_by_name(value: Any) -> None:
    for check in (
        checks.check_number,
        checks.check_share,
        lambda n, v: checks.check_whole(n, v, 0),
    ):
        with pytest.raises(ValueError, match=r"\bwidth\b"):
            check("width", value)
    form = forms.record(width=forms.any_number)
    if not isinstance(value, np.longdouble):  # which is infinite then
        with pytest.raises(ValueError, match=r"\bwidth\b"):
            form("", {"width": value})
        if value is not None:
            with pytest.raises(ValueError, match="val_loss"):
                check_figures(value, None)


def test_whole_numbers_end_where_arrays_do() -> None:
    assert checks.check_whole("x", 2**63 - 1, 0) == 2**63 - 1
    with pytest.raises(ValueError, match=r"x must be .* below 2\*\*63"):
        checks.check_whole("x", 2**63, 0)
    with pytest.raises(ValueError, match=r"seed must be .* below 2\*\*128"):
        checks.check_whole("seed", 2**128, 0, checks.LARGEST_SEED)
    for bad in (0.0, 1.0, 1.0 - 1e-12, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            checks.check_share("confidence", bad)


@pytest.mark.parametrize("value", [np.array(["a", "b"]), np.zeros(0), torch.ones(2), [], None, "c"])
def test_a_choice_is_a_text(value: Any) -> None:
    assert checks.check_choice("mode", "b", ("a", "b")) == "b"
    with pytest.raises(ValueError, match="mode must be one of a, b"):
        checks.check_choice("mode", value, ("a", "b"))


@pytest.mark.parametrize(
    "values",
    [
        np.ma.masked_array([1.0, 2.0], [True, False]),
        torch.zeros(2).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.float8_e5m2),
        [1.0, [2.0]],
        [10**400],
    ],
)
def test_arrays_that_hide_or_lack_numbers_are_refused_by_name(values: Any) -> None:
    with pytest.raises(ValueError, match="losses"):
        checks.number_array("losses", values)


def test_masked_features_do_not_show_what_they_hide() -> None:
    masked = np.ma.masked_array(np.zeros((2, 3), dtype=np.float32), mask=True)
    batch = {"features": masked, "policy_targets": torch.ones(2, 1), "value_targets": torch.ones(2)}
    with pytest.raises(ValueError, match="features .*masked"):
        read_batch(batch, torch.device("cpu"), tuple(batch))


def test_asking_how_often_a_row_was_drawn_takes_no_memory() -> None:
    counts = DrawCounts()
    counts.add(np.array([3, 3000]))
    size = counts._times.size
    asked = counts.of(np.array([3, 2**30, 3000, 4, 2**29]))
    assert asked.tolist() == [1, 0, 1, 0, 0] and asked.dtype == np.uint32
    assert counts._times.size == size < 10_000
    assert counts.of(np.zeros(0, dtype=np.int64)).size == 0
