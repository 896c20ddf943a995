"""What the loss is made of: surprise, mixed values, how games end, turned boards, resumed heads."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ringrift_pipeline.enhancements.config_stages import TrainingLoopConfig
from ringrift_pipeline.enhancements.loss_parts import compute_loss_parts
from ringrift_pipeline.game import get_rules, kernels, layout
from ringrift_pipeline.network import (
    BoardSymmetries,
    NetworkConfig,
    RingRiftNetwork,
    load_model,
    save_model,
)
from ringrift_pipeline.selfplay import Plan, iter_shards, plan_generation, read_shard
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.training import (
    Window,
    WindowDataset,
    WindowError,
    average,
    build_window,
    hard_examples,
    mine_hard_examples,
    open_window,
    score_games,
    train,
)
from ringrift_pipeline.training.auxiliary import heads_of, load_heads, save_heads
from ringrift_pipeline.training.dataset import surprise_weights
from ringrift_pipeline.training.game_ends import NO_CLASS, NOBODY
from ringrift_pipeline.training.loss import (
    TrainingLoss,
    margin_loss,
    newest_losses,
    territory_loss,
)
from ringrift_pipeline.training.run import TrainingRun

from .conftest import CONFIG, NOW, save_evaluation_of, settings


@pytest.fixture()
def window(store: Store, second: Plan) -> Window:
    return open_window(build_window(store, second).path)


def test_a_window_that_makes_no_batch_is_refused(window: Window, second: Plan) -> None:
    plan = changed(second, training__batch_size=8192, training__sample_reuse_limit=1)
    text = r"0001 has \d+ training rows, visited 1 times at most.* one batch of 8192"
    with pytest.raises(WindowError, match=text):
        TrainingRun(plan, window)


def test_a_generation_whose_games_are_all_held_out_is_mined(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance, where they are few: another generation's are left to train on."""
    real = hard_examples.open_window

    def held_out(path: Path) -> Window:
        opened = real(path)
        return replace(opened, holdout=opened.holdout | (opened.generation == 1))

    monkeypatch.setattr(hard_examples, "open_window", held_out)
    found = mine_hard_examples(store, second).metadata
    assert (found["scored_rows"], found["examples"]) == (0, 0)
    assert "train/hardness_mean" not in found


def changed(plan: Plan, **overrides: object) -> Plan:
    """The plan with other settings, for a run in memory."""
    merged = {name.replace("__", "."): value for name, value in overrides.items()}
    raw = {**plan.raw, "settings": plan.settings.with_overrides(merged).to_dict()}
    return Plan.from_dict(raw)


# --- how games end ---------------------------------------------------------------------------


def test_shards_record_the_board_on_which_a_game_ends(store: Store, second: Plan) -> None:
    """Every game is played again by the engine, and its last board read cell by cell."""
    rules = get_rules(CONFIG)
    moves = np.zeros(rules.max_moves, np.int64)
    ends = set()
    for shard in iter_shards(store, second):
        rows = read_shard(shard.file("shard.arrow")).to_pylist()
        for game in sorted({row["game"] for row in rows}):
            chosen = {row["ply"]: row for row in rows if row["game"] == game}
            state = np.zeros(rules.state_size, np.int64)
            kernels.initial_state(rules.constants, state, False)
            while state[layout.PHASE] != layout.OVER:
                kernels.legal_moves(rules.constants, state, moves)
                row = chosen.get(int(state[layout.PLY]))
                kernels.apply_move(rules.constants, state, row["selected"] if row else moves[0])
            owners = [-1] * 64
            for cell in rules.cells:
                content = int(state[layout.HEADER + cell]) & 15
                for first in (layout.COLLAPSED, layout.STACK):
                    if first <= content < first + 4:
                        owners[rules.plane_of[cell]] = content - first
            for row in chosen.values():
                assert row["owners"] == owners
                assert row["eliminated"] == state[layout.ELIMINATED :][:2].tolist()
            ends |= set(owners)
    assert ends == {-1, 0, 1}


