"""Two processes train as one does with the same batches: to rounding, with everything on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements import FacadeConfig, TrainingEnhancementsFacade
from ringrift_pipeline.enhancements.non_finite import NonFiniteStepError
from ringrift_pipeline.enhancements.replicas import Replicas
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import open_window
from ringrift_pipeline.training.hard_examples import read_hard_examples
from ringrift_pipeline.training.loop import parent_model
from ringrift_pipeline.training.parallel_forward import LEAST_ROWS
from ringrift_pipeline.training.processes import Member, run_together
from ringrift_pipeline.training.quality import game_scores
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.state import load_state, save_state
from ringrift_pipeline.training.threads import reproducible, torch_threads

from .conftest import CONFIG, settings
from .test_learning import changed

pytestmark = pytest.mark.whole
STEPS, SAVED = 8, 3
EVERYTHING: dict[str, Any] = {
    "training__batch_size": 131,  # shares of 65 and 66 rows, each on two threads
    "training__threads": 2,
    "training__max_steps": STEPS,
    "training__sample_reuse": 8.0,
    "training__checkpoint_every": 3,
    "training__territory_weight": 0.3,
    "training__margin_weight": 0.2,
    "training__surprise_share": 0.5,
    "training__search_value_share": 0.3,
    "gradients__accumulation_steps": 2,
    "gradients__initial_max_norm": 0.01,  # so that it clips from the start
    "gradients__min_clip": 0.001,
    "mining__upweight": 1.5,
    "curriculum__enabled": True,
    "averaging__interval": 2,
    "stability__snapshot_every": 2,
    "finetune__ewc_weight": 20.0,
}
PLAIN: dict[str, Any] = {
    "quality__enabled": False,
    "mining__enabled": False,
    "training__max_steps": 6,
    "stability__divergence_patience": 2,
}
assert EVERYTHING["training__batch_size"] // 2 >= 2 * LEAST_ROWS


def work_of(root: str, overrides: dict[str, Any], replicas: Replicas | None = None) -> TrainingRun:
    """A run of the second generation with all that its settings ask for, in float64.

    In float32 Adam makes steps of gradients that are 0 but for rounding.
    """
    store = Store(root)
    plan = changed(load_plan(store, CONFIG, 1), **overrides)
    assert plan.parent is not None
    parent, _ = parent_model(plan, open_model(store, plan.parent))
    assert parent is not None
    named = {kind: store.require(CONFIG, 1, kind) for kind in ("quality_scores", "hard_examples")}
    return TrainingRun(
        plan,
        open_window(store.require(CONFIG, 1, "window").path),
        game_scores(named["quality_scores"]) if plan.settings.quality.enabled else None,
        read_hard_examples(named["hard_examples"]) if plan.settings.mining.enabled else None,
        parent.double(),
        store.require(CONFIG, 1, "fisher") if plan.settings.finetune.ewc_weight else None,
        replicas,
    )


def finish(run: TrainingRun) -> TrainingRun:
    while not run.finished:
        run.step()
    return run


@dataclass(frozen=True)
class Job:
    """Something that one process does, and two together."""

    do: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self, replicas: Replicas) -> Any:
        with torch_threads(1), reproducible(5):
            return self.do(replicas, *self.arguments)


def uninterrupted(replicas: Replicas, root: str, states: str) -> dict[str, Any]:
    """The whole run; its state after some steps is saved."""
    run = work_of(root, EVERYTHING, replicas)
    while run.iteration < SAVED:
        run.step()
    if replicas.first:
        folder = Path(states) / f"by-{replicas.count}"
        folder.mkdir()
        save_state(folder, run.state_dict())
    assert replicas.alone or not run.loss._waiting  # else the first one's state lacks them
    return finish(run).state_dict()


def resumed(replicas: Replicas, root: str, state: str) -> dict[str, Any]:
    run = work_of(root, EVERYTHING, replicas)
    run.load_state_dict(load_state(Path(state)))
    assert run.iteration == SAVED
    return finish(run).state_dict()


def with_poison(replicas: Replicas, root: str, where: str, **more: Any) -> dict[str, Any]:
    """A run on data with rows that are not finite; a batch of them is in one share at a time."""
    run = work_of(root, {**PLAIN, **more}, replicas)
    bad = run.dataset.window.training_rows[::60]
    if where == "rows":
        globals_ = np.array(run.dataset.window.globals)
        globals_[bad] = math.nan
        run.dataset.window = replace(run.dataset.window, globals=globals_)
    else:
        run.dataset.policy_weights = np.ones(len(run.dataset), np.float32)
        run.dataset.policy_weights[bad] = math.nan
    try:
        return finish(run).state_dict()
    except NonFiniteStepError as error:
        return {"halted": str(error), "rows": error.rows, "steps": run.iteration}


class Thin(nn.Module):
    """Features (B, 3) to logits; a sample of zeros has finite losses, and no finite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = nn.Linear(3, 4), nn.Linear(3, 2)
        self.root = nn.Parameter(torch.tensor(4.0))
        with torch.no_grad():
            for layer in (self.policy, self.value):
                weights = torch.linspace(-0.3, 0.5, layer.weight.numel())
                layer.weight.copy_(weights.view_as(layer.weight))
                layer.bias.zero_()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rooted = (features[:, :1] * self.root).sqrt()
        return self.policy(features) * rooted, self.value(features)


