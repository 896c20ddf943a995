"""Combined predictions against formulas in numpy, disagreement, sampling, one network from many."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble

ACTIONS, SEATS, BATCH = 7, 3, 5


class Head(nn.Module):
    def __init__(self, seats: int = SEATS, seed: int = 0, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Dropout(0.5))
        self.policy = nn.Linear(8, ACTIONS)
        self.value = nn.Linear(8, seats)
        self.register_buffer("version", torch.tensor(seed))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(x)
        return 3 * self.policy(hidden), 3 * self.value(hidden)


def features() -> torch.Tensor:
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(9))


def legal() -> torch.Tensor:
    mask = torch.rand(BATCH, ACTIONS, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[:, 0] = True
    return mask


def filled(weights: tuple[float, ...] = (1.0, 2.0, 0.5), **given: Any) -> ModelEnsemble:
    ensemble = ModelEnsemble(**given)
    for seed, weight in enumerate(weights):
        ensemble.add_model(Head(seed=seed), weight, f"m{seed}")
    return ensemble


def numpy_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("masked", [False, True])
def test_policy_in_log_probabilities_value_in_probabilities(masked: bool) -> None:
    mask = legal() if masked else torch.ones(BATCH, ACTIONS, dtype=torch.bool)
    prediction = filled().predict(features(), mask if masked else None)
    shares = np.array([1.0, 2.0, 0.5]) / 3.5
    policies, values = [], []
    for seed in range(3):
        logits, value = Head(seed=seed).eval()(features())
        raw = logits.detach().double().numpy()
        policies.append(numpy_softmax(np.where(mask.numpy(), raw, -np.inf)))
        values.append(numpy_softmax(value.detach().double().numpy()))
    with np.errstate(divide="ignore"):
        product = np.prod([p**w for p, w in zip(policies, shares, strict=True)], axis=0)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction.policy.numpy(), expected, atol=1e-6)
    assert bool((prediction.policy_log_probs[~mask] == -math.inf).all())
    mean_value = np.tensordot(shares, values, 1)
    np.testing.assert_allclose(prediction.value.numpy(), mean_value, atol=1e-6)

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)

    mixture = np.tensordot(shares, policies, 1)
    divergence = entropy(mixture) - np.tensordot(shares, [entropy(p) for p in policies], 1)
    np.testing.assert_allclose(prediction.policy_disagreement.numpy(), divergence, atol=1e-5)
    spread = np.sqrt(np.tensordot(shares, (np.array(values) - mean_value) ** 2, 1)).max(axis=1)
    np.testing.assert_allclose(prediction.value_disagreement.numpy(), spread, atol=1e-6)
    assert float(prediction.policy_disagreement.min()) > 1e-4
    apart = entropy(mean_value) - np.tensordot(shares, [entropy(v) for v in values], 1)
    assert prediction.value_divergence is not None
    np.testing.assert_allclose(prediction.value_divergence.numpy(), apart, atol=1e-6)
    assert float(prediction.value_divergence.min()) > 1e-4
    assert float(prediction.value_divergence.max()) < np.log(3)


def test_scale_of_one_head_does_not_leak_into_the_other() -> None:
    """A member whose policy is very sure weighs no more in the value."""
    sure = Head(seed=1)
    with torch.no_grad():
        sure.policy.weight *= 100
    plain, mixed = ModelEnsemble(), ModelEnsemble()
    plain.add_model(Head(seed=0))
    plain.add_model(Head(seed=1))
    mixed.add_model(Head(seed=0))
    mixed.add_model(sure)
    a, b = plain.predict(features()), mixed.predict(features())
    torch.testing.assert_close(a.value, b.value)
    assert not torch.allclose(a.policy, b.policy)


def test_copies_of_one_model_agree() -> None:
    ensemble = ModelEnsemble()
    for name in "abc":
        ensemble.add_model(Head(seed=3), name=name)
    prediction = ensemble.predict(features())
    logits, value = Head(seed=3).eval()(features())
    torch.testing.assert_close(prediction.policy, logits.softmax(-1))
    torch.testing.assert_close(prediction.value, value.softmax(-1))
    assert float(prediction.policy_disagreement.max()) < 1e-6
    assert float(prediction.value_disagreement.max()) < 1e-6
    assert prediction.value_divergence is not None
    assert float(prediction.value_divergence.max()) < 1e-6


def test_zero_weight_takes_no_part() -> None:
    ensemble = filled((1.0, 0.0, 1.0))
    without = ModelEnsemble()
    without.add_model(Head(seed=0))
    without.add_model(Head(seed=2))
    torch.testing.assert_close(
        ensemble.predict(features()).policy, without.predict(features()).policy
    )
    assert {ensemble.sample_model()[1] for _ in range(50)} == {"m0", "m2"}


@pytest.mark.parametrize(
    ("kind", "seats"),
    [("auto", 1), ("scalar", 1), ("logits", 3), ("wdl", 3), ("probabilities", 3)],
)
def test_value_forms(kind: Any, seats: int) -> None:
    ensemble = ModelEnsemble(value_kind=kind)
    models = [Head(seats, seed).eval() for seed in range(2)]
    for model in models:
        ensemble.add_model(model)
    with torch.no_grad():
        raw = torch.stack([model(features())[1] for model in models])
    prediction = ensemble.predict(features())
    got = prediction.value
    assert (prediction.value_divergence is None) == (seats == 1)
    if seats == 1:
        torch.testing.assert_close(got, raw.mean(0)[:, 0])
    elif kind == "probabilities":
        torch.testing.assert_close(got, raw.mean(0))
    else:
        torch.testing.assert_close(got, raw.softmax(-1).mean(0))


def test_a_probability_of_zero_leaves_the_divergence_finite() -> None:
    class Sure(nn.Module):
        def __init__(self, seat: int) -> None:
            super().__init__()
            self.seat = seat

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(x), 2), torch.eye(2)[[self.seat] * len(x)]

    ensemble = ModelEnsemble(value_kind="probabilities")
    ensemble.add_model(Sure(0))
    ensemble.add_model(Sure(1))
    divergence = ensemble.predict(torch.zeros(3, 1)).value_divergence
    torch.testing.assert_close(divergence, torch.full((3,), math.log(2)))


def test_members_that_leave_no_common_action_are_refused() -> None:
    class Only(nn.Module):
        def __init__(self, *allowed: int) -> None:
            super().__init__()
            self.allowed = torch.tensor(allowed)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.full((len(x), 3), -math.inf)
            logits[:, self.allowed] = 0.0
            logits[0] = 0.0
            return logits, torch.zeros(len(x), 2)

    ensemble = ModelEnsemble()
    ensemble.add_model(Only(0, 1), 1.0, "a")
    ensemble.add_model(Only(1, 2), 1.0, "b")
    policy = ensemble.predict(torch.zeros(3, 1)).policy
    torch.testing.assert_close(policy, torch.tensor([[1 / 3] * 3, [0, 1, 0.0], [0, 1, 0.0]]))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[2, 1] = False  # each member has an action left there, but not the same one
    with pytest.raises(ValueError, match="legal_mask: row 2 has no action .* all members"):
        ensemble.predict(torch.zeros(3, 1), mask)
    ensemble.add_model(Only(0), 1.0, "c")
    with pytest.raises(ValueError, match="row 1 has no action"):
        ensemble.predict(torch.zeros(3, 1))
    ensemble.update_weight("c", 0.0)
    torch.testing.assert_close(ensemble.predict(torch.zeros(3, 1)).policy, policy)


def test_caller_keeps_mode_gradients_and_weights() -> None:
    for training in (True, False):
        model = Head(seed=5).train(training)
        before = copy.deepcopy(model.state_dict())
        ensemble = ModelEnsemble()
        ensemble.add_model(model, name="mine")
        ensemble.predict(features())
        assert model.training is training and model.trunk.training is training
        assert all(p.requires_grad for p in model.parameters())
        with torch.no_grad():
            model.policy.weight.zero_()
        own = ensemble.get_model("mine")
        assert own is not None and own is not model and not own.training
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, before[name])
    prediction = ensemble.predict(features())
    assert not prediction.value.requires_grad
    torch.testing.assert_close(prediction.value, ensemble.predict(features()).value)  # no dropout


def test_names_weights_and_refusals() -> None:
    ensemble = filled()
    assert (ensemble.num_models, ensemble.model_names) == (3, ["m0", "m1", "m2"])
    ensemble.update_weight("m1", 7.0)
    assert ensemble.weights["m1"] == 7.0
    assert ensemble.get_model("absent") is None
    for call, message in [
        (lambda: ensemble.update_weight("absent", 1.0), "absent.*m0, m1, m2"),
        (lambda: ensemble.update_weight("m0", -1.0), "weight"),
        (lambda: ensemble.update_weight("m0", math.nan), "weight"),
        (lambda: ensemble.add_model(Head(), name="m0"), "already"),
        (lambda: ensemble.add_model(Head(), weight=-1.0), "weight"),
        (lambda: ensemble.add_model("somewhere.safetensors"), "model_class"),
        (lambda: ensemble.sample_model(mode="best"), "mode"),  # type: ignore[arg-type]
        (lambda: ensemble.sample_model(mode="pfsp", curve="soft"), "curve"),  # type: ignore[arg-type]
        (lambda: ensemble.record_result("m0", 2.0, 1.0), "score"),
        (lambda: ensemble.record_result("m0", 0.0, 0.0), "games"),
        (lambda: ensemble.record_result("m0", 1e17, 1e17), "games"),
        (lambda: ensemble.record_result("absent", 0.0), "absent"),
        (lambda: ModelEnsemble(value_kind="tanh"), "value_kind"),  # type: ignore[arg-type]
        (lambda: ModelEnsemble(seed=-1), "seed"),
        (lambda: ModelEnsemble().predict(features()), "no model"),
        (lambda: ModelEnsemble().sample_model(), "no model"),
        (lambda: ensemble.predict(features(), torch.zeros(BATCH, ACTIONS).bool()), "legal_mask"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert ensemble.weights == {"m0": 1.0, "m1": 7.0, "m2": 0.5}
    ensemble.add_model(Head())
    assert ensemble.model_names[-1] == "model_3"


def test_weights_whose_sum_is_not_finite_are_refused() -> None:
    ensemble = filled((1e308, 1.0))
    state = ensemble.state_dict()
    for call in (
        lambda: ensemble.update_weight("m1", 1e308),
        lambda: ensemble.add_model(Head(), weight=1e308),
    ):
        with pytest.raises(ValueError, match="weight.*finite sum"):
            call()
    ensemble.update_weight("m0", 1.5e308)  # in place of the one it had
    assert ensemble.weights == {"m0": 1.5e308, "m1": 1.0}
    state["members"][1]["weight"] = 1e308
    with pytest.raises(ValueError, match="weight.*finite sum"):
        ensemble.load_state_dict(state)
    assert bool(ensemble.predict(features()).policy.isfinite().all())


def test_results_stay_countable() -> None:
    ensemble = filled()
    ensemble.record_result("m0", 1e15, 1e15)
    for curve in ("hard", "even", "linear"):
        assert all(p >= 0.0 for p in ensemble.pfsp_priorities(curve).values())  # type: ignore[arg-type]
    before = ensemble.state_dict()["members"]
    with pytest.raises(ValueError, match="games against 'm0' must be at most 1e"):
        ensemble.record_result("m0", 1.0)
    assert ensemble.state_dict()["members"] == before
    filled().load_state_dict(ensemble.state_dict())


def test_members_that_do_not_fit_together_are_refused() -> None:
    odd = filled()
    odd.add_model(Head(seats=2), name="two")
    with pytest.raises(ValueError, match="differ in shape"):
        odd.predict(features())
    single = ModelEnsemble()
    single.add_model(nn.Linear(4, 2), name="linear")
    with pytest.raises(ValueError, match="linear must return"):
        single.predict(features())


def test_models_from_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    save_file(Head(seed=1).state_dict(), tmp_path / "folder" / "model.safetensors")
    save_file(Head(seed=2).state_dict(), tmp_path / "second.safetensors")
    save_file(Head(seats=2).state_dict(), tmp_path / "other.safetensors")
    ensemble = ModelEnsemble(Head, {"seats": SEATS}, torch.device("cpu"))
    ensemble.add_model(tmp_path / "folder")
    ensemble.add_model(str(tmp_path / "second.safetensors"))
    assert ensemble.model_names == ["folder", "second"]
    direct = ModelEnsemble()
    direct.add_model(Head(seed=1))
    direct.add_model(Head(seed=2))
    torch.testing.assert_close(
        ensemble.predict(features()).policy, direct.predict(features()).policy
    )
    with pytest.raises(ValueError, match="does not fit"):
        ensemble.add_model(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="cannot read"):
        ensemble.add_model(tmp_path / "absent.safetensors")
    assert ensemble.num_models == 2


def frequencies(ensemble: ModelEnsemble, **given: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    drawn = [ensemble.sample_model(rng, **given)[1] for _ in range(2000)]
    return np.array([drawn.count(name) for name in ensemble.model_names]) / 2000


def test_sampling_by_weight() -> None:
    expected = np.array([1.0, 2.0, 0.5]) / 3.5
    assert np.abs(frequencies(filled()) - expected).max() < 4 * math.sqrt(0.25 / 2000)


@pytest.mark.parametrize("curve", ["hard", "even", "linear"])
def test_prioritised_fictitious_self_play(curve: Any) -> None:
    ensemble = filled()
    ensemble.record_result("m0", 9.0, 10.0)  # we beat it
    ensemble.record_result("m1", 4.0, 10.0)
    ensemble.record_result("m1", 1.0, 2.0)
    ensemble.record_result("m2", 1.0, 19.0)  # it beats us
    x = np.array([9.5 / 11, 5.5 / 13, 1.5 / 20])
    raw = {"hard": (1 - x) ** 2, "even": x * (1 - x), "linear": 1 - x}[curve]
    expected = raw / raw.sum()
    assert list(ensemble.pfsp_priorities(curve).values()) == pytest.approx(expected.tolist())
    found = frequencies(ensemble, mode="pfsp", curve=curve)
    assert np.abs(found - expected).max() < 4 * math.sqrt(0.25 / 2000)
    if curve == "hard":
        assert expected.argmax() == 2
    if curve == "even":
        assert expected.argmax() == 1


def test_sampling_repeats_by_seed_and_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tobytes()  # type: ignore[index]
    names = [[filled(seed=s).sample_model()[1] for _ in range(1)][0] for s in range(20)]
    one, two, other = filled(seed=3), filled(seed=3), filled(seed=4)
    draws = [[e.sample_model()[1] for _ in range(30)] for e in (one, two, other)]
    assert draws[0] == draws[1] != draws[2] and len(set(names)) > 1
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index]


def test_state_continues_sampling_results_and_predictions() -> None:
    whole = filled(seed=5)
    whole.record_result("m2", 0.5)
    whole.sample_model()
    saved = whole.state_dict()
    for other in (ModelEnsemble(Head), filled((9.0, 9.0, 9.0))):
        other.load_state_dict(saved)
        assert other.weights == whole.weights
        assert other.pfsp_priorities() == whole.pfsp_priorities()
        torch.testing.assert_close(
            other.predict(features()).policy, whole.predict(features()).policy
        )
    expected = [whole.sample_model()[1] for _ in range(20)]
    assert [other.sample_model()[1] for _ in range(20)] == expected
    before = other.weights
    members = saved["members"]
    for change, message in [
        ({"rng": {}}, "rng"),
        ({"models": {}}, "models"),
        ({"members": [{**members[0], "weight": -1.0}]}, "weight"),
        ({"members": members[:1] * 2}, "repeat"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict({**saved, **change})
    with pytest.raises(ValueError, match="model_class"):
        ModelEnsemble().load_state_dict(saved)
    assert other.weights == before


def test_export_is_the_weighted_mean_of_the_weights() -> None:
    ensemble = filled()
    single = ensemble.export()
    models = [Head(seed=s).state_dict() for s in range(3)]
    for name, tensor in single.state_dict().items():
        if tensor.is_floating_point():
            expected = (models[0][name] + 2 * models[1][name] + 0.5 * models[2][name]) / 3.5
            torch.testing.assert_close(tensor, expected)
        else:
            assert int(tensor) == 2  # the newest
    with torch.no_grad():
        single.policy.weight.zero_()  # type: ignore[union-attr, operator]
    assert float(ensemble.get_model("m0").policy.weight.abs().sum()) > 0  # type: ignore[union-attr]
    ensemble.add_model(Head(seed=1, width=4, seats=2))
    with pytest.raises(ValueError, match="shape"):
        ensemble.export()


def test_distillation_approaches_the_ensemble() -> None:
    ensemble = filled()
    student = Head(seed=40).train()
    student.trunk[2] = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(64, ACTIONS, generator=torch.Generator().manual_seed(2)) < 0.7
    mask[:, 1] = True
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    target = ensemble.predict(x, mask)

    def gap() -> tuple[float, float]:
        with torch.no_grad():
            logits, value = student(x)
        log_probs = logits.masked_fill(~mask, -1e9).log_softmax(-1)
        kl = torch.special.entr(target.policy).sum(1).mul(-1) - (target.policy * log_probs).sum(1)
        return float(kl.mean()), float((value.softmax(-1) - target.value).abs().mean())

    before = gap()
    batch = {"features": x, "legal_mask": mask}
    first = ensemble.distill(student, [batch], optimizer)
    last = ensemble.distill(student, [batch] * 80, optimizer)
    after = gap()
    assert after[0] < before[0] / 10 and after[1] < before[1] / 4
    assert last["policy_loss"] < first["policy_loss"] and last["samples"] == 64 * 80
    assert student.training
    with pytest.raises(ValueError, match="batches"):
        ensemble.distill(student, [], optimizer)
    with pytest.raises(ValueError, match="value_weight"):
        ensemble.distill(student, [x], optimizer, value_weight=-1.0)
    with pytest.raises(ValueError, match="optimizer has none of the student's"):
        ensemble.distill(student, [x], torch.optim.Adam(Head(seed=1).parameters()))
    with pytest.raises(ValueError, match="student has no parameter that requires"):
        ensemble.distill(student.requires_grad_(False), [x], optimizer)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("head", ["policy", "value"])
def test_a_member_that_is_not_finite_is_named(bad: float, head: str) -> None:
    ensemble = ModelEnsemble()
    for name in ("sound", "broken"):
        ensemble.add_model(torch.nn.ModuleDict(), 1.0, name)
    outputs = {"policy": torch.zeros(3, 4), "value": torch.zeros(3, 2)}
    broken = {key: value.clone() for key, value in outputs.items()}
    broken[head][1, 1] = bad
    for name, given in (("sound", outputs), ("broken", broken)):
        member = ensemble.get_model(name)
        assert member is not None
        member.forward = lambda features, given=given: (given["policy"], given["value"])
    with pytest.raises(ValueError, match="broken gives a policy or a value that is not finite"):
        ensemble.predict(torch.zeros(3, 1))
    ensemble.update_weight("broken", 0.0)
    assert torch.isfinite(ensemble.predict(torch.zeros(3, 1)).policy).all()
    outputs["policy"][1, 1] = -torch.inf  # illegal, not broken
    assert float(ensemble.predict(torch.zeros(3, 1)).policy[1, 1]) == 0.0
