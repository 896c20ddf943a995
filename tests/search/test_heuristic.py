from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrift_pipeline.game import CONFIGS, State, get_rules, layout
from ringrift_pipeline.search import features, heuristic
from ringrift_pipeline.search.heuristic import policy_from_scores, score_batch

from .conftest import after, decisions, game_rows, legal, result

_WINDOW = {"square": ((1, 0), (1, 1), (0, 1), (1, -1)), "hex": ((1, 0), (1, -1), (0, -1))}
_RAYS = {
    "square": tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y),
    "hex": ((1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)),
}


def plain_features(state: State) -> np.ndarray:
    """The features counted from the state's record, cell by cell."""
    rules, record = state.rules, state.to_record()
    cut = [tuple(map(int, name.split(",")))[:2] for name in rules.names if name]
    on_board = set(cut)

    def keyed(name):
        return {tuple(map(int, cell.split(",")))[:2]: v for cell, v in record[name].items()}

    stacks = {c: [int(r) - 1 for r in rings] for c, rings in keyed("stacks").items()}
    markers = {c: seat - 1 for c, seat in keyed("markers").items()}
    collapsed = keyed("collapsed")
    out = np.zeros((rules.players, features.FEATURES))

    def cap(rings):
        top = rings[::-1]
        return next((i for i, r in enumerate(top) if r != top[0]), len(top))

    for p in range(rules.players):
        territory = record["territory"][p] / rules.territory_minimum
        rings = record["eliminated"][p] / rules.ring_threshold
        out[p, features.TERRITORY] = territory
        out[p, features.ELIMINATED] = rings
        out[p, features.CLOSENESS] = max(territory, rings) ** 2
        out[p, features.HAND] = record["hand"][p]
        out[p, features.MARKERS] = sum(seat == p for seat in markers.values())
        for rings_here in stacks.values():
            if rings_here[-1] != p:
                out[p, features.BURIED] += rings_here.count(p)
    for (x, y), rings_here in stacks.items():
        p, tall = rings_here[-1], len(rings_here)
        out[p, features.STACKS] += 1
        out[p, features.CAPS] += cap(rings_here)
        out[p, features.HEIGHT] += tall
        free = 0
        for dx, dy in _RAYS[rules.geometry]:
            distance = 1
            at = (x + dx, y + dy)
            while at in on_board and at not in collapsed and at not in stacks:
                distance += 1
                at = (x + distance * dx, y + distance * dy)
            free += distance > tall
            if at in stacks and stacks[at][-1] != p:
                beyond = (at[0] + dx, at[1] + dy)
                open_cell = beyond in on_board and beyond not in collapsed and beyond not in stacks
                if open_cell and cap(rings_here) >= cap(stacks[at]):
                    out[p, features.ATTACKS] += 1
                    out[stacks[at][-1], features.THREATENED] += cap(stacks[at])
        out[p, features.MOBILITY] += free
        out[p, features.STUCK] += free == 0
    for (x, y), p in markers.items():
        for dx, dy in _RAYS[rules.geometry]:
            beside = (x + dx, y + dy)
            out[p, features.BORDERS] += beside not in on_board or beside in collapsed
        for dx, dy in _WINDOW[rules.geometry]:
            if markers.get((x - dx, y - dy)) == p:
                continue
            length = 1
            while markers.get((x + length * dx, y + length * dy)) == p:
                length += 1
            if length >= rules.line_length:
                out[p, features.LINES] += 1
            elif length == rules.line_length - 1:
                out[p, features.NEAR_LINES] += 1
            elif length >= 2:
                out[p, features.PAIRS] += 1
    return out


@pytest.mark.parametrize("config", ["square8_2p", "square8_4p", "hex8_3p", "hex8_2p"])
def test_features_equal_a_count_cell_by_cell(config):
    rules = get_rules(config)
    table = np.empty((rules.players, features.FEATURES))
    seen = np.zeros(features.FEATURES)
    rows = np.concatenate([game_rows(config, seed) for seed in (1, 2)])
    for row in rows[::3]:
        features.count_features(rules.constants, row, table)
        np.testing.assert_allclose(table, plain_features(State.from_array(config, row)))
        seen += table.sum(axis=0)
    assert (seen[: features.LINES] > 0).all() and seen[features.NEAR_LINES] > 0
    assert (seen[features.PAIRS] > 0) == (rules.line_length == 4)