def batch_of(step: int, rows: slice, bad: tuple[int, ...] = ()) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    features = rng.uniform(0.5, 1.5, (7, 3)).astype(np.float32)
    features[list(bad)] = 0.0
    whole = {
        "features": torch.from_numpy(features),
        "policy_targets": torch.from_numpy(rng.integers(4, size=7)),
        "value_targets": torch.from_numpy(rng.integers(2, size=7)),
        "indices": rng.choice(40, 7, replace=False),
        "weights": torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 0.5, 0.0]),  # none in the first share
        "games": rng.integers(9, size=7),
        "surprise": rng.random(7),
        "reference_loss": rng.random(7),
    }
    return {name: values[rows] for name, values in whole.items()}


def by_facade(replicas: Replicas, accumulation: int) -> dict[str, Any]:
    """Weights of samples, scores and hard examples; entropy; then gradients that are not finite."""
    torch.manual_seed(0)
    model = Thin()
    config = FacadeConfig(
        enable_hard_mining=True,
        hard_min_samples_before_mining=14,
        hard_upweight=2.0,
        enable_quality_scoring=True,
        gradient_accumulation_steps=accumulation,
        divergence_patience=2,
        seed=3,
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    facade = TrainingEnhancementsFacade(model, optimizer, config, replicas=replicas)
    facade.set_quality_scores(np.linspace(0.2, 1.0, 40))
    share, told = replicas.share(7), []
    for step in range(10 * accumulation):
        told.append(facade.train_step(batch_of(step, share)).as_dict())
    bad = (1, 4, 5)  # of both shares
    for step in range(accumulation):
        told.append(facade.train_step(batch_of(step, share, bad)).as_dict())
    for step in range(accumulation + 1):  # the last is left over
        told.append(facade.train_step(batch_of(step, share)).as_dict())
    state = facade.state_dict()
    drawn = [facade.get_hard_indices(4).tolist() for _ in range(3)]
    facade.on_epoch_end(0.5)
    return {"told": told, "state": state, "drawn": drawn, "end": facade.state_dict()}


def all_of(member: Member, jobs: dict[str, Job]) -> dict[str, Any]:
    """Both processes do all jobs; what the first has is what the second has, in every bit."""
    from ringrift_pipeline.training.state import pack_state

    found: dict[str, Any] = {}
    plan = settings()
    with member.joined(plan) as (replicas, device):
        assert device == "cpu" and replicas.count == member.count == 2
        for name, job in jobs.items():
            found[name] = job(replicas)
            packed = pack_state({"made": found[name]})
            tensors = {key: value.numpy().tobytes() for key, value in packed.tensors.items()}
            first, second = replicas.exchange((packed.tree, tensors))
            assert first == second, f"{name}: the processes have drifted apart"
    return as_arrays(found)


def as_arrays(tree: Any) -> Any:
    """A tree with arrays for its tensors, which stay in the memory of their process."""
    if isinstance(tree, dict):
        return {key: as_arrays(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(as_arrays(value) for value in tree)
    return tree.detach().numpy() if isinstance(tree, Tensor) else tree


@pytest.fixture(scope="module")
def found(root: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What one process makes of each job, and what two make of it."""
    states = str(tmp_path_factory.mktemp("states"))
    alone = {"whole": Job(uninterrupted, (root, states))}
    both = {"whole": Job(uninterrupted, (root, states))}
    alone["resumed"] = Job(resumed, (root, f"{states}/by-2"))  # saved by the others
    both["resumed"] = Job(resumed, (root, f"{states}/by-1"))
    for jobs in (alone, both):
        jobs["rows"] = Job(with_poison, (root, "rows"))
        jobs["loss"] = Job(with_poison, (root, "loss"))
        jobs["unaveraged"] = Job(_unaveraged, (root,))
        jobs["facade"] = Job(by_facade, (1,))
        jobs["accumulating"] = Job(by_facade, (3,))
    for where in ("rows", "loss"):
        name = f"{where}, accumulating"
        alone[name] = both[name] = Job(_accumulating, (root, where))
        alone[f"halted {where}"] = both[f"halted {where}"] = Job(_halted, (root, where))
    first = {"whole": alone.pop("whole")(Replicas())}
    together = run_together(2, all_of, both)
    first |= {name: job(Replicas()) for name, job in alone.items()}
    return {name: (first[name], together[name]) for name in both}


def _accumulating(replicas: Replicas, root: str, where: str) -> dict[str, Any]:
    return with_poison(replicas, root, where, gradients__accumulation_steps=3)


def _unaveraged(replicas: Replicas, root: str) -> dict[str, Any]:
    """A run without averaging: its state, and what it keeps."""
    run = finish(work_of(root, {**PLAIN, "averaging__enabled": False}, replicas))
    assert run.kept is not None
    weights = {name: weight.clone() for name, weight in run.kept.items()}
    return {"state": run.state_dict(), "kept": weights, "step": run.kept_step}


def _halted(replicas: Replicas, root: str, where: str) -> dict[str, Any]:
    return with_poison(replicas, root, where, stability__on_non_finite="halt")


def alike(one: Any, two: Any, where: str = "", rounding: float = 1e-5) -> None:
    """Whether two trees are equal: whole numbers and text exactly, others to rounding."""
    if isinstance(one, dict):
        assert list(one) == list(two), where
        for key in one:
            alike(one[key], two[key], f"{where}.{key}", rounding)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            alike(a, b, f"{where}[{number}]", rounding)
    elif isinstance(one, (Tensor, np.ndarray)):
        a, b = (
            np.asarray(each.detach() if isinstance(each, Tensor) else each) for each in (one, two)
        )
        assert a.shape == b.shape and a.dtype == b.dtype, where
        if a.dtype.kind != "f" or not a.size:
            assert np.array_equal(a, b), where
            return
        scale = float(np.abs(np.nan_to_num(a)).max())
        np.testing.assert_allclose(b, a, rounding, rounding * scale + 1e-9, err_msg=where)
    elif isinstance(one, float) and not isinstance(one, bool):
        assert two == pytest.approx(one, rel=rounding, abs=1e-6, nan_ok=True), where
    else:
        assert one == two, where


def test_two_processes_make_the_weights_and_the_state_of_one(found: dict[str, Any]) -> None:
    """Model, average, optimizer, schedule, clipper, miner, tracker, sampler, metrics."""
    one, two = found["whole"]
    parts = one["facade"]["parts"]
    wanted = {
        "accumulator",
        "clipper",
        "scheduler",
        "miner",
        "tracker",
        "averager",
        "monitor",
        "ewc",
    }
    assert wanted <= set(parts)
    assert parts["clipper"]["clipped_steps"] > 0 and one["iteration"] == STEPS
    assert one["facade"]["progress"]["samples_seen"] == STEPS * 2 * 131
    alike(one, two)
    ours, theirs = (
        torch.as_tensor(state["facade"]["model"]["stem.weight"]) for state in (one, two)
    )
    trained, apart = ours - parts["ewc"]["anchors"]["stem.weight"], ours - theirs
    assert 0 < float(apart.norm()) < 1e-6 * float(trained.norm())  # another sum, and rounding alone


def test_a_run_saved_by_two_goes_on_in_one_and_the_reverse(found: dict[str, Any]) -> None:
    whole = found["whole"][0]
    for resumed_run in found["resumed"]:
        alike(whole, resumed_run)


def test_without_averaging_all_keep_the_last_weights(found: dict[str, Any]) -> None:
    one, two = found["unaveraged"]
    assert "averager" not in one["state"]["facade"]["parts"]
    assert one["step"] == one["state"]["iteration"] == PLAIN["training__max_steps"]
    for each in (one, two):
        last = each["state"]["facade"]["model"]
        assert all(np.array_equal(weight, last[name]) for name, weight in each["kept"].items())
    alike(one, two)


@pytest.mark.parametrize("where", ["rows", "loss", "rows, accumulating", "loss, accumulating"])
def test_what_is_not_finite_in_one_share_is_left_out_by_all(
    found: dict[str, Any], where: str
) -> None:
    one, two = found[where]
    assert one["anomalies"] and one["facade"]["progress"]["skipped"] > 0
    alike(one, two)  # the same rows named, the same steps left out, the same rollbacks


@pytest.mark.parametrize("where", ["rows", "loss"])
def test_what_is_not_finite_in_one_share_halts_all(found: dict[str, Any], where: str) -> None:
    one, two = found[f"halted {where}"]
    assert one["rows"] and "(game square8_2p" in one["halted"]
    alike(one, two)


@pytest.mark.parametrize("job", ["facade", "accumulating"])
def test_the_facade_gathers_weights_losses_and_faults(found: dict[str, Any], job: str) -> None:
    one, two = found[job]
    anomalies = [stats["anomaly"] for stats in one["told"] if stats["anomaly"]]
    assert anomalies == ["non_finite"]
    (message,) = [stats["message"] for stats in one["told"] if stats["anomaly"]]
    assert "sample 1" in message and "4" in message and "5" in message
    assert any(one["drawn"])
    if job == "accumulating":
        assert one["state"]["pending"] and not one["end"]["pending"]
    alike(one, two)
