"""Weights that are not finite are neither saved nor loaded; answers that are not name the position."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ringrift_pipeline.game import State, get_rules
from ringrift_pipeline.network import (
    Evaluator,
    NonFiniteModelError,
    NonFiniteOutputError,
    SymmetricEvaluator,
    load_model,
    save_model,
)

from .conftest import Positions, random_positions, spread
from .test_model import network

CONFIG = "square8_2p"


def poison(folder: Path, name: str, value: float) -> None:
    """Set a number of a tensor, in files that are whole."""
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights[name].view(-1)[3] = value
    data = safetensors.torch.save(weights, {"format": "ringrift-network/1"})
    path.write_bytes(data)
    sidecar = json.loads((folder / "model.json").read_text())
    sidecar["weights"] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "model.json").write_text(json.dumps(sidecar))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["stem.weight", "value.out.weight"])
def test_a_poisoned_model_is_not_loaded(tmp_path: Path, name: str, value: float) -> None:
    save_model(tmp_path, network("square"))
    load_model(tmp_path)
    poison(tmp_path, name, value)
    with pytest.raises(NonFiniteModelError, match=rf"model\.safetensors.* tensor {name} are not"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_poisoned_model_is_not_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    model = network("square").to(dtype)
    with torch.no_grad():
        model.policy.hidden.bias[2] = torch.nan
    with pytest.raises(NonFiniteModelError, match=r"1 of 16 .* policy\.hidden\.bias .*\(nan\) at"):
        save_model(tmp_path / "model", model)
    assert not (tmp_path / "model").exists()


def positions(count: int = 6) -> Positions:
    return spread(random_positions(CONFIG), count)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["policy", "value"])
def test_an_answer_that_is_not_finite_names_model_and_position(part: str, precision: str) -> None:
    rules, model, p = get_rules(CONFIG), network("square"), positions()
    with torch.no_grad():  # finite weights whose sums overflow
        layer = model.policy.kind_bias if part == "policy" else model.value.out
        layer.weight.fill_(3e38)
        layer.bias.fill_(3e38)
    evaluator = Evaluator(model, rules, "cpu", precision=precision, max_batch=4, name="model no. 7")
    with pytest.raises(NonFiniteOutputError, match=f"model no. 7 gives a {part}") as caught:
        evaluator.evaluate(p.states, p.moves, p.counts)
    row = caught.value.rows[0]
    record = json.loads(str(caught.value).partition("position: ")[2])
    assert State.from_record(record) == State.from_array(CONFIG, p.states[row])
    rows = caught.value.rows
    with pytest.raises(NonFiniteOutputError, match="model no. 7") as caught:
        SymmetricEvaluator(evaluator, 2).evaluate(p.states, p.moves, p.counts)
    assert set(rows) <= set(caught.value.rows) <= set(range(len(p.states)))
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
    assert str(again) == str(caught.value) and again.rows == caught.value.rows


def test_a_seat_of_minus_infinity_is_no_chance_of_zero() -> None:
    rules, model, p = get_rules(CONFIG), network("square"), positions()
    with torch.no_grad():
        model.value.out.bias[1] = -3e38
        model.value.out.weight[1] = -3e38
    with pytest.raises(NonFiniteOutputError, match="gives a value that is not finite"):
        Evaluator(model, rules, "cpu").evaluate(p.states, p.moves, p.counts)


def test_rows_are_those_of_the_whole_batch() -> None:
    """The first piece is fine, and one position of the second is not."""
    rules, model, p = get_rules(CONFIG), network("square"), positions(8)
    evaluator = Evaluator(model, rules, "cpu", max_batch=4)
    good = evaluator.evaluate(p.states, p.moves, p.counts)
    real, calls = evaluator._board, []

    def network_of(planes: np.ndarray, globals_: np.ndarray) -> tuple[np.ndarray, ...]:
        cells, bias, value = real(planes, globals_)
        calls.append(len(planes))
        if len(calls) == 2:
            value = value.copy()
            value[1, 0] = np.nan
        return cells, bias, value

    evaluator._board = network_of  # type: ignore[assignment]
    with pytest.raises(NonFiniteOutputError, match="1 of 4 positions") as caught:
        evaluator.evaluate(p.states, p.moves, p.counts)
    assert caught.value.rows == (5,)
    assert np.isfinite(good[1]).all()
