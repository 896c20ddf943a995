"""The network's shapes, invariances and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ringrift_pipeline.game import CONFIGS, get_rules, layout
from ringrift_pipeline.network import (
    NUM_PLANES,
    NetworkConfig,
    RingRiftNetwork,
    encode_states,
    features_to_tensors,
)
from ringrift_pipeline.network.model import BoardConv2d, masked_pool

from .conftest import random_positions, spread


def network(geometry, seed=1, blocks=2, channels=16):
    """A small network with every weight stirred, so that no zero hides a mistake."""
    config = NetworkConfig(blocks=blocks, channels=channels, value_channels=8, geometry=geometry)
    model = RingRiftNetwork(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(config, count=6, games=1):
    rules = get_rules(config)
    p = spread(random_positions(config, games=games), count)
    return features_to_tensors(encode_states(rules, p.states, p.moves, p.counts))


@pytest.mark.parametrize("config", CONFIGS)
def test_one_network_evaluates_every_config_of_its_geometry(config):
    rules = get_rules(config)
    model = network(rules.geometry)
    features = batch(config)
    with torch.inference_mode():
        policy, value = model(features)
    assert policy.shape == features["legal_mask"].shape
    assert value.shape == (6, 4)
    assert torch.isfinite(policy).all() and torch.isfinite(value).all()
    assert (policy[~features["legal_mask"]] == 0).all()
    probability = value.softmax(dim=1)
    assert (probability[:, rules.players :] == 0).all()
    assert (probability[:, : rules.players] > 0).all()
    torch.testing.assert_close(probability.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("config", ("square8_3p", "hex8_2p"))
def test_a_board_in_a_bigger_box_evaluates_the_same(config):
    """No layer knows the size of the plane: empty rows and columns around it change nothing."""
    rules = get_rules(config)
    model = network(rules.geometry)
    features = batch(config)
    n, margin = rules.size, 3
    wide = n + 2 * margin
    bigger = dict(features)
    bigger["planes"] = F.pad(features["planes"], (margin,) * 4)
    cells = features["move_cells"].long()
    moved = (cells // n + margin) * wide + cells % n + margin
    bigger["move_cells"] = torch.where(cells >= 0, moved, -1)
    with torch.inference_mode():
        for got, expected in zip(model(bigger), model(features), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_weights_do_not_depend_on_players_or_board():
    two = RingRiftNetwork(NetworkConfig(2, 16, 8, "square", 2)).state_dict()
    four = RingRiftNetwork(NetworkConfig(2, 16, 8, "square", 4)).state_dict()
    assert {k: v.shape for k, v in two.items()} == {k: v.shape for k, v in four.items()}
    assert all(torch.equal(two[name], four[name]) for name in two)


def test_initial_weights_depend_on_the_seed_alone():
    config = NetworkConfig(blocks=1, channels=8, value_channels=8)
    torch.manual_seed(1)
    first = RingRiftNetwork(config, seed=3).state_dict()
    torch.manual_seed(2)
    again = RingRiftNetwork(config, seed=3).state_dict()
    other = RingRiftNetwork(config, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_order_and_padding_of_moves_change_nothing():
    features = batch("square8_2p")
    model = network("square")
    width = features["legal_mask"].shape[1]
    order = torch.randperm(width + 7, generator=torch.Generator().manual_seed(0))
    shuffled = dict(features)
    for name in ("move_kind", "move_cells", "move_rank", "legal_mask"):
        array = features[name]
        extra = torch.zeros(array.shape[0], 7, *array.shape[2:], dtype=array.dtype)
        shuffled[name] = torch.cat((array, extra), dim=1)[:, order]
    with torch.inference_mode():
        policy, value = model(features)
        policy2, value2 = model(shuffled)
    padded = torch.cat((policy, torch.zeros(policy.shape[0], 7)), dim=1)
    torch.testing.assert_close(policy2, padded[:, order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value2, value)


def test_policy_is_the_stated_formula():
    """Each logit, gathered move by move with plain indexing."""
    features = batch("hex8_3p", count=3, games=2)
    model = network("hex")
    head = model.policy
    x = F.relu(torch.randn(3, 16, 9, 9, generator=torch.Generator().manual_seed(5)))
    mask = features["planes"][:, :1].float()
    x = x * mask
    pooled = masked_pool(x, mask)
    with torch.inference_mode():
        got = head(x, pooled, features)
        hidden = F.relu(head.hidden(x) + head.hidden_pool(pooled)[:, :, None, None])
        planes, embed = head.planes(hidden).flatten(2), head.embed(hidden).flatten(2)
        bias = head.kind_bias(pooled)
        for row, column in features["legal_mask"].nonzero().tolist()[::7]:
            kind = int(features["move_kind"][row, column])
            rank = int(features["move_rank"][row, column])
            logit = bias[row, kind] + head.rank_table[kind, min(rank, 7)]
            logit = logit + head.rank_slope[kind] * np.log1p(rank)
            inner = head.kind_embed[kind].clone()
            for k, cell in enumerate(features["move_cells"][row, column].tolist()):
                if cell >= 0:
                    logit = logit + planes[row, head.plane_index[kind, k], cell]
                    inner += embed[row, 16 * k : 16 * k + 16, cell]
            logit = logit + (F.relu(inner) * head.kind_out[kind]).sum()
            assert got[row, column] == pytest.approx(logit.item(), abs=1e-4)


def test_moves_that_differ_in_rank_alone_get_different_logits():
    features = batch("square8_2p", count=2)
    features["move_kind"][:, :12] = 16
    features["move_cells"][:, :12] = torch.tensor([3, 4, 5], dtype=torch.int16)
    features["move_rank"][:, :12] = torch.arange(12, dtype=torch.int16)
    model = RingRiftNetwork(NetworkConfig(blocks=1, channels=8, value_channels=8))
    with torch.inference_mode():
        policy, _ = model(features)
    assert len(set(policy[0, :12].tolist())) == 12


@pytest.mark.parametrize("config", ("square8_2p", "hex8_2p"))
def test_convolutions_reach_exactly_the_neighbours(config):
    rules = get_rules(config)
    conv = BoardConv2d(1, 1, rules.geometry, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        plane = torch.zeros(1, 1, rules.size, rules.size)
        middle = rules.size // 2
        plane[0, 0, middle, middle] = 1
        reached = conv(plane)[0, 0].nonzero() - middle
    stride = int(rules.constants[layout.B_STRIDE])
    count = int(rules.constants[layout.B_NUM_DIRECTIONS])
    offsets = rules.constants[layout.B_DIRECTIONS : layout.B_DIRECTIONS + count].tolist()
    assert sorted(dy * stride + dx for dy, dx in reached.tolist()) == sorted([*offsets, 0])


def test_hex_corners_take_no_gradient_and_no_part():
    model = network("hex")
    features = batch("hex8_2p")
    policy, value = model(features)
    (policy.square().sum() + value[:, :2].square().sum()).backward()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BoardConv2d):
                assert (module.weight.grad[:, :, 0, 0] == 0).all()
                assert (module.weight.grad[:, :, 2, 2] == 0).all()
                assert module.weight.grad.abs().sum() > 0
                module.weight[:, :, 0, 0] = 1e3
                module.weight[:, :, 2, 2] = -1e3
        again, _ = model(features)
    torch.testing.assert_close(again, policy)
    fresh = RingRiftNetwork(model.config)
    assert (fresh.stem.weight[:, :, 0, 0] == 0).all()


@pytest.mark.parametrize("config", ("square8_4p", "hex8_2p"))
def test_every_weight_gets_a_finite_gradient(config):
    model = network(get_rules(config).geometry)
    features = batch(config, count=16, games=2)
    features["move_rank"][:, 1] = 3  # rare in random games
    policy, value = model(features)
    masked = policy.masked_fill(~features["legal_mask"], -1e9)
    loss = masked.logsumexp(dim=1).sum() - value.log_softmax(dim=1)[:, 0].sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_network_can_learn_one_small_batch_by_heart():
    features = batch("square8_2p", count=16, games=2)
    generator = torch.Generator().manual_seed(0)
    counts = features["legal_mask"].sum(dim=1)
    target = (torch.rand(16, generator=generator) * counts).long()
    winner = torch.randint(0, 2, (16,), generator=generator)
    model = RingRiftNetwork(NetworkConfig(blocks=2, channels=32, value_channels=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        policy, value = model(features)
        policy = policy.masked_fill(~features["legal_mask"], -1e9)
        policy_loss = F.cross_entropy(policy, target)
        value_loss = F.cross_entropy(value, winner)
        optimizer.zero_grad()
        (policy_loss + value_loss).backward()
        optimizer.step()
    assert policy_loss.item() < 0.2
    assert value_loss.item() < 0.1
    assert (policy.argmax(dim=1) == target).all()


@pytest.mark.parametrize(
    "bad",
    [{"blocks": 0}, {"channels": 2}, {"value_channels": 1.5}, {"geometry": "ring"}, {"players": 5}],
)
def test_bad_shapes_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NetworkConfig(**bad)


def test_config_survives_a_dictionary():
    config = NetworkConfig(3, 24, 12, "hex", 4)
    assert NetworkConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="odd"):
        NetworkConfig.from_dict({"blocks": 3})


def test_stem_takes_the_planes_of_the_encoding():
    model = RingRiftNetwork(NetworkConfig(blocks=1, channels=8, value_channels=8))
    assert model.stem.weight.shape == (8, NUM_PLANES, 3, 3)
