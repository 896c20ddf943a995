"""Parts of a batch on threads of their own: the same outputs, the same gradient, the same bits."""

from __future__ import annotations

import pytest
import torch

from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork
from ringrift_pipeline.selfplay import Plan
from ringrift_pipeline.store import Store
from ringrift_pipeline.training.dataset import WindowDataset
from ringrift_pipeline.training.parallel_forward import LEAST_ROWS, ParallelForward
from ringrift_pipeline.training.trial import train_trial
from ringrift_pipeline.training.window import build_window, open_window


class Small(torch.nn.Module):
    """Rows that do not depend on each other, a parameter twice in use and one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(5, 7)
        self.second = torch.nn.Linear(7, 3)
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.frozen = torch.nn.Parameter(torch.full((3,), 0.5), requires_grad=False)

    def forward(self, features):
        hidden = torch.tanh(self.first(features["x"]))
        return self.second(hidden) * self.frozen, (self.second(hidden.square()) + 1.0).sum(dim=1)


def gradients(model, forward, features):
    model.zero_grad()
    one, two = forward(features)
    loss = one.square().mean() + (two * torch.arange(len(two))).mean()
    loss.backward()
    return (one.detach(), two.detach()), [p.grad for p in model.parameters()]


def call(model, features):
    return model(features)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, LEAST_ROWS, 2 * LEAST_ROWS, 5 * LEAST_ROWS + 3])
def test_outputs_and_gradients_are_those_of_the_whole_batch(threads: int, rows: int) -> None:
    model = Small().double()
    features = {"x": torch.randn(rows, 5, dtype=torch.float64)}
    expected, wanted = gradients(model, model, features)
    found, got = gradients(model, ParallelForward(model, call, threads), features)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    names = [name for name, _ in model.named_parameters()]
    assert {name for name, each in zip(names, got, strict=True) if each is None} == {
        "unused",
        "frozen",
    }


def test_every_part_runs_on_its_own_thread_with_the_rows_divided_evenly() -> None:
    import threading

    seen = []

    def noted(model, features):
        seen.append((threading.get_ident(), len(features["x"]), torch.get_num_threads()))
        return model(features)

    model = Small()
    parallel = ParallelForward(model, noted, 3)
    parallel({"x": torch.randn(100, 5)})
    assert sorted(rows for _, rows, _ in seen) == [33, 33, 34]
    assert {inside for _, _, inside in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _, _ in seen}


def test_changed_and_replaced_weights_are_seen() -> None:
    model = Small()
    parallel = ParallelForward(model, call, 2)
    features = {"x": torch.randn(2 * LEAST_ROWS, 5)}
    parallel(features)
    for change in (
        lambda: model.load_state_dict({k: v + 0.25 for k, v in model.state_dict().items()}),
        lambda: setattr(model.first.weight, "data", model.first.weight.data * 2.0),
        lambda: torch.optim.SGD(model.parameters(), 0.5).step(),
    ):
        gradients(model, model, features)
        change()
        with torch.no_grad():
            expected = model(features)
        for one, other in zip(parallel(features), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_reaches_the_threads() -> None:
    model = Small()
    features = {"x": torch.randn(2 * LEAST_ROWS, 5)}
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(features)
        found = ParallelForward(model, lambda m, f: m(f), 2)(features)
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


def test_an_error_of_a_part_is_the_callers() -> None:
    def broken(model, features):
        raise KeyError("no such plane")

    with pytest.raises(KeyError, match="no such plane"):
        ParallelForward(Small(), broken, 2)({"x": torch.randn(2 * LEAST_ROWS, 5)})


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_networks_gradient(store: Store, second: Plan, auxiliary: bool) -> None:
    dataset = WindowDataset(open_window(build_window(store, second).path))
    batch = dataset.batch(range(3 * LEAST_ROWS))
    model = RingRiftNetwork(NetworkConfig(2, 8), seed=1)
    if auxiliary:
        heads = model.attach_auxiliary()
        torch.nn.init.ones_(heads.margin.weight)
    forward = RingRiftNetwork.forward_with_auxiliary if auxiliary else RingRiftNetwork.forward

    def squares(run):
        model.zero_grad()
        sum(output.square().mean() for output in run(batch["features"])).backward()
        return [p.grad for p in model.parameters()]

    alone = squares(lambda features: forward(model, features))
    parallel = squares(ParallelForward(model, forward, 3))
    again = squares(ParallelForward(model, forward, 3))
    for one, other, same in zip(alone, parallel, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()) + 1e-9)
        assert torch.equal(other, same)


def test_a_training_on_two_threads_learns_what_one_learns_and_repeats(
    store: Store, second: Plan
) -> None:
    window = open_window(build_window(store, second).path)
    changes = {"training.max_steps": 6, "training.batch_size": 96, "training.precision": "float32"}
    runs = [
        train_trial(second, window, {**changes, "training.threads": threads}, seed=4)
        for threads in (1, 2, 2)
    ]
    one, two, again = (torch.cat([p.ravel() for p in r.model.parameters()]) for r in runs)
    assert torch.equal(two, again)
    fresh = RingRiftNetwork(runs[0].model.config, runs[0].plan.seed_for("weights") % 2**63)
    learned = (one - torch.cat([p.ravel() for p in fresh.parameters()])).abs().mean()
    assert (one - two).abs().mean() < 0.01 * learned
