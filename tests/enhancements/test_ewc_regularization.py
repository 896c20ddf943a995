"""Fisher information against gradients taken one at a time, and tasks that are not lost."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ringrift_pipeline.enhancements import EWCRegularizer
from ringrift_pipeline.enhancements.checkpoint_files import write_checkpoint
from ringrift_pipeline.enhancements.ewc_penalty import SLICE
from ringrift_pipeline.enhancements.fisher_information import fisher_information
from ringrift_pipeline.enhancements.per_sample_gradients import SquaredGradients, rows_of
from ringrift_pipeline.enhancements.predictive_labels import PredictiveLabels

DOUBLE = torch.float64


class Heads(nn.Module):
    """Features (B, 6) to a policy over 5 and a value of one number."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(6, 7)
        self.policy = nn.Linear(7, 5)
        self.value = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.body(x))
        return self.policy(hidden), self.value(hidden).squeeze(1)


class Convolutions(nn.Module):
    """Strides, groups, dilation, "same" padding, norms, in-place activations, scalars, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), groups=4)
        self.group_norm = nn.GroupNorm(2, 8)
        self.batch_norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.shift = nn.Parameter(torch.rand(8, 1, 1))
        self.masked = nn.Parameter(torch.randn(4, 8, 3, 3))
        self.register_buffer("mask", (torch.rand(1, 1, 3, 3) > 0.3).float())
        self.norm = nn.LayerNorm([4, 6])
        self.head = nn.Linear(24, 5)
        self.batch_norm.running_mean.uniform_(-1, 1)
        self.batch_norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.group_norm(self.grouped(x)))
        x = self.batch_norm(x) * self.gain + self.shift
        x = F.conv2d(x, self.masked * self.mask, stride=2, padding=1)
        x = self.norm(x.flatten(2))
        return self.head(x.flatten(1))


class Odd(nn.Module):
    """Weights used twice, tied, on sequences, looked up, and in ways nobody foresees."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.twice = nn.Linear(6, 6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(6, 6))
        self.late = nn.Parameter(torch.randn(4, 6))
        self.unused = nn.Parameter(torch.randn(3))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.table(tokens)  # (B, 5, 6)
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x, _ = self.recurrent(self.frozen(x))
        x = F.linear(torch.sin(x @ self.matrix).mean(dim=1), self.twice.weight)
        return {"moves": x @ self.late.t(), "score": (x * self.late[0]).sum(dim=1)}


