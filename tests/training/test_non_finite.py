"""NaN and infinity in shards, windows, losses, states and models: each stops where it is first known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
from ringrift_pipeline.enhancements.non_finite import NonFiniteStepError
from ringrift_pipeline.network import (
    NetworkConfig,
    NonFiniteModelError,
    NonFiniteOutputError,
    RingRiftNetwork,
    save_model,
)
from ringrift_pipeline.selfplay import Interrupted, Plan, ShardError
from ringrift_pipeline.selfplay.shards import SHARD_FILE, open_shard
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import (
    BadRowsError,
    ResumeError,
    TableError,
    Window,
    WindowDataset,
    WindowError,
    average,
    build_ensemble,
    build_window,
    calibrate,
    calibrating,
    mine_hard_examples,
    open_window,
    score_games,
    tables,
    train,
)
from ringrift_pipeline.training import run as training_run
from ringrift_pipeline.training.auxiliary import load_heads, save_heads
from ringrift_pipeline.training.dataset import surprise_weights
from ringrift_pipeline.training.forward import held_out_losses
from ringrift_pipeline.training.judging import by_ensemble, by_network, row_losses
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.state import load_state, save_state

from .conftest import CONFIG
from .test_learning import changed
from .test_loop import prepare, stop_after

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OFF = {"quality__enabled": False, "mining__enabled": False}
NAN, INF = float("nan"), float("inf")
Edit = Callable[[Any], Any]


@pytest.fixture()
def window(store: Store, second: Plan) -> Window:
    return open_window(build_window(store, second).path)


def poison_shard(store: Store, name: str, value: Edit, row: int = 5) -> tuple[str, int]:
    """Change a column's value in a row of a landed shard that verifies; that row's game and ply."""
    kind = "selfplay-shard-0001"
    artefact = store.require(CONFIG, 1, kind)
    with open_shard(artefact.file(SHARD_FILE)) as reader:
        metadata, table = reader.schema.metadata, reader.read_all()
    values = table.column(name).to_pylist()
    values[row] = value(values[row])
    field = table.schema.field(name)
    changed = table.set_column(
        table.schema.get_field_index(name), field, pa.array(values, field.type)
    )
    with store.create(CONFIG, 1, kind, artefact.metadata) as draft:
        schema = table.schema.with_metadata(metadata)
        with (
            pa.OSFile(str(draft / SHARD_FILE), "wb") as sink,
            pa.ipc.new_file(sink, schema) as out,
        ):
            out.write_table(changed.cast(schema))
    return table.column("game_id")[row].as_py(), table.column("ply")[row].as_py()


SHARDS: list[tuple[str, Edit, str]] = [
    ("globals", lambda g: [*g[:3], NAN, *g[4:]], "globals that are not finite"),
    ("planes", lambda p: [7, *p[1:]], "a plane out of its range"),
    ("policy", lambda p: [NAN, *p[1:]], "a policy that is no distribution"),
    ("policy", lambda p: [p[0] + 0.5, *p[1:]], "a policy that is no distribution"),
    ("outcome", lambda _: [NAN, 1.0], "shares of the win"),
    ("outcome", lambda _: [-5e-4, 1.0005], "shares of the win"),
    ("search_value", lambda _: [INF, 0.0], "values after search"),
    ("root_value", lambda _: [1.5, -0.5], "values before search"),
    ("surprise", lambda _: -INF, "a surprise that is not finite"),
    ("reason", lambda _: 99, "an end that no game has"),
]


@pytest.mark.parametrize(("column", "value", "what"), SHARDS)
def test_no_window_is_built_of_a_poisoned_shard(
    store: Store, second: Plan, column: str, value: Edit, what: str
) -> None:
    game, ply = poison_shard(store, column, value)
    text = rf"selfplay-shard-0001 of generation 0001.*{what}.*game {game}, ply {ply}"
    with pytest.raises(WindowError, match=text):
        build_window(store, second)
    assert not store.artefacts(CONFIG, 1, "window")
    if column in ("policy", "outcome", "search_value", "surprise"):  # what scores are made of
        with pytest.raises(ShardError, match=rf"0001: {what}.*game {game}, ply {ply}"):
            score_games(store, second)


ROWS: list[tuple[str, Any, str]] = [
    ("globals", NAN, "globals that are not finite"),
    ("planes", 9, "a plane out of its range"),
    ("policy", NAN, "a policy that is no distribution"),
    ("policy", 3.0, "a policy that is no distribution"),
    ("outcome", NAN, "shares of the win"),
    ("outcome", -1.0, "shares of the win"),
    ("search_value", INF, "values after search"),
    ("surprise", NAN, "a surprise that is not finite"),
]


def poisoned(window: Window, column: str, value: Any, rows: list[int]) -> Window:
    """The window with the first number of a column changed in some rows."""
    values = np.array(getattr(window, column))
    for row in rows:
        at = window.offsets[row] if column == "policy" else row
        values[at : at + 1].reshape(-1)[0] = value
    return replace(window, **{column: values})


def name_of(window: Window, row: int) -> str:
    return f"row {row} (game {window.games[window.game[row]]}, ply {window.ply[row]}, "


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("column", "value", "what"), ROWS)
def test_no_batch_is_made_of_poisoned_rows(
    window: Window, column: str, value: Any, what: str, device: str
) -> None:
    bad = poisoned(window, column, value, [40, 90])
    dataset = WindowDataset(bad, torch.device(device))
    dataset.batch([1, 2, 3])
    with pytest.raises(BadRowsError, match=what) as caught:
        dataset.batch([90, 3, 40, 90])
    assert caught.value.rows == (40, 90)
    for row in (40, 90):
        assert name_of(window, row) in str(caught.value)


def test_a_surprise_that_is_not_finite_spoils_no_mean(window: Window) -> None:
    bad = poisoned(window, "surprise", NAN, [40])
    with pytest.raises(BadRowsError, match=r"surprise that is not finite: row 40 \(game"):
        surprise_weights(bad, 0.5)


def sound(run: TrainingRun) -> bool:
    weights = [*run.model.state_dict().values(), *(run.best or {}).values()]
    return all(bool(torch.isfinite(w).all()) for w in weights) and math.isfinite(run.best_loss)


def finish(run: TrainingRun) -> list[dict[str, Any]]:
    while not run.finished:
        run.step()
    for record in run.records:
        json.dumps(record, allow_nan=False)  # as the metrics are written
    return [record for record in run.records if "train/anomaly" in record]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_training_goes_on_without_batches_of_bad_rows(
    window: Window, second: Plan, share: float, device: str
) -> None:
    bad = window.training_rows[::200].tolist()  # three in a row would be a divergence
    plan = changed(second, **OFF, device=device, training__territory_weight=share)
    run = TrainingRun(plan, poisoned(window, "globals", NAN, bad))
    found = finish(run)
    assert found and {record["train/anomaly"] for record in found} == {"bad_data"}
    for record in found:
        assert "globals that are not finite: row" in record["message"]
        assert any(name_of(window, row) in record["message"] for row in bad)
    assert len(run.anomalies) == len(found) == run.facade.progress.skipped
    assert run.iteration == run.total and sound(run)


def test_what_is_recorded_of_bad_batches_has_an_end(
    window: Window, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that is saved holds all of it."""
    monkeypatch.setattr(training_run, "MOST_RECORDED", 1)
    bad = window.training_rows[::100].tolist()
    run = TrainingRun(changed(second, **OFF), poisoned(window, "globals", NAN, bad))
    run._log_every = run.total  # as in a long training
    found = finish(run)
    assert run.facade.progress.skipped > 2
    assert len([one for one in found if one["step"] < run.total]) == 1  # the last is always told