def test_targets_of_the_ends_are_seen_by_the_mover(window: Window) -> None:
    dataset = WindowDataset(window, ends=True)
    rules = get_rules(CONFIG)
    rows = np.random.default_rng(0).integers(0, len(window), 60)
    batch = dataset.batch(rows)
    won = rules.constants[layout.B_RING_THRESHOLD]
    for at, row in enumerate(rows):
        mover, game = int(window.player[row]), int(window.game[row])
        owners = window.owners[game].reshape(8, 8)
        for seat in (0, 1):
            mine = batch["territory_targets"][at] == (seat - mover) % 2
            assert np.array_equal(mine.numpy(), owners == seat)
        assert np.array_equal((batch["territory_targets"][at] == NOBODY).numpy(), owners == -1)
        rings = window.eliminated[game]
        margin = (int(rings[mover]) - int(rings[1 - mover])) / won
        expected = [margin, -margin, np.nan, np.nan]
        np.testing.assert_allclose(batch["margin_targets"][at], expected, rtol=1e-6)
    assert set(np.unique(window.player[rows])) == {0, 1}
    assert "territory_targets" not in WindowDataset(window).batch(rows)


def test_shards_that_do_not_tell_how_games_end_give_no_targets(window: Window) -> None:
    unknown = replace(
        window,
        owners=np.full_like(window.owners, -2),
        eliminated=np.full_like(window.eliminated, -2),
    )
    batch = WindowDataset(unknown, ends=True).batch(np.arange(10))
    assert (batch["territory_targets"] == NO_CLASS).all()
    assert batch["margin_targets"].isnan().all()
    logits = torch.randn(10, 5, 8, 8, requires_grad=True)
    prediction = torch.randn(10, 4, requires_grad=True)
    total = territory_loss(logits, batch["territory_targets"]).sum()
    total = total + margin_loss(prediction, batch["margin_targets"]).sum()
    assert total.item() == 0.0
    total.backward()
    assert not logits.grad.any() and not prediction.grad.any()  # type: ignore[union-attr]


def test_cells_off_a_hexagon_have_no_target() -> None:
    from ringrift_pipeline.selfplay.records import owners_of

    rules = get_rules("hex8_3p")
    state = np.zeros(rules.state_size, np.int64)
    kernels.initial_state(rules.constants, state, False)
    owners = owners_of(rules, state)
    assert owners.shape == (81,) and (owners == -1).all()
    state[layout.HEADER + rules.cells[5]] = layout.COLLAPSED + 2
    state[layout.HEADER + rules.cells[6]] = layout.MARKER + 1
    state[layout.HEADER + rules.cells[7]] = layout.STACK + 1 | 1 << 4 | 1 << 10
    owners = owners_of(rules, state)
    places = rules.plane_of[rules.cells[[5, 7]]]
    assert owners[places].tolist() == [2, 1] and (np.delete(owners, places) == -1).all()


# --- the loss --------------------------------------------------------------------------------


def test_territory_and_margin_loss_against_sums_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 2, 2, generator=generator)
    targets = torch.tensor([[[0, 4], [1, NO_CLASS]], [[2, 2], [2, 2]], [[NO_CLASS] * 2] * 2])
    expected = []
    for board, wanted in zip(logits.double(), targets, strict=True):
        losses = [
            -float(torch.log_softmax(board[:, y, x], 0)[wanted[y, x]])
            for y in (0, 1)
            for x in (0, 1)
            if wanted[y, x] != NO_CLASS
        ]
        expected.append(sum(losses) / max(1, len(losses)))
    np.testing.assert_allclose(territory_loss(logits, targets), expected, rtol=1e-5)
    nan = float("nan")
    margins = torch.tensor([[0.5, -0.5, nan, nan], [1.0, 0.0, -1.0, nan]])
    guess = torch.tensor([[0.0, 0.5, 9.0, 9.0], [1.0, 1.0, 1.0, 9.0]])
    np.testing.assert_allclose(margin_loss(guess, margins), [(0.25 + 1) / 2, (0 + 1 + 4) / 3])