def test_a_move_is_scored_by_what_it_leads_to():
    """Where the mover does not go on, the score is the static standing after the move."""
    config = "square8_2p"
    rules = get_rules(config)
    rows = decisions(config, 8)
    moves, counts, scores = score_batch(rules, rows)
    compared = 0
    for i, row in enumerate(rows):
        assert moves[i, : counts[i]].tolist() == legal(config, row)
        assert (
            np.isfinite(scores[i, : counts[i]]).all() and (scores[i, counts[i] :] == -np.inf).all()
        )
        me = int(row[layout.PLAYER])
        for k in range(counts[i]):
            child = after(config, row, int(moves[i, k]))
            if child[layout.PLAYER] == 1 - me:
                static = heuristic.static_values(rules, child[None])[0]
                assert scores[i, k] == pytest.approx(static[me] - static[1 - me])
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_a_win_scores_above_everything(config):
    found = 0
    for seed in range(12):
        rows = decisions(config, 100 + seed)[-4:]
        moves, counts, scores = score_batch(get_rules(config), rows)
        for i, row in enumerate(rows):
            me = int(row[layout.PLAYER])
            ends = [after(config, row, int(m)) for m in moves[i, : counts[i]]]
            won = [e[layout.PLAYER] < 0 and result(config, e)[me] == 1 for e in ends]
            if any(won):
                found += 1
                assert scores[i].max() > heuristic.WIN
                assert (scores[i, : counts[i]][won] == scores[i].max()).all()
    assert found > 3


def test_scoring_leaves_states_alone():
    rows = decisions("square8_3p", 1)
    before = rows.copy()
    score_batch(get_rules("square8_3p"), rows)
    assert np.array_equal(rows, before)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_is_scored(config):
    rules = get_rules(config)
    rows = decisions(config, 0)[::40][:6]
    moves, counts, scores = score_batch(rules, rows)
    assert scores.shape == moves.shape == (len(rows), counts.max())
    assert all(np.isfinite(scores[i, :n]).all() for i, n in enumerate(counts))


@given(
    st.lists(st.floats(-2000, 2000), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.01, 0.5, 3.0]),
    st.integers(0, 3),
)
def test_policy_from_scores_is_a_distribution_in_the_scores_order(scores, temperature, padding):
    padded = np.array(scores + [-np.inf] * padding)
    policy = policy_from_scores(padded, temperature)
    assert policy.sum() == pytest.approx(1.0) and (policy[len(scores) :] == 0).all()
    assert policy[padded == padded.max()] == pytest.approx(policy.max())
    order = np.argsort(padded, kind="stable")
    assert (np.diff(policy[order]) >= 0).all()


def test_policy_from_scores_is_the_softmax():
    policy = policy_from_scores(np.array([[1.0, 2.0, -np.inf], [4.0, 4.0, 0.0]]), 0.5)
    np.testing.assert_allclose(policy[0, 1] / policy[0, 0], np.exp(2.0))
    np.testing.assert_allclose(policy[1], np.array([1, 1, np.exp(-8)]) / (2 + np.exp(-8)))
    assert policy_from_scores(np.array([4.0, 4.0, 1.0]), 0.0).tolist() == [0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match="temperature"):
        policy_from_scores(np.array([1.0]), -1.0)


def test_the_heuristic_is_frozen():
    """Models are measured against it: a change of it makes every earlier figure incomparable."""
    digest = hashlib.sha256(heuristic.WEIGHTS.tobytes())
    values = hashlib.sha256()
    for number, config in enumerate(CONFIGS, 1):
        rows = decisions(config, 2026)[::7][:40]
        moves, counts, scores = score_batch(get_rules(config), rows)
        best = np.round(scores, 6).argmax(axis=1)
        digest.update(moves[np.arange(len(rows)), best].tobytes() + counts.tobytes())
        legal = np.arange(scores.shape[1]) < counts[:, None]
        values.update((np.round(scores[legal], 3) + 0.0).tobytes())
        if number == 8:  # the hash of these was noted before the first `hour` run
            assert digest.hexdigest()[:16] == "13e5aec753e13a76"
    assert digest.hexdigest()[:16] == "ecc7c19bb91c9db0"  # of all twelve, noted later
    assert values.hexdigest()[:16] == "35bfeb7707ab308d"  # what each move scores