def board_network(geometry: str) -> nn.Module:
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork

    network = RingRiftNetwork(NetworkConfig(2, 8, 8, geometry), seed=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


def board_features(rows: int) -> dict[str, Tensor]:
    """Random positions as the network reads them, with padded moves and absent seats."""
    from ringrift_pipeline.network.encoding import G_PLAYERS, NUM_GLOBALS, NUM_PLANES, ON_BOARD
    from ringrift_pipeline.network.moves import NUM_MOVE_KINDS

    planes = torch.randint(0, 4, (rows, NUM_PLANES, 5, 5)).to(torch.uint8)
    planes[:, ON_BOARD] = 1
    globals_ = torch.rand(rows, NUM_GLOBALS)
    globals_[:, G_PLAYERS : G_PLAYERS + 3] = torch.eye(3)[torch.randint(3, (rows,))]
    return {
        "planes": planes,
        "globals": globals_,
        "move_kind": torch.randint(0, NUM_MOVE_KINDS, (rows, 11)).to(torch.uint8),
        "move_cells": torch.randint(-1, 25, (rows, 11, 3)).to(torch.int16),
        "move_rank": torch.randint(0, 5, (rows, 11)).to(torch.int16),
        "legal_mask": torch.arange(11) < torch.randint(1, 12, (rows, 1)),
    }


def make(name: str, rows: int = 12) -> tuple[nn.Module, dict]:
    """A model in float64 and a batch of ``rows`` samples."""
    torch.manual_seed(3)
    if name == "heads":
        model, features = Heads(), torch.randn(rows, 6, dtype=DOUBLE)
    elif name == "convolutions":
        model, features = Convolutions(), torch.randn(rows, 3, 7, 5, dtype=DOUBLE)
    elif name == "odd":
        model, features = Odd(), torch.randint(0, 9, (rows, 5))
    else:
        features = board_features(rows)
        return board_network(name).double(), {
            "features": features,
            "legal_mask": features["legal_mask"],
        }
    return model.double(), {"features": features}


def one_at_a_time(
    model: nn.Module, features, loss: Callable[..., Tensor], rows: int
) -> dict[str, Tensor]:
    """Mean of squared gradients: a forward and a backward pass for each sample."""
    model = copy.deepcopy(model).eval()
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    for row in range(rows):
        model.zero_grad(set_to_none=True)
        loss(model(rows_of(features, slice(row, row + 1), rows)), row).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad**2
    return {name: total / rows for name, total in sums.items()}


def plain_nll(output, label, mask=None) -> Tensor:
    """Log-likelihood of one sample's label, by hand: softmax over legal entries, or normal."""
    if output.dim() == 2 and output.shape[1] > 1:
        legal = output[0] if mask is None else output[0][mask]
        return torch.logsumexp(legal, 0) - output[0, label[0]]
    return 0.5 * (output - label).square().sum()


ALL = ("heads", "convolutions", "odd", "square", "hex")


@pytest.mark.parametrize("name", ALL)
def test_fisher_is_the_mean_of_squared_gradients_of_single_samples(name: str) -> None:
    model, batch = make(name)
    # the labels that the default draws: the same seed, the same outputs
    sequence = np.random.SeedSequence(5, spawn_key=(0,))
    ours = PredictiveLabels(sequence)
    with torch.no_grad():
        outputs = model.eval()(batch["features"])
    labels = ours.draw(outputs, batch.get("legal_mask"), 12)
    ewc = EWCRegularizer(model, normalize_fisher=False, seed=5)
    ewc.compute_fisher([batch])
    named = isinstance(labels, dict)
    each = list(labels.values()) if named else [labels] if isinstance(labels, Tensor) else labels

    def loss(outputs, row: int) -> Tensor:
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        outputs = outputs.values() if isinstance(outputs, dict) else outputs
        total = 0.0
        for head, (output, label) in enumerate(zip(outputs, each, strict=True)):
            mask = batch["legal_mask"][row] if "legal_mask" in batch and head == 0 else None
            total = total + plain_nll(output, label[row : row + 1], mask)
        return total

    expected = one_at_a_time(model, batch["features"], loss, 12)
    found = ewc.fisher
    assert found.keys() == expected.keys()
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-9, atol=1e-14)
    if name != "odd":
        assert all(value.abs().max() > 0 for value in expected.values())


@pytest.mark.parametrize(
    ("name", "slow"),
    (
        ("heads", set()),
        ("convolutions", set()),
        ("square", set()),
        ("hex", set()),
        ("odd", {"table.weight", "matrix"}),
    ),
)
def test_only_unforeseen_uses_are_looped_over(name: str, slow: set[str]) -> None:
    model, batch = make(name)
    squares = SquaredGradients(model.eval())

    def losses_for(outputs):
        return lambda outputs, rows: sum(
            o.flatten(1).square().sum(dim=1) if o.dim() > 1 else o.square()
            for o in (
                [outputs]
                if isinstance(outputs, Tensor)
                else outputs.values()
                if isinstance(outputs, dict)
                else outputs
            )
        )

    squares.add(batch["features"], 12, losses_for)
    looped = {name for name in squares.looped if not name.startswith("recurrent")}
    assert looped == slow