def test_shares_that_are_a_little_above_one_are_calibrated(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding may leave a sum of float32 there, and such rows are trained on."""
    with store.create(CONFIG, 1, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(NetworkConfig(1, 8, 8), seed=4), {})
    real = calibrating.open_window

    def above(path: Path) -> Window:
        opened = real(path)
        return replace(opened, outcome=opened.outcome * np.float32(1.0005))

    monkeypatch.setattr(calibrating, "open_window", above)
    assert calibrate(store, second).kind == "calibration_report"


@pytest.mark.parametrize("device", DEVICES)
def test_training_halts_at_a_batch_of_bad_rows(window: Window, second: Plan, device: str) -> None:
    bad = window.training_rows[::50].tolist()
    plan = changed(second, **OFF, device=device, stability__on_non_finite="halt")
    run = TrainingRun(plan, poisoned(window, "globals", NAN, bad))
    with pytest.raises(NonFiniteStepError, match=r"generation 0001, batch \d+ of 14: ") as caught:
        finish(run)
    assert caught.value.rows and set(caught.value.rows) <= set(bad)
    assert name_of(window, caught.value.rows[0]) in str(caught.value)
    assert "on_non_finite skip" in str(caught.value)


def overflow(run: TrainingRun) -> None:
    """Finite weights whose sums are beyond float32 and bfloat16."""
    with torch.no_grad():
        run.model.value.out.weight.fill_(3e38)
        run.model.value.out.bias.fill_(3e38)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_overflow_in_training_names_games_and_rolls_back(
    window: Window, second: Plan, precision: str, device: str
) -> None:
    settings = {"stability__divergence_patience": 2, "training__precision": precision}
    run = TrainingRun(changed(second, **OFF, device=device, **settings), window)
    run.step()
    assert not run.anomalies
    overflow(run)
    run.step()
    assert run.records[-1]["train/anomaly"] == "non_finite" and len(run.anomalies) == 1
    assert "and 24 more" in run.anomalies[0]  # all 32, of which 8 are named
    assert "(game square8_2p-000" in run.anomalies[0] and "ply" in run.anomalies[0]
    found = finish(run)
    assert [record["train/anomaly"] for record in found] == ["non_finite", "divergence"]
    assert run.facade.progress.rollbacks == 1 and run.iteration == run.total and sound(run)


@pytest.mark.parametrize("device", DEVICES)
def test_overflow_halts_with_the_names_of_games(window: Window, second: Plan, device: str) -> None:
    settings = {"device": device, "stability__on_non_finite": "halt"}
    run = TrainingRun(changed(second, **OFF, **settings), window)
    run.step()
    overflow(run)
    with pytest.raises(NonFiniteStepError, match=r"batch 2 of 14: .*loss is (nan|inf).*\(game"):
        run.step()


def poison_average(run: TrainingRun) -> None:
    averaged = run.facade.averaged_model
    assert averaged is not None
    with torch.no_grad():
        averaged.value.out.weight.fill_(3e38)
        averaged.value.out.bias.fill_(3e38)


@pytest.mark.parametrize("device", DEVICES)
def test_a_held_out_loss_that_is_not_finite_is_no_best_model(
    window: Window, second: Plan, device: str
) -> None:
    """It rolls back; without, the first one would stay the best, as nothing is below NaN."""
    run = TrainingRun(changed(second, **OFF, device=device), window)
    while run.iteration < run.validate_every - 1:
        run.step()
    run.facade.update_average()
    real = run.facade.update_average
    run.facade.update_average = lambda: poison_average(run)  # type: ignore[method-assign]
    run.step()
    run.facade.update_average = real  # type: ignore[method-assign]
    assert run.best is None and run.facade.progress.rollbacks == 1
    assert "held-out loss of the averaged model is" in run.anomalies[0]
    assert "held-out rows: row" in run.anomalies[0]
    finish(run)
    assert sound(run) and run.best_step > run.validate_every


def test_a_held_out_loss_that_is_not_finite_halts(window: Window, second: Plan) -> None:
    run = TrainingRun(changed(second, **OFF, stability__on_non_finite="halt"), window)
    while run.iteration < run.validate_every - 1:
        run.step()
    run.facade.update_average()
    run.facade.update_average = lambda: poison_average(run)  # type: ignore[method-assign]
    with pytest.raises(NonFiniteStepError, match=r"held-out loss of the averaged.*\(game"):
        run.step()


def test_what_was_left_out_is_in_metadata_and_metrics(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrainingRun._train_step

    def poisoned_once(run: TrainingRun) -> Any:
        if run.iteration == 4:
            with torch.no_grad():
                kept = run.model.value.out.bias.clone()
                run.model.value.out.bias.fill_(INF)
            stats = step(run)
            with torch.no_grad():
                run.model.value.out.bias.copy_(kept)
            return stats
        return step(run)

    monkeypatch.setattr(TrainingRun, "_train_step", poisoned_once)
    prepare(store, second)
    made = train(store, second)
    assert made.metadata["train/steps_left_out"] == 1 and made.metadata["train/rollbacks"] == 0
    assert made.metadata["on_non_finite"] == "skip"
    (line,) = made.metadata["anomalies"]
    assert line.startswith("step 5: step left out: the loss is") and "(game square8_2p" in line
    lines = made.file("metrics.jsonl").read_text().splitlines()
    (record,) = [r for r in map(json.loads, lines) if "train/anomaly" in r]
    assert record["step"] == 5 and record["message"] in line


def poison_weights(run: TrainingRun) -> None:
    run.model.stem.weight.data.view(-1)[7] = NAN


def poison_optimizer(run: TrainingRun) -> None:
    run.optimizer.state[run.model.stem.weight]["exp_avg"].view(-1)[7] = INF


def poison_the_average(run: TrainingRun) -> None:
    averaged = run.facade.averaged_model
    assert averaged is not None
    averaged.stem.weight.data.view(-1)[7] = NAN


def poison_best(run: TrainingRun) -> None:
    assert run.best is not None
    run.best["stem.weight"].view(-1)[7] = NAN


@pytest.mark.parametrize(
    ("poison", "what"),
    [
        (poison_weights, "the model: 1 of .* tensor stem.weight"),
        (poison_optimizer, "the optimizer: 1 of .* tensor exp_avg of stem.weight"),
        (poison_the_average, "the averaged model: 1 of .* tensor .*stem.weight"),
        (poison_best, "the best model: 1 of .* tensor stem.weight"),
    ],
)
def test_a_poisoned_state_is_not_saved(
    window: Window, second: Plan, poison: Callable[[TrainingRun], None], what: str
) -> None:
    run = TrainingRun(changed(second, **OFF), window)
    for _ in range(run.validate_every + 1):
        run.step()
    run.state_dict()
    poison(run)
    with pytest.raises(NonFiniteModelError, match=what):
        run.state_dict()


def weights_of(state: dict[str, Any]) -> torch.Tensor:
    return state["facade"]["model"]["stem.weight"]


def moment_of(state: dict[str, Any]) -> torch.Tensor:
    return state["facade"]["optimizer"]["state"][0]["exp_avg"]


def average_of(state: dict[str, Any]) -> torch.Tensor:
    averager = state["facade"]["parts"]["averager"]
    tensors = [v for v in leaves(averager) if isinstance(v, torch.Tensor) and v.dim() > 1]
    return tensors[0]


def snapshot_of(state: dict[str, Any]) -> torch.Tensor:
    return state["facade"]["snapshot"]["model"]["p.stem.weight"]


def best_of(state: dict[str, Any]) -> torch.Tensor:
    return state["best"]["stem.weight"]


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (weights_of, r"stem\.weight"),
        (moment_of, "exp_avg"),
        (average_of, "averager"),
        (snapshot_of, r"snapshot.*stem\.weight"),
        (best_of, r"best model: .*stem\.weight"),
    ],
)
def test_a_poisoned_state_is_not_gone_on_from(
    store: Store, second: Plan, tensor: Callable[[dict[str, Any]], torch.Tensor], what: str
) -> None:
    prepare(store, second)
    with pytest.raises(Interrupted):
        train(store, second, should_stop=stop_after(6))
    saved = store.require(CONFIG, 1, "training_state")
    state = load_state(saved.path)
    tensor(state).view(-1)[3] = NAN
    with store.create(CONFIG, 1, "training_state", saved.metadata) as draft:
        save_state(draft, state)
    with pytest.raises(ResumeError, match=f"{draft.artefact.path}.*{what}.*--resume never"):
        train(store, second)
    assert train(store, second, resume="never").kind == "checkpoint"


def test_poisoned_auxiliary_heads_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = RingRiftNetwork(NetworkConfig(1, 8, 8), seed=0)
    model.attach_auxiliary()
    save_heads(tmp_path, model.state_dict())
    path = tmp_path / "auxiliary.safetensors"
    heads = load_file(path)
    name = next(iter(heads))
    heads[name].view(-1)[0] = NAN
    save_file(heads, path)
    with pytest.raises(NonFiniteModelError, match=f"tensor {name}"):
        load_heads(tmp_path, RingRiftNetwork(NetworkConfig(1, 8, 8), seed=0))
    with pytest.raises(NonFiniteModelError, match=f"tensor {name}"):
        save_heads(tmp_path, heads)


def overflowing_model(store: Store, generation: int) -> None:
    """Land a candidate with finite weights that gives no finite value."""
    model = RingRiftNetwork(NetworkConfig(1, 8, 8), seed=generation)
    with torch.no_grad():
        model.value.out.weight.fill_(3e38)
        model.value.out.bias.fill_(3e38)
    with store.create(CONFIG, generation, "ema_model") as draft:
        save_model(draft, model, {})


@pytest.mark.parametrize("step", [calibrate, build_ensemble])
def test_a_model_without_finite_values_is_not_judged(
    store: Store, second: Plan, step: Callable[[Store, Plan], Any]
) -> None:
    overflowing_model(store, 1)
    with store.create(CONFIG, 1, "checkpoint") as draft:
        save_model(draft, RingRiftNetwork(NetworkConfig(1, 8, 8), seed=4), {})
    with pytest.raises(NonFiniteOutputError, match=r"0001.*ema_model.*rows: row \d+ \(game squ"):
        step(store, second)
    assert not store.artefacts(CONFIG, 1, "calibration_report")
    assert not store.artefacts(CONFIG, 1, "ensemble")


def test_a_parent_without_finite_values_mines_nothing(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline import network

    real = network.load_model

    def overflowing(*arguments: Any) -> RingRiftNetwork:
        model = real(*arguments)
        with torch.no_grad():
            model.value.out.weight.fill_(3e38)
            model.value.out.bias.fill_(3e38)
        return model

    monkeypatch.setattr(network, "load_model", overflowing, raising=False)
    with pytest.raises(NonFiniteOutputError, match=r"the parent \(.*rows: row \d+ \(game squ"):
        mine_hard_examples(store, second)


class Shifted(torch.nn.Module):
    """A network whose logits of one output (0: policy, 1: value) are ``-inf`` at a place."""

    def __init__(self, model: torch.nn.Module, output: int, place: int) -> None:
        super().__init__()
        self.model, self.output, self.place = model, output, place

    def forward(self, features: Any) -> tuple[torch.Tensor, ...]:
        outputs = [tensor.clone() for tensor in self.model(features)]
        outputs[self.output][0, self.place] = -INF
        return tuple(outputs)


@pytest.mark.parametrize("searched", [True, False])
@pytest.mark.parametrize("output", [0, 1])
def test_a_logit_of_minus_infinity_is_no_chance_of_zero(
    window: Window, output: int, searched: bool
) -> None:
    """Even where it costs nothing, as nobody moved there, or won."""
    model = RingRiftNetwork(NetworkConfig(1, 8, 8), seed=1).eval()
    dataset = WindowDataset(window)
    row = window.holdout_rows[window.full_search[window.holdout_rows] == searched][:1]
    batch = dataset.batch(row)
    target = batch["policy_targets" if output == 0 else "value_targets"][0]
    place = int(target[:2].argmin()) if output else int(target.argmin())
    odd = Shifted(model, output, place)
    text = rf"the champion gives.*rows: row {row[0]} \(game squ"
    with pytest.raises(NonFiniteOutputError, match=text):
        row_losses(by_network(odd), dataset, row, name="the champion")
    assert not np.isfinite(held_out_losses(odd, dataset, row, 1.0, 1.0).by_row[0])
    row_losses(by_network(model), dataset, row)
    if output == 0:  # an ensemble takes it for a move that is not legal
        pooled = ModelEnsemble(value_kind="logits")
        pooled.add_model(odd)
        with pytest.raises(NonFiniteOutputError, match=text):
            row_losses(by_ensemble(pooled), dataset, row, name="the champion")


def test_no_gallery_is_drawn_by_a_network_that_is_not_finite(
    store: Store, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline import network
    from ringrift_pipeline.training.gallery import judged_by

    real = network.load_model
    monkeypatch.setattr(
        network, "load_model", lambda *a: Shifted(real(*a), 1, 0).eval(), raising=False
    )
    model = store.require(CONFIG, 0, "ema_model")
    with pytest.raises(NonFiniteOutputError, match=r"ema_model.*rows: row 7 \(game squ"):
        judged_by(model, window, [7, 8], "cpu")


@pytest.mark.parametrize("column", ["surprise", "policy"])
def test_a_poisoned_window_is_not_mined(
    store: Store, first: Plan, second: Plan, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no parent is asked, the surprise stands alone; the heuristic's is by its policies."""
    from ringrift_pipeline.training import hard_examples

    plan = first if column == "policy" else Plan.from_dict({**second.raw, "parent": None})
    rows: list[int] = []

    def opened(folder: Path) -> Window:
        window = open_window(folder)
        own = ~window.holdout & ~window.opponent & (window.generation == plan.generation)
        rows[:] = np.flatnonzero(own)[[3]].tolist()
        return poisoned(window, column, NAN, rows)

    monkeypatch.setattr(hard_examples, "open_window", opened)
    what = "surprise that is not finite" if column == "surprise" else "policy that is no distrib"
    with pytest.raises(BadRowsError, match=rf"{what}.*: row \d+ \(game squ") as caught:
        mine_hard_examples(store, plan)
    assert caught.value.rows == tuple(rows)
    assert not store.artefacts(CONFIG, plan.generation, "hard_examples")


def test_a_checkpoint_whose_last_weights_say_nothing_is_averaged(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best average stands; what the last weights lose is unknown."""
    prepare(store, second)
    real = TrainingRun.held_out

    def held_out(run: TrainingRun, model: torch.nn.Module) -> Any:
        found = real(run, model)
        return replace(found, loss=NAN, loss_value=INF) if model is run.model else found

    monkeypatch.setattr(TrainingRun, "held_out", held_out)
    made = train(store, second)
    assert made.metadata["val/last_loss"] is None and made.metadata["val/loss"] > 0
    assert average(store, second).metadata["val/loss_gain"] is None


def test_a_table_names_the_row_that_is_not_finite() -> None:
    columns = tuple(
        tables.Column(name, dtype, "…")
        for name, dtype in (("game_id", "String"), ("score", "Float64"))
    )
    for odd, words in (
        (INF, r"column 'score'.*not finite, in row 1 \(game_id b\)"),
        (NAN, r"failure_case=NaN.*column=score.*index=1"),
    ):
        frame = pl.DataFrame({"game_id": ["a", "b", "c"], "score": [0.5, odd, 0.25]})
        with pytest.raises(TableError, match=words):
            tables.validated(frame, columns, "scores.parquet")