def fresh(seed: int = 0) -> RingRiftNetwork:
    return RingRiftNetwork(NetworkConfig(1, 8, 8), seed=seed)


def test_surprise_weights_the_policy_alone(window: Window) -> None:
    rows = np.flatnonzero(window.generation == 1)[:50]
    dataset = WindowDataset(window, surprise_share=0.5)
    batch = dataset.batch(rows)
    loss = TrainingLoss(TrainingLoopConfig(policy_weight=2.0, value_weight=0.5))
    model = fresh()
    parts = loss(model, batch)
    policy, value = model(batch["features"])
    plain = compute_loss_parts(
        policy,
        batch["policy_targets"],
        value,
        batch["value_targets"],
        legal_mask=batch["legal_mask"],
    )
    weights = torch.from_numpy(surprise_weights(window, 0.5)[rows])
    assert weights.std() > 0.1
    expected = 2.0 * weights * plain.policy + 0.5 * plain.value
    np.testing.assert_allclose(parts.total.detach(), expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(parts.policy.detach(), plain.policy.detach(), rtol=1e-6)
    loss.settle()
    assert loss.take().keys() == {"train/epoch_loss_policy"}


def test_the_policy_loss_that_is_told_is_of_the_rows_that_have_a_policy(window: Window) -> None:
    dataset, loss, model = WindowDataset(window), TrainingLoss(TrainingLoopConfig()), fresh()
    searched = np.asarray(window.full_search)
    cheap = np.flatnonzero(~searched)
    steps = [cheap[0] + np.arange(40), np.flatnonzero(searched)[-30:], cheap[:20]]
    told, known = [], []
    for rows in steps:
        with torch.no_grad():
            parts = loss(model, dataset.batch(rows))
        loss.settle()
        assert not parts.policy[torch.from_numpy(~searched[rows])].any()
        known.append(parts.policy[torch.from_numpy(searched[rows])].numpy())
        told.append(loss.policy_loss)
    assert 0 < len(known[0]) < 40 and len(known[1]) == 30
    expected = [known[0].mean(), known[1].mean(), np.nan]
    assert told == pytest.approx(expected, rel=1e-5, nan_ok=True)
    resumed = TrainingLoss(TrainingLoopConfig())
    resumed.load_state_dict(loss.state_dict())
    for one in (loss, resumed):
        epoch = one.take()["train/epoch_loss_policy"]
        assert epoch == pytest.approx(np.concatenate(known).mean(), rel=1e-5)
        assert np.isnan(one.take()["train/epoch_loss_policy"])
    with pytest.raises(ValueError, match="2 sums, this one 5"):
        loss.load_state_dict({"sums": [0.0, 0.0]})
    loss(model, dataset.batch(steps[1]))
    loss.settle()
    assert loss.policy_loss > 0.0
    loss.load_state_dict(loss.state_dict())  # the step is taken back
    assert np.isnan(loss.policy_loss)


def span(step: int, loss: float | None) -> dict[str, float | None]:
    return {
        "step": step,
        "train/epoch_loss": loss,
        "train/epoch_loss_policy": 2.0,
        "train/epoch_loss_value": 1.0,
    }


def test_the_loss_that_is_told_is_of_more_than_a_step() -> None:
    records = [span(50, 9.0), {"step": 60, "train/loss": 100.0}, span(100, 4.0), span(101, 8.0)]
    told = newest_losses(records, 25)
    assert told["train/loss"] == pytest.approx((50 * 4.0 + 8.0) / 51)
    assert told["train/loss_policy"] == 2.0 and told["train/loss_value"] == 1.0
    assert newest_losses(records[:3], 25)["train/loss"] == 4.0
    assert newest_losses(records, 1e9)["train/loss"] == pytest.approx((450 + 200 + 8) / 101)
    assert newest_losses([span(1, 8.0)], 25)["train/loss"] == 8.0
    unknown = dict.fromkeys(("train/loss", "train/loss_policy", "train/loss_value"))
    assert newest_losses([], 25) == unknown
    skipped = newest_losses([*records, span(102, None)], 25)
    assert skipped["train/loss"] == told["train/loss"]  # of a step left out nothing is known


def test_surprise_weights_are_half_uniform_half_in_proportion(window: Window) -> None:
    weights = surprise_weights(window, 0.5)
    full = np.asarray(window.full_search)
    assert not weights[~full].any() and (~full).any()
    heuristic = window.generation == 0
    assert (weights[heuristic] == 1.0).all()  # it has no prior to be surprised at
    searched = np.flatnonzero(~heuristic & full)
    trained = searched[~window.holdout[searched]]
    assert weights[trained].mean() == pytest.approx(1.0, rel=1e-6)
    mean = window.surprise[trained].mean()
    surprise = np.maximum(window.surprise[searched], 0.0)
    np.testing.assert_allclose(weights[searched], 0.5 + 0.5 * surprise / mean, rtol=1e-5)
    assert weights.min() >= 0.0 and weights[searched].min() >= 0.5
    everything = surprise_weights(window, 1.0)[searched]
    np.testing.assert_allclose(everything, surprise / mean, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="surprise_share"):
        WindowDataset(window, surprise_share=1.2)


def test_auxiliary_losses_lend_their_gradient_and_not_their_figure(window: Window) -> None:
    batch = WindowDataset(window, ends=True).batch(np.arange(40))
    weights = TrainingLoopConfig(territory_weight=0.3, margin_weight=0.2)
    loss = TrainingLoss(weights)
    model = fresh()
    heads = model.attach_auxiliary()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    parts = loss(model, batch)
    plain = TrainingLoss(TrainingLoopConfig())(model, batch)
    np.testing.assert_allclose(parts.total.detach(), plain.total.detach(), rtol=1e-6)
    trunk = list(model.stem.parameters())
    ours = torch.autograd.grad(parts.total.mean(), [*trunk, *heads.parameters()], retain_graph=True)
    _, _, territory, margin = model.forward_with_auxiliary(batch["features"])
    lent = 0.3 * territory_loss(territory, batch["territory_targets"])
    lent = lent + 0.2 * margin_loss(margin, batch["margin_targets"])
    whole = torch.autograd.grad((plain.total + lent).mean(), [*trunk, *heads.parameters()])
    for one, other in zip(ours, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert float(ours[-1].abs().max()) > 0.0
    loss.settle()
    told = loss.take()
    assert told["train/epoch_loss_margin"] == pytest.approx(
        margin_loss(margin, batch["margin_targets"]).mean().item(), rel=1e-5
    )
    assert set(told) == {f"train/epoch_loss_{name}" for name in ("policy", "territory", "margin")}
    assert loss.take().keys() == {"train/epoch_loss_policy"}


# --- the heads -------------------------------------------------------------------------------


def test_heads_change_neither_the_network_that_plays_nor_its_files(
    window: Window, tmp_path
) -> None:
    features = WindowDataset(window).batch(np.arange(12))["features"]
    model = fresh(3).eval()
    before = model(features)
    count = model.num_parameters
    save_model(tmp_path / "plain", model)
    with pytest.raises(ValueError, match="no auxiliary heads"):
        model.forward_with_auxiliary(features)
    heads = model.attach_auxiliary()
    assert model.num_parameters == count < sum(p.numel() for p in model.parameters())
    policy, value, territory, margin = model.forward_with_auxiliary(features)
    assert torch.equal(policy, before[0]) and torch.equal(value, before[1])
    assert territory.shape == (12, 5, 8, 8) and margin.shape == (12, 4)
    assert not territory.any() and not margin.any()  # they begin at zero
    save_model(tmp_path / "with", model)
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    with torch.no_grad():
        heads.margin.bias.fill_(0.25)
    save_heads(tmp_path / "with", model.state_dict())
    again = load_model(tmp_path / "with")
    assert again.auxiliary is None
    assert load_heads(tmp_path / "with", again)
    state = heads_of(again.state_dict())
    assert state.keys() == heads_of(model.state_dict()).keys()
    assert all(
        torch.equal(state[name], weight)
        for name, weight in model.state_dict().items()
        if name in state
    )
    assert not load_heads(tmp_path / "plain", again)  # there are none: untrained ones
    assert not heads_of(again.state_dict())["auxiliary.margin.bias"].any()
    wider = RingRiftNetwork(NetworkConfig(1, 12, 8))
    assert not load_heads(tmp_path / "with", wider)


EVERYTHING = {
    "training.territory_weight": 0.2,
    "training.margin_weight": 0.1,
    "training.surprise_share": 0.5,
    "training.search_value_share": 0.25,
    "training.augmentation": True,
}


def copied_without(store: Store, whole: Artefact, vanished: str) -> None:
    """Land an artefact once more, without a file of it."""
    with store.create(CONFIG, whole.generation, whole.kind, whole.metadata) as draft:
        for name in sorted(whole.files.keys() - {vanished}):
            folder, _, own = name.rpartition("/")
            place = draft.folder(folder) if folder else draft
            shutil.copyfile(whole.file(name), place / own)


def test_with_everything_on_a_stopped_run_ends_in_the_same_bytes_and_hands_its_heads_on(
    store: Store,
) -> None:
    from ringrift_pipeline.selfplay import Interrupted, play_shards

    plan = plan_generation(store, CONFIG, 2, settings().with_overrides(EVERYTHING), NOW)
    play_shards(store, plan, workers=1)
    score_games(store, plan)
    mine_hard_examples(store, plan)
    whole = train(store, plan, resume="never")
    assert whole.metadata["train/epoch_loss_territory"] < np.log(5)
    polls = iter(range(100))
    with pytest.raises(Interrupted):
        train(store, plan, resume="never", should_stop=lambda: next(polls) >= 7)
    state = store.require(CONFIG, 2, "training_state")
    assert state.metadata["step"] == 7
    resumed = train(store, plan, resume=state.path)
    assert resumed.digest == whole.digest
    steps = [json.loads(line) for line in whole.file("metrics.jsonl").read_text().splitlines()]
    assert any("train/epoch_loss_margin" in record for record in steps)
    # What landed without the heads, where their file had vanished, is made again.
    copied_without(store, resumed, "best/auxiliary.safetensors")
    whole = train(store, plan)
    assert whole.digest == resumed.digest
    copied_without(store, average(store, plan), "auxiliary.safetensors")
    candidate = average(store, plan)
    best = (whole.path / "best" / "auxiliary.safetensors").read_bytes()
    assert candidate.file("auxiliary.safetensors").read_bytes() == best
    save_evaluation_of(store, 2)
    following = plan_generation(store, CONFIG, 3, settings().with_overrides(EVERYTHING), NOW)
    assert following.parent is not None and following.parent["generation"] == 2
    from ringrift_pipeline.training.loop import parent_model

    parent, _ = parent_model(following, candidate)
    assert parent is not None and parent.auxiliary is not None
    assert heads_of(parent.state_dict())["auxiliary.territory.bias"].any()
    bare = changed(following, training__territory_weight=0.0, training__margin_weight=0.0)
    assert parent_model(bare, candidate)[0].auxiliary is None  # type: ignore[union-attr]


# --- turned boards ---------------------------------------------------------------------------


def test_turned_rows_are_the_rows_turned(window: Window) -> None:
    dataset = WindowDataset(window, ends=True)
    board = BoardSymmetries(get_rules(CONFIG))
    assert dataset.symmetries == 8
    rows = np.random.default_rng(1).integers(0, len(window), 64)
    which = np.arange(64) % 8
    plain, turned = dataset.batch(rows), dataset.batch(rows, which)
    for at, number in enumerate(which):
        image = board.tables[number]
        before = plain["features"]["planes"][at].reshape(-1, 64)
        after = turned["features"]["planes"][at].reshape(-1, 64)
        ends = plain["territory_targets"][at].reshape(-1)
        turned_ends = turned["territory_targets"][at].reshape(-1)
        for place in range(64):
            assert torch.equal(after[:, image[place]], before[:, place])
            assert turned_ends[image[place]] == ends[place]
        for cells, moved in zip(
            plain["features"]["move_cells"][at].tolist(),
            turned["features"]["move_cells"][at].tolist(),
            strict=True,
        ):
            expected = [-1 if cell < 0 else int(image[cell]) for cell in cells]
            assert sorted(moved) == sorted(expected)  # a line's ends may change places
    for name in ("policy_targets", "value_targets", "margin_targets", "legal_mask"):
        assert torch.equal(plain[name].nan_to_num(7.0), turned[name].nan_to_num(7.0))
    assert torch.equal(
        dataset.batch(rows, which * 0)["features"]["planes"], plain["features"]["planes"]
    )
    with pytest.raises(ValueError, match="which must"):
        dataset.batch(rows, which[:-1])


def test_each_row_of_a_run_is_turned_by_a_symmetry_of_its_own(
    window: Window, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray | None] = []
    whole = WindowDataset.batch

    def batch(self, indices, symmetries=None):
        drawn.append(symmetries)
        return whole(self, indices, symmetries)

    monkeypatch.setattr(WindowDataset, "batch", batch)

    def run(plan: Plan, seen: int = 0) -> list[np.ndarray | None]:
        drawn.clear()
        made = TrainingRun(plan, window)
        made.samples = seen
        for _ in range(3):
            made.step()
        return [one for one in drawn if one is None or len(one) == 32][:3]

    plan = changed(second, mining__enabled=False, quality__enabled=False)
    first = run(plan)
    again = run(plan)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    everything = np.concatenate(first)
    assert set(everything) == set(range(8))
    later = run(plan, seen=32)  # what is drawn follows from the rows trained so far
    assert np.array_equal(later[0], first[1])
    assert set(map(type, run(changed(plan, training__augmentation=False)))) == {type(None)}


def test_mining_sees_the_loss_less_the_searchs_own_as_both_are_weighted(
    window: Window, second: Plan
) -> None:
    plan = changed(second, training__surprise_share=0.5, training__policy_weight=2.0)
    run = TrainingRun(plan, window)
    weights = surprise_weights(window, 0.5)
    for row in np.flatnonzero(window.full_search)[::97]:
        policy = window.policy[window.offsets[row] : window.offsets[row + 1]].astype(np.float64)
        entropy = -sum(p * np.log(p) for p in policy if p > 0)
        surprised = search_surprise(window, row)
        expected = 2.0 * weights[row] * entropy + surprised
        assert run._reference_loss[row] == pytest.approx(expected, rel=1e-4)
    for row in np.flatnonzero(~window.full_search)[::97]:
        expected = search_surprise(window, row)
        assert run._reference_loss[row] == pytest.approx(expected, rel=1e-4)
    assert TrainingRun(changed(plan, mining__enabled=False), window)._reference_loss is None


def search_surprise(window: Window, row: int) -> float:
    """What the outcome costs whoever believed the search's value, nats."""
    pairs = zip(window.outcome[row], window.search_value[row], strict=True)
    return -sum(float(won) * math.log(max(float(chance), 1e-3)) for won, chance in pairs)


def test_the_held_out_loss_is_measured_against_outcomes_alone(window: Window, second: Plan) -> None:
    model = fresh(5)
    losses = [
        TrainingRun(changed(second, **overrides), window).held_out(model)
        for overrides in ({}, {name.replace(".", "__"): v for name, v in EVERYTHING.items()})
    ]
    assert losses[0] == losses[1]