def test_a_batch_as_long_as_another_dimension_does_not_mislead() -> None:
    """A bias over 6 features meets 6 samples."""

    class Simple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.bias) + (x * self.bias).sum(1, keepdim=True)

    torch.manual_seed(0)
    simple = Simple().double()
    features = torch.randn(6, 6, dtype=DOUBLE)
    squares = SquaredGradients(simple)
    squares.add(features, 6, lambda _: lambda outputs, rows: outputs.square().sum(dim=1))
    expected = one_at_a_time(simple, features, lambda o, row: o.square().sum(), 6)
    torch.testing.assert_close(squares.sums["bias"] / 6, expected["bias"])
    assert not squares.looped


def test_hidden_uses_are_found_by_the_sample_that_is_checked() -> None:
    """A custom function hides its weight from what watches the forward pass."""

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, g):
            x, weight = ctx.saved_tensors
            return g @ weight.t(), x.t() @ g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Parameter(torch.randn(4, 4))
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(Hidden.apply(self.linear.weight.sum() + x, self.hidden))

    torch.manual_seed(0)
    model = Net().double()
    features = torch.randn(7, 4, dtype=DOUBLE)
    squares = SquaredGradients(model)
    squares.add(features, 7, lambda _: lambda outputs, rows: outputs.square().sum(dim=1))
    expected = one_at_a_time(model, features, lambda o, row: o.square().sum(), 7)
    for name, value in expected.items():
        torch.testing.assert_close(squares.sums[name] / 7, value)
    assert "hidden" in squares.looped


# --- what the reference got wrong ----------------------------------------------------------


def test_batches_of_any_size_give_the_same_fisher() -> None:
    """The squared mean gradient, which the reference takes, shrinks as the batch grows."""
    model, batch = make("heads", rows=64)
    features = batch["features"]

    def of(size: int) -> dict[str, Tensor]:
        ewc = EWCRegularizer(model, normalize_fisher=False)
        ewc.compute_fisher([(features[i : i + size], None) for i in range(0, 64, size)])
        return ewc.fisher

    one = of(1)
    for size in (5, 64):
        for name, value in of(size).items():
            torch.testing.assert_close(value, one[name], rtol=1e-9, atol=1e-15)
    with torch.no_grad():
        policy, value = model(features)
    labels = PredictiveLabels(np.random.SeedSequence(0, spawn_key=(0,))).draw(
        (policy, value), None, 64
    )
    policy, value = model(features)
    mean = F.cross_entropy(policy, labels[0]) + 0.5 * F.mse_loss(value, labels[1])
    wrong = torch.autograd.grad(mean, list(model.parameters()))
    trace = sum(float(v.sum()) for v in one.values())
    assert trace > 10 * sum(float(g.square().sum()) for g in wrong)  # the reference's, batch 64


def test_labels_are_drawn_from_the_model_not_from_the_data() -> None:
    """Of a model that is sure, the Fisher information is small whatever the data say."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([12.0, 0.0, 0.0, 0.0]))
    ewc = EWCRegularizer(model, normalize_fisher=False)
    ewc.compute_fisher([(torch.randn(200, 3), torch.full((200,), 2))])
    assert float(ewc.fisher["bias"].max()) < 1e-3  # with label 2: 1.0


def test_the_fisher_of_a_softmax_is_p_times_one_minus_p() -> None:
    """In closed form, for the biases of a categorical, a normal and a yes-or-no head."""

    class Biases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([0.5, -1.0, 0.0, 2.0]))
            self.b = nn.Parameter(torch.tensor([0.3]))
            self.c = nn.Parameter(torch.tensor([1.0, -2.0]))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            zero = x[:, :1] * 0.0
            return {"a": zero + self.a, "b": zero + self.b, "c": zero + self.c}

    model = Biases().double()
    ewc = EWCRegularizer(model, normalize_fisher=False, seed=1, heads={"c": "bernoulli"})
    mask = torch.tensor([True, True, False, True]).expand(4000, 4)
    batch = {"features": torch.zeros(4000, 1, dtype=DOUBLE), "legal_mask": mask}
    ewc.compute_fisher([batch], num_samples=4000)
    chance = torch.zeros(4, dtype=DOUBLE)
    chance[mask[0]] = model.a.detach()[mask[0]].softmax(0)
    torch.testing.assert_close(ewc.fisher["a"], chance * (1 - chance), rtol=0.1, atol=1e-12)
    torch.testing.assert_close(ewc.fisher["b"], torch.ones(1, dtype=DOUBLE), rtol=0.1, atol=0)
    yes = torch.sigmoid(model.c.detach())
    torch.testing.assert_close(ewc.fisher["c"], yes * (1 - yes), rtol=0.1, atol=0)


def test_layers_keep_their_proportions() -> None:
    """Normalised tensor by tensor, as in the reference, every layer's greatest is 1."""
    model, batch = make("heads", rows=32)
    with torch.no_grad():
        model.policy.weight.mul_(0.01)  # hardly anything reaches the body through the policy
        model.value.weight.mul_(0.01)
    plain = EWCRegularizer(model, normalize_fisher=False)
    plain.compute_fisher([batch])
    normal = EWCRegularizer(model)
    normal.compute_fisher([batch])
    greatest = {name: float(value.max()) for name, value in normal.fisher.items()}
    assert max(greatest.values()) == 1.0
    assert greatest["body.weight"] < 0.01 < greatest["policy.bias"]
    scale = max(float(v.max()) for v in plain.fisher.values())
    for name, value in plain.fisher.items():
        torch.testing.assert_close(normal.fisher[name], value / scale)


