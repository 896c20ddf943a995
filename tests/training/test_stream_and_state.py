from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.enhancements import HardExampleMiner
from ringrift_pipeline.training.state import StateError, load_state, save_state
from ringrift_pipeline.training.stream import BatchStream, RowsExhausted


def stream(scores: object = None, limit: float = 8.0, miner: object = None) -> BatchStream:
    return BatchStream(np.arange(100, 200), scores, 1.0, limit, 5, miner)  # type: ignore[arg-type]


def test_a_uniform_pass_visits_every_row_once() -> None:
    batches = stream()
    drawn = np.concatenate([batches.next(20) for _ in range(5)])
    assert sorted(drawn) == list(range(100, 200))
    assert batches.max_visits == 1 and batches.visited == 100
    assert not np.array_equal(drawn[:20], batches.next(20))


def test_better_games_are_drawn_more_often() -> None:
    scores = np.where(np.arange(100) < 50, 0.9, 0.3)
    batches = stream(scores, limit=1000)
    drawn = np.concatenate([batches.next(100) for _ in range(40)])
    assert np.mean(drawn < 150) == pytest.approx(0.75, abs=0.01)


def test_no_row_is_visited_more_often_than_allowed() -> None:
    batches = stream(np.where(np.arange(100) < 5, 1.0, 0.01), limit=3)
    drawn = [batches.next(10) for _ in range(30)]
    assert np.bincount(np.concatenate(drawn)).max() == 3 == batches.max_visits
    with pytest.raises(RowsExhausted, match="sample_reuse_limit"):
        batches.next(10)


def test_the_best_rows_being_spent_the_others_are_drawn_without_them() -> None:
    batches = stream(np.where(np.arange(100) < 5, 1.0, 1e-4), limit=3)
    drawn = [batches.next(10) for _ in range(25)]
    saved = batches.state_dict()
    drawn += [batches.next(10) for _ in range(5)]
    assert np.array_equal(np.bincount(np.concatenate(drawn))[100:], np.full(100, 3))
    assert batches.epoch < 20  # by their quality they would take 50
    resumed = stream(np.where(np.arange(100) < 5, 1.0, 1e-4), limit=3)
    resumed.load_state_dict(saved)
    assert all(np.array_equal(resumed.next(10), batch) for batch in drawn[25:])


def test_hard_examples_take_their_share() -> None:
    miner = HardExampleMiner(buffer_size=50, hard_fraction=0.5, loss_threshold_percentile=0.0)
    miner.load_examples(np.arange(150, 160), np.ones(10))
    batch = stream(miner=miner).next(20)
    assert len(batch) == 20 and set(range(150, 160)) <= set(batch.tolist())


@settings(max_examples=20)
@given(st.integers(0, 30), st.integers(1, 37))
def test_a_restored_stream_goes_on_with_the_same_rows(before: int, size: int) -> None:
    scores = np.linspace(0.2, 1.0, 100)
    whole, broken = stream(scores, limit=50), stream(scores, limit=50)
    for _ in range(before):
        assert np.array_equal(whole.next(size), broken.next(size))
    resumed = stream(scores, limit=50)
    resumed.load_state_dict(broken.state_dict())
    for _ in range(10):
        assert np.array_equal(whole.next(size), resumed.next(size))
    with pytest.raises(ValueError, match="another window"):
        BatchStream(np.arange(3), None, 1.0, 8.0, 5).load_state_dict(broken.state_dict())


def same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        assert isinstance(b, dict)
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        assert isinstance(b, list | tuple)
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)  # type: ignore[arg-type]
    return a == b


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**130), 2**130), st.floats(), st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(tree=TREES)
def test_any_tree_comes_back_as_it_was(tree: object, tmp_path_factory: object) -> None:
    folder = tmp_path_factory.mktemp("state")  # type: ignore[attr-defined]
    state = {"tree": tree, 3: torch.arange(4)}
    save_state(folder, state)
    assert same(load_state(folder), state)


def test_tensors_arrays_and_scalars_keep_their_types_and_bits(tmp_path: Path) -> None:
    state = {
        "tensors": [
            torch.randn(3, 4, dtype=dtype)
            if dtype.is_floating_point
            else torch.ones(2, dtype=dtype)
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
        ]
        + [torch.tensor(float("nan")).reshape(())[None][:0], torch.tensor(2.5)],
        "arrays": [
            np.arange(6).astype(dtype).reshape(2, 3)
            for dtype in ("u8", "f4", "f8", "?", "i2", ">i4")
        ]
        + [np.zeros((0, 3)), np.array(7.5)],
        "scalars": (np.float64(0.1), np.int64(-3), np.uint64(2**64 - 1), np.bool_(True)),
        "rng": np.random.default_rng(5).bit_generator.state,
        "odd": [math.inf, -math.inf, b"\x00\xff"],
        "shared": [torch.ones(4)] * 2,
    }
    save_state(tmp_path, state)
    assert same(load_state(tmp_path), state)


def test_states_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StateError, match=r"state\['a'\]\[1\] is a set"):
        save_state(tmp_path, {"a": [1, {2}]})
    with pytest.raises(StateError, match="Python objects"):
        save_state(tmp_path, {"a": np.array([None])})
    with monkeypatch.context() as patched:  # nothing is saved that could not be read again
        patched.setattr("ringrift_pipeline.training.state.MOST", 10_000)
        with pytest.raises(StateError, match="cannot be saved: it has .* bytes, of which 10000"):
            save_state(tmp_path, {"records": [{"step": step} for step in range(1000)]})
        patched.setattr("ringrift_pipeline.store.bounded.MOST_VALUES", 1000)
        with pytest.raises(StateError, match=r"more than 1000 values.*checkpoint_every"):
            save_state(tmp_path, {"records": [0] * 3000})
    with pytest.raises(StateError, match="holds no training state"):
        load_state(tmp_path / "absent")
    save_state(tmp_path, {"a": torch.ones(3)})
    (tmp_path / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(StateError, match="holds no training state"):
        load_state(tmp_path)