def test_wrapped_models_are_the_same_model() -> None:
    model, batch = make("heads")
    ewc = EWCRegularizer(model)
    ewc.compute_fisher([batch])
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1)
    expected = ewc.penalty(moved).detach()
    assert float(expected) > 0
    partly = copy.deepcopy(moved)
    partly.policy = torch.compile(partly.policy)  # not run: only its names change
    averaged = torch.optim.swa_utils.AveragedModel(moved)
    for wrapped in (nn.DataParallel(moved), averaged, torch.compile(moved), partly):
        torch.testing.assert_close(ewc.penalty(wrapped).detach(), expected)
    other = EWCRegularizer(nn.DataParallel(torch.compile(model)))
    other.compute_fisher([batch])
    assert other.fisher.keys() == ewc.fisher.keys()
    torch.testing.assert_close(other.penalty(moved).detach(), expected)


def test_a_model_that_does_not_fit_is_refused_by_name() -> None:
    model, batch = make("heads")
    ewc = EWCRegularizer(model)
    ewc.compute_fisher([batch])
    without = copy.deepcopy(model)
    del without.value
    with pytest.raises(ValueError, match="lacks value.weight"):
        ewc.penalty(without)
    wider = copy.deepcopy(model)
    wider.policy = nn.Linear(7, 6).double()
    for call in (ewc.penalty, ewc.add_gradient):
        with pytest.raises(ValueError, match=r"policy.weight has shape \(6, 7\)"):
            call(wider)
    assert all(p.grad is None for p in wider.parameters())
    extra = copy.deepcopy(model)
    extra.third = nn.Linear(7, 2).double()
    assert float(ewc.penalty(extra).detach()) == 0.0
    assert ewc.unprotected(extra) == ["third.weight", "third.bias"]
    assert ewc.unprotected(model) == []


def test_extra_parameters_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = make("heads")
    ewc = EWCRegularizer(model)
    ewc.compute_fisher([batch])
    model.third = nn.Linear(7, 2).double()
    ewc.penalty(model)
    ewc.penalty(model)
    assert [r.message for r in caplog.records] == [
        "no task knows third.bias, third.weight: not protected"
    ]


# --- the penalty ----------------------------------------------------------------------------


def test_the_penalty_is_its_formula_and_so_is_its_gradient() -> None:
    model, batch = make("heads")
    ewc = EWCRegularizer(model, 7.0)
    assert ewc.tasks == 0 and float(ewc.penalty(model).detach()) == 0.0
    ewc.compute_fisher([batch])
    start = [p.detach().clone() for p in model.parameters()]
    assert float(ewc.penalty(model).detach()) == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    formula = sum(
        3.5 * (ewc.fisher[name] * (p - old) ** 2).sum()
        for (name, p), old in zip(model.named_parameters(), start, strict=True)
    )
    expected = torch.autograd.grad(formula, list(model.parameters()))
    penalty = ewc.penalty(model)
    torch.testing.assert_close(penalty, formula.detach(), check_dtype=False)
    for found, wanted in zip(
        torch.autograd.grad(penalty, list(model.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted)
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    torch.testing.assert_close(ewc.add_gradient(model), penalty.detach())
    torch.testing.assert_close(parameters[0].grad, expected[0] + 1.0)
    for parameter, wanted in zip(parameters[1:], expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_the_gradient_of_large_strange_and_narrow_parameters_is_autograds() -> None:
    """Tensors larger than a slice, not contiguous, in half precision, frozen, with a gradient."""
    torch.manual_seed(0)
    model = nn.Module()
    model.large = nn.Parameter(torch.randn(3, SLICE + 7))
    model.turned = nn.Parameter(torch.randn(300, SLICE // 100).t())
    model.narrow = nn.Parameter(torch.randn(SLICE + 3).bfloat16())
    model.wide = nn.Parameter(torch.randn(2 * SLICE, dtype=DOUBLE))
    model.frozen = nn.Parameter(torch.randn(5))
    model.scalar = nn.Parameter(torch.randn(()))
    ewc = EWCRegularizer(model, 3.0)
    state = ewc.state_dict() | {"tasks": 1, "fisher": {}, "anchors": {}}
    for name, parameter in model.named_parameters():
        dtype = DOUBLE if parameter.dtype == DOUBLE else torch.float32
        state["fisher"][name] = torch.rand(parameter.shape, dtype=dtype)
        state["anchors"][name] = torch.randn(parameter.shape, dtype=dtype)
    ewc.load_state_dict(state)
    model.frozen.requires_grad_(False)
    penalty = ewc.penalty(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(penalty, trained)
    assert not trained[1].is_contiguous()
    before = [torch.randn_like(p) for p in trained[:3]]
    for parameter, gradient in zip(trained, before, strict=False):
        parameter.grad = gradient.clone()
    torch.testing.assert_close(ewc.add_gradient(model), penalty.detach(), check_dtype=False)
    assert model.frozen.grad is None
    for number, (parameter, gradient) in enumerate(zip(trained, wanted, strict=True)):
        assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype
        base = before[number] if number < 3 else torch.zeros_like(gradient)
        torch.testing.assert_close(parameter.grad, base + gradient)


@given(
    gamma=st.floats(0.1, 1.0), tasks=st.integers(2, 4), seed=st.integers(0, 100), size=st.just(5)
)
@settings(max_examples=25)
def test_merged_tasks_pull_as_the_sum_of_their_quadratics(
    gamma: float, tasks: int, seed: int, size: int
) -> None:
    """The same gradient everywhere; each earlier task counts gamma less with every further one."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 4).double()
    ewc = EWCRegularizer(model, 2.0, False, gamma=gamma)
    each = []
    for task in range(tasks):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        features = torch.randn(size, 3, dtype=DOUBLE)
        fisher = fisher_information(
            model, [features], seed=np.random.SeedSequence(0, spawn_key=(task,))
        )
        each.append((fisher, [p.detach().clone() for p in model.parameters()]))
        ewc.compute_fisher([features])
    assert ewc.tasks == tasks
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    total = sum(
        gamma ** (tasks - 1 - task) * (fisher[name] * (p - old) ** 2).sum()
        for task, (fisher, optimum) in enumerate(each)
        for (name, p), old in zip(model.named_parameters(), optimum, strict=True)
    )
    expected = torch.autograd.grad(total, list(model.parameters()))
    found = torch.autograd.grad(ewc.penalty(model), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_latest_anchor_is_the_latest_optimum() -> None:
    model = nn.Linear(3, 4)
    ewc = EWCRegularizer(model, normalize_fisher=False, anchor="latest", gamma=0.5)
    first = torch.randn(20, 3)
    ewc.compute_fisher([first])
    before = ewc.fisher
    with torch.no_grad():
        model.weight.add_(1.0)
    now = fisher_information(model, [first], seed=np.random.SeedSequence(0, spawn_key=(1,)))
    ewc.compute_fisher([first])
    assert torch.equal(ewc.anchors["weight"], model.weight)
    for name, value in ewc.fisher.items():
        torch.testing.assert_close(value, 0.5 * before[name] + now[name])


def fit(model: nn.Module, data: tuple[Tensor, Tensor], ewc: EWCRegularizer | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(250):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data[0]), data[1])
        if ewc is not None:
            loss = loss + ewc.penalty(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(dim=1) == data[1]).float().mean())


@pytest.mark.parametrize("anchor", ("mean", "latest"))
def test_three_tasks_the_first_is_kept_and_without_it_is_lost(anchor: str) -> None:
    """One output layer for all tasks, as when a network learns another board."""
    generator = torch.Generator().manual_seed(2)
    angles = (0.0, 2.1, 4.2)

    def task(angle: float) -> tuple[Tensor, Tensor]:
        # the inputs name the task and are judged in a direction of its own
        x = torch.randn(500, 2, generator=generator)
        name = torch.zeros(500, 3)
        name[:, angles.index(angle)] = 3.0
        direction = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
        return torch.cat((x, name), dim=1), (x @ direction > 0).long()

    tasks = [task(angle) for angle in angles]

    def run(protect: bool) -> list[float]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 2))
        ewc = EWCRegularizer(model, 600.0, False, anchor=anchor)  # type: ignore[arg-type]
        for data in tasks:
            fit(model, data, ewc if protect else None)
            if protect:
                ewc.compute_fisher([(data[0], data[1])], num_samples=500)
        return [accuracy(model, data) for data in tasks]

    kept, lost = run(True), run(False)
    assert lost[0] < 0.7 and lost[-1] > 0.95
    assert min(kept) > 0.85


# --- left alone -----------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)
    ).train()
    model[1].eval()  # a mixture of modes
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.full((3,), 2.0)
    before = copy.deepcopy(model.state_dict())
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(40, 4), torch.zeros(40)),
        batch_size=8,
        shuffle=True,
    )
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    ewc = EWCRegularizer(model)
    with torch.inference_mode():
        ewc.compute_fisher(loader)
    assert torch.equal(torch.rand(3), expected)
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[3].bias.grad.tolist() == [2.0] * 3 and model[3].weight.grad is None
    assert "0.weight" not in ewc.fisher and "0.bias" in ewc.fisher


def test_exactly_so_many_samples_are_used() -> None:
    model, batch = make("heads", rows=30)
    features = batch["features"]
    pulled = []

    def batches():
        for start in range(0, 30, 8):
            pulled.append(start)
            yield features[start : start + 8], None

    ewc = EWCRegularizer(model, normalize_fisher=False)
    ewc.compute_fisher(batches(), num_samples=11)
    again = EWCRegularizer(model, normalize_fisher=False)
    again.compute_fisher([features[:11]])
    assert pulled == [0, 8]
    for name, value in ewc.fisher.items():
        torch.testing.assert_close(value, again.fisher[name])


def test_outputs_batches_and_criteria_of_every_form() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 4).double()
    x = torch.randn(9, 3, dtype=DOUBLE)
    Pair = namedtuple("Pair", ["left", "right"])

    def model_of(form):
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = linear

            def forward(self, x):
                return form(self.linear(x["a"][0] if isinstance(x, dict) else x))

        return Model()

    def fisher(form, batch, criterion=None):
        ewc = EWCRegularizer(model_of(form), normalize_fisher=False)
        ewc.compute_fisher(batch, criterion)
        return ewc.fisher["linear.weight"]

    plain = fisher(lambda o: o, [x])
    for form, batch in (
        (lambda o: o, [(x, torch.zeros(9))]),
        (lambda o: o, [{"features": x.numpy(), "weights": torch.ones(9)}]),
        (lambda o: {"only": o}, [{"features": {"a": [x]}}]),
        (lambda o: (o,), [[x]]),
    ):
        torch.testing.assert_close(fisher(form, batch), plain)
    torch.testing.assert_close(fisher(lambda o: o, [x], nn.CrossEntropyLoss()), plain)
    pair = fisher(lambda o: Pair(o, o[:, 0]), [x])
    assert float((pair - plain).abs().max()) > 1e-3
    torch.testing.assert_close(
        fisher(lambda o: Pair(o, o[:, 0]), [x], lambda out, y: F.cross_entropy(
            out.left, y[0], reduction="none") + 0.5 * (out.right - y[1]).square()),
        pair,
    )  # fmt: skip


def test_half_precision_is_summed_in_single() -> None:
    model, batch = make("heads")
    wide = EWCRegularizer(model)
    wide.compute_fisher([batch])
    narrow = EWCRegularizer(copy.deepcopy(model).bfloat16())
    narrow.compute_fisher([batch["features"].bfloat16()])
    for name, value in narrow.fisher.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wide.fisher[name], rtol=0.3, atol=0.05)
    narrow.add_gradient(narrow.model)
    assert narrow.model.body.weight.grad.dtype == torch.bfloat16


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_fisher() -> None:
    for name in ("convolutions", "square"):
        model, batch = make(name)
        host = EWCRegularizer(model)
        host.compute_fisher([batch])
        device = EWCRegularizer(copy.deepcopy(model).cuda())
        device.compute_fisher([batch], device="cuda")
        for parameter, value in device.fisher.items():
            assert value.is_cuda
            torch.testing.assert_close(value.cpu(), host.fisher[parameter], rtol=1e-6, atol=1e-9)
        assert float(device.penalty(device.model).detach()) == 0.0


# --- state ----------------------------------------------------------------------------------


def trained(seed: int = 0) -> tuple[EWCRegularizer, dict]:
    model, batch = make("heads")
    ewc = EWCRegularizer(model, 12.5, False, gamma=0.9, anchor="latest", seed=seed)
    ewc.compute_fisher([batch])
    return ewc, batch


def assert_same_state(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert list(value) == list(other[name])
            assert all(torch.equal(value[k], other[name][k]) for k in value)
        else:
            assert value == other[name] and type(value) is type(other[name])


def test_saved_and_loaded_it_goes_on_bit_for_bit(tmp_path) -> None:
    ewc, batch = trained(seed=2**62)
    ewc.save_state(tmp_path / "ewc.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["ewc.safetensors"]
    fresh, _ = make("heads")
    loaded = EWCRegularizer(fresh)
    loaded.load_state(tmp_path / "ewc.safetensors")
    assert {k: sorted(v) if isinstance(v, dict) else v for k, v in loaded.state_dict().items()} == {
        k: sorted(v) if isinstance(v, dict) else v for k, v in ewc.state_dict().items()
    }
    copied = EWCRegularizer(copy.deepcopy(fresh))
    copied.load_state_dict(ewc.state_dict())
    assert_same_state(copied.state_dict(), ewc.state_dict())
    for regularizer in (ewc, loaded, copied):  # the next task too, labels included
        with torch.no_grad():
            for parameter in regularizer.model.parameters():
                parameter.mul_(1.1)
        regularizer.compute_fisher([batch])
    for other in (loaded, copied):
        for name, value in ewc.fisher.items():
            assert torch.equal(value, other.fisher[name])
        assert torch.equal(ewc.penalty(fresh), other.penalty(fresh))


def test_what_state_dict_gives_is_a_copy() -> None:
    ewc, _ = trained()
    ewc.state_dict()["fisher"]["body.weight"].zero_()
    ewc.anchors["body.weight"].zero_()
    assert float(ewc.fisher["body.weight"].max()) > 0
    assert float(ewc.penalty(ewc.model).detach()) == 0.0


def test_damaged_files_are_refused(tmp_path) -> None:
    ewc, _ = trained()
    before = ewc.state_dict()
    path = tmp_path / "ewc"
    ewc.save_state(path)
    whole = path.read_bytes()
    torch.save({"fisher": {}}, tmp_path / "pickle")
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("no")
    write_checkpoint(tmp_path / "nested", {"x": torch.zeros(1)}, {"ewc": "[" * 100_000})
    for name in ("pickle", "short", "text", "nested", "absent"):
        with pytest.raises(ValueError, match=name):
            ewc.load_state(tmp_path / name)
    assert_same_state(ewc.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"format": "other"}, "ewc/1"),
        ({"tasks": 0}, "fisher and anchors"),
        ({"lambda_ewc": -1.0}, "lambda_ewc"),
        ({"gamma": 0.0}, "gamma"),
        ({"anchor": "middle"}, "anchor"),
        ({"fisher": {"body.weight": torch.ones(2)}}, "same parameters"),
        ({"fisher": {"x": torch.ones(2)}, "anchors": {"x": torch.ones(2)}}, "lacks x"),
        (
            {"fisher": {"body.bias": -torch.ones(7)}, "anchors": {"body.bias": torch.ones(7)}},
            "none below 0",
        ),
        (
            {"fisher": {"body.bias": torch.ones(6)}, "anchors": {"body.bias": torch.ones(6)}},
            "has shape",
        ),
    ),
)
def test_a_state_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    ewc, _ = trained()
    before = ewc.state_dict()
    with pytest.raises(ValueError, match=message):
        ewc.load_state_dict({**ewc.state_dict(), **change})
    assert_same_state(ewc.state_dict(), before)


@pytest.mark.parametrize(
    ("settings_", "message"),
    (
        ({"lambda_ewc": -1}, "lambda_ewc"),
        ({"lambda_ewc": float("nan")}, "lambda_ewc"),
        ({"normalize_fisher": 1}, "normalize_fisher"),
        ({"gamma": 1.5}, "gamma"),
        ({"anchor": "first"}, "anchor"),
        ({"seed": -1}, "seed"),
        ({"heads": {"policy": "poisson"}}, "heads"),
    ),
)
def test_bad_settings_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EWCRegularizer(Heads(), **settings_)
    with pytest.raises(ValueError, match="model"):
        EWCRegularizer(nn.Linear(2, 2).requires_grad_(False))


def test_bad_data_is_refused_and_changes_nothing() -> None:
    ewc, batch = trained()
    features = batch["features"]
    before = ewc.state_dict()
    bad = features.clone()
    bad[3] = float("nan")
    for arguments, message in (
        (([],), "dataloader has no samples"),
        ((5,), "dataloader must be iterable"),
        (([bad],), r"dataloader: a gradient of \S+ is not finite"),
        (([torch.zeros(0, 6, dtype=DOUBLE)],), "dataloader: a batch has shape"),
        ((["text"],), "dataloader"),
        (([batch], None, 0), "num_samples"),
        (([batch], None, 10, "cuda"), "device"),
        (([batch], 3), "criterion"),
        (([batch], lambda outputs, labels: torch.zeros(())), "criterion"),
        (([{**batch, "legal_mask": torch.ones(12, 4, dtype=torch.bool)}],), "legal_mask"),
        (([{**batch, "legal_mask": torch.ones(12, 5)}],), "legal_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            ewc.compute_fisher(*arguments)
        assert_same_state(ewc.state_dict(), before)
        assert all(m.training for m in ewc.model.modules())
    ewc.model.policy = nn.Linear(7, 6).double()
    with pytest.raises(ValueError, match="policy.weight has shape"):
        ewc.compute_fisher([batch])
    assert_same_state(ewc.state_dict(), before)
    other = EWCRegularizer(Heads(), heads={"moves": "categorical"})
    with pytest.raises(ValueError, match="heads: the model has no moves; it has policy, value"):
        other.compute_fisher([torch.randn(3, 6)])
