"""Several models that predict together, or take turns as opponents.

Policies are combined in log-probabilities (a weighted geometric mean, renormalised), values in
probabilities (a weighted arithmetic mean), so that neither head's scale leaks into the other.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    LARGEST_SEED,
    check_choice,
    check_device,
    check_iterable,
    check_keys,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.checkpoint_files import (
    MODEL_FILE,
    check_hash,
    mean_of_checkpoints,
    unreadable,
)
from ringrift_pipeline.enhancements.ensemble_pooling import (
    EnsemblePrediction,
    pool,
    value_probabilities,
)
from ringrift_pipeline.enhancements.loss_parts import ValueKind, masked_log_softmax
from ringrift_pipeline.enhancements.training_batch import features_fit

SampleMode = Literal["weight", "pfsp"]
PFSPCurve = Literal["hard", "even", "linear"]

LARGEST_COUNT = 1e15  # games against one member: one more can still be told apart


@dataclass
class _Member:
    name: str
    model: nn.Module
    weight: float
    games: float = 0.0
    score: float = 0.0  # our points against it: 1 a win, 1/2 a draw


class ModelEnsemble:
    """A set of named, weighted models. It keeps copies: the caller's models are never touched.

    Models map one argument (``features``) to ``(policy_logits (B, A), value)``.

    Args:
        model_class: builds a model for ``add_model(path)``; not needed for module instances.
        model_kwargs: its keyword arguments.
        device: where the copies live; None: CPU.
        value_kind: form of the value head: ``logits`` (B, seats), ``wdl`` logits (B, 3),
            ``probabilities`` (B, seats), ``scalar`` (B,) or (B, 1) in any range; ``auto`` takes
            one column for ``scalar`` and several for ``logits``.
        seed: of :meth:`sample_model`, where no generator is passed.

    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        model_class: type[nn.Module] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        *,
        value_kind: ValueKind = "auto",
        seed: int = 0,
    ) -> None:
        check_choice("value_kind", value_kind, get_args(ValueKind))
        if (
            model_class is not None
            and not callable(model_class)
            or isinstance(model_class, nn.Module)
        ):
            raise ValueError(f"model_class must build a module, got {model_class!r:.80}")
        if model_kwargs is not None:
            check_type("model_kwargs", model_kwargs, Mapping)
        self.model_class = model_class
        self.model_kwargs = dict(model_kwargs or {})
        self.device = check_device("device", "cpu" if device is None else device)
        self.value_kind = value_kind
        self._rng = np.random.default_rng(check_whole("seed", seed, 0, LARGEST_SEED))
        self._members: list[_Member] = []

    def add_model(
        self,
        model_or_path: nn.Module | str | os.PathLike[str],
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        """Add a copy of a model, or one from a safetensors file (or a folder that holds one).

        Args:
            model_or_path: module, file, or folder with a ``model.safetensors``.
            weight: share in predictions and sampling, relative to the others; 0 takes no part.
            name: unique; None numbers it, or takes the file's name.

        Raises:
            ValueError: weight negative or all weights together not finite, name taken, file unreadable or not fitting
                ``model_class``, or a path without a ``model_class``; nothing changes.
        """
        share = check_number("weight", weight, 0.0)
        _check_total([*self.weights.values(), share], "weight")
        check_type("model_or_path", model_or_path, (nn.Module, str, os.PathLike))
        if name is not None:
            check_type("name", name, str)
        if isinstance(model_or_path, nn.Module):
            model = copy.deepcopy(model_or_path)
            chosen = name or self._free_name()
        else:
            model = self._read(Path(model_or_path))
            chosen = name or Path(model_or_path).stem
        if chosen in self.model_names:
            raise ValueError(f"name {chosen!r} is already in the ensemble")
        model.to(self.device).eval().requires_grad_(False)
        self._members.append(_Member(chosen, model, share))

    def _free_name(self) -> str:
        number = len(self._members)
        while f"model_{number}" in self.model_names:
            number += 1
        return f"model_{number}"

    def _read(self, path: Path) -> nn.Module:
        if self.model_class is None:
            raise ValueError(f"model_or_path: model_class is needed to load {path}")
        file = path / MODEL_FILE if path.is_dir() else path
        try:
            tensors = load_file(str(file))
            check_hash(file)
        except SafetensorError as error:
            raise ValueError(f"model_or_path: {unreadable(file, error)}") from error
        except OSError as error:
            raise ValueError(f"model_or_path: cannot read {file}: {error}") from error
        model = self.model_class(**self.model_kwargs)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"model_or_path: {file} does not fit: {error}") from error
        return model

    @property
    def num_models(self) -> int:
        """Number of models."""
        return len(self._members)

    @property
    def model_names(self) -> list[str]:
        """Names in the order of adding."""
        return [member.name for member in self._members]

    @property
    def weights(self) -> dict[str, float]:
        """Weight by name, as given."""
        return {member.name: member.weight for member in self._members}

    def get_model(self, name: str) -> nn.Module | None:
        """The ensemble's own copy of a model, in eval mode; None if there is none of that name.

        Raises:
            ValueError: ``name`` is no text.
        """
        check_type("name", name, str)
        return next((member.model for member in self._members if member.name == name), None)

    def update_weight(self, name: str, weight: float) -> None:
        """Set a model's weight; ValueError for an unknown name, a negative weight, or weights that
        together are not finite.
        """
        member, share = self._member(name), check_number("weight", weight, 0.0)
        _check_total([*(self.weights | {name: share}).values()], "weight")
        member.weight = share

    def _member(self, name: str) -> _Member:
        check_type("name", name, str)
        for member in self._members:
            if member.name == name:
                return member
        known = ", ".join(self.model_names) or "none"
        raise ValueError(f"name {name!r} is not in the ensemble; it has: {known}")

    def _voters(self) -> tuple[list[_Member], np.ndarray]:
        """Members of positive weight, and their shares summing to 1."""
        voters = [member for member in self._members if member.weight > 0]
        if not voters:
            raise ValueError("the ensemble has no model of positive weight")
        shares = np.array([member.weight for member in voters])
        return voters, shares / shares.sum()

    # Prediction.

    @torch.no_grad()
    def predict(self, features: Any, legal_mask: Tensor | None = None) -> EnsemblePrediction:
        """The members' combined policy and value, and how far they disagree.

        Args:
            features: what the models take, on their device.
            legal_mask: (B, A) bool, True where legal; logits of ``-inf`` are illegal anyway.

        Raises:
            ValueError: no members, a row without an action that is legal for all of them, or
                members whose outputs differ in shape, are not finite or are not
                ``(policy_logits, value)``.
        """
        voters, shares = self._voters()
        if legal_mask is not None:
            check_type("legal_mask", legal_mask, Tensor)
        log_probs: list[Tensor] = []
        values: list[Tensor] = []
        for member in voters:
            member.model.eval()  # whatever a caller of get_model did to it
            logits, value = _outputs(member.name, member.model, features)
            if log_probs and (logits.shape != log_probs[0].shape):
                raise ValueError(
                    f"{member.name} gives a policy {tuple(logits.shape)}, "
                    f"{voters[0].name} {tuple(log_probs[0].shape)}"
                )
            if legal_mask is not None and (
                legal_mask.shape != logits.shape
                or legal_mask.dtype != torch.bool
                or legal_mask.device != logits.device
            ):
                raise ValueError(
                    f"legal_mask must be bool {tuple(logits.shape)} on {logits.device}, got "
                    f"{legal_mask.dtype} {tuple(legal_mask.shape)} on {legal_mask.device}"
                )
            illegal = logits == -torch.inf
            legal = ~illegal if legal_mask is None else legal_mask & ~illegal
            if not bool(legal.any(dim=1).all()):
                raise ValueError("legal_mask: a row has no legal action")
            log_prob = masked_log_softmax(logits, legal).masked_fill(~legal, -torch.inf)
            won = self._value(value)
            if not bool((log_prob.isfinite() == legal).all() & won.isfinite().all()):
                raise ValueError(f"{member.name} gives a policy or a value that is not finite")
            log_probs.append(log_prob)
            values.append(won)
        return pool(log_probs, values, shares.tolist())

    def _value(self, value: Tensor) -> Tensor:
        return value_probabilities(value, self.value_kind)

    # Opponents.

    def sample_model(
        self,
        generator: np.random.Generator | None = None,
        mode: SampleMode = "weight",
        curve: PFSPCurve = "hard",
    ) -> tuple[nn.Module, str]:
        """Draw an opponent.

        Args:
            generator: source of the draw; None: the ensemble's own, seeded and saved.
            mode: ``weight``: in proportion to the weights. ``pfsp``: prioritised fictitious
                self-play (Vinyals et al. 2019), in proportion to :meth:`pfsp_priorities`.
            curve: of the priorities in mode ``pfsp``.

        Returns:
            Our copy of the model, in eval mode, and its name.

        Raises:
            ValueError: unknown mode or curve, or no model of positive weight.
        """
        check_choice("mode", mode, get_args(SampleMode))
        check_choice("curve", curve, get_args(PFSPCurve))
        if generator is not None:
            check_type("generator", generator, np.random.Generator)
        voters, shares = self._voters()
        if mode == "pfsp":
            priorities = self.pfsp_priorities(curve)
            shares = np.array([priorities[member.name] for member in voters])
        rng = self._rng if generator is None else generator
        member = voters[int(rng.choice(len(voters), p=shares))]
        return member.model, member.name

    def record_result(self, name: str, score: float, games: float = 1.0) -> None:
        """Note games of ours against a member, for :meth:`pfsp_priorities`.

        Args:
            name: the opponent.
            score: our points in them: 1 a win, 1/2 a draw; in ``[0, games]``.
            games: how many, above 0; of all calls together at most 1e15.

        Raises:
            ValueError: unknown name or numbers out of range; nothing changes.
        """
        member = self._member(name)
        played = check_number("games", games, 0.0, above=True)
        points = check_number("score", score, 0.0, played)
        if member.games + played > LARGEST_COUNT:
            raise ValueError(
                f"games against {name!r} must be at most {LARGEST_COUNT:g} together, "
                f"got {games!r} more than {member.games:g}"
            )
        member.games += played
        member.score += points

    def pfsp_priorities(self, curve: PFSPCurve = "hard") -> dict[str, float]:
        """Sampling probability by name, from our share ``x`` of the points against each.

        ``hard`` is (1 - x)^2: those we lose to; ``even`` is x (1 - x): those of our strength;
        ``linear`` is 1 - x. ``x`` counts one drawn game before the first, so it is never 0 or 1.
        """
        check_choice("curve", curve, get_args(PFSPCurve))
        voters, _ = self._voters()
        x = np.array([(member.score + 0.5) / (member.games + 1.0) for member in voters])
        raw = {"hard": (1 - x) ** 2, "even": x * (1 - x), "linear": 1 - x}[curve]
        return {m.name: float(p) for m, p in zip(voters, raw / raw.sum(), strict=True)}

    # One network out of many.

    def export(self) -> nn.Module:
        """One network whose weights are the weighted mean of the members' (a "model soup").

        Sensible for members of one training history. In eval mode, on the ensemble's device.

        Raises:
            ValueError: no members, or members of different architectures.
        """
        voters, shares = self._voters()
        states = [{k: v for k, v in m.model.state_dict().items()} for m in voters]
        single = copy.deepcopy(voters[0].model)
        single.load_state_dict(mean_of_checkpoints(states, weights=shares.tolist()))
        return single

    def distill(
        self,
        student: nn.Module,
        batches: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        value_weight: float = 1.0,
    ) -> dict[str, float]:
        """Train one network towards the ensemble's predictions (Hinton et al. 2015).

        Args:
            student: any network of the same inputs and outputs, on the ensemble's device; it is
                trained in place, its train or eval mode left as it is.
            batches: ``features``, or mappings with ``features`` and optionally ``legal_mask``.
            optimizer: of parameters of the student, all or some.
            value_weight: factor of the value loss.

        Returns:
            ``policy_loss`` (cross-entropy, nats), ``value_loss`` (cross-entropy in nats, squared
            error for a scalar head), each a mean over samples, and ``samples``.

        Raises:
            ValueError: no batches, an optimizer without a trainable parameter of the student, or a
                loss that is not finite (the student is not stepped).
        """
        factor = check_number("value_weight", value_weight, 0.0)
        check_type("student", student, nn.Module)
        check_type("optimizer", optimizer, torch.optim.Optimizer)
        trainable = {id(p) for p in student.parameters() if p.requires_grad}
        if not trainable:
            raise ValueError("student has no parameter that requires a gradient: nothing to train")
        if not any(id(p) in trainable for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "optimizer has none of the student's parameters: it would not train it"
            )
        batches = check_iterable("batches", batches)
        policy_sum = value_sum = 0.0
        samples = 0
        for batch in batches:
            mapped = isinstance(batch, Mapping) and "features" in batch
            features = batch["features"] if mapped else batch
            mask = batch.get("legal_mask") if mapped else None
            with forms.naming("batches"):
                target = self.predict(features, mask)
            logits, value = _outputs("student", student, features)
            if logits.shape != target.policy_log_probs.shape:
                raise ValueError(
                    f"student gives a policy {tuple(logits.shape)}, "
                    f"the ensemble {tuple(target.policy_log_probs.shape)}"
                )
            legal = target.policy_log_probs > -torch.inf
            log_probs = masked_log_softmax(logits, legal)
            policy_loss = -(target.policy * log_probs).sum(dim=1).mean()
            predicted = self._value(value)
            if predicted.shape != target.value.shape:
                raise ValueError(
                    f"student gives a value {tuple(predicted.shape)}, "
                    f"the ensemble {tuple(target.value.shape)}"
                )
            if predicted.dim() == 1:
                value_loss = (predicted - target.value).square().mean()
            else:
                logs = predicted.clamp_min(torch.finfo(predicted.dtype).tiny).log()
                value_loss = -(target.value * logs).sum(dim=1).mean()
            loss = policy_loss + factor * value_loss
            if not bool(torch.isfinite(loss)):
                raise ValueError("distill: the student's loss is not finite")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            samples += len(logits)
            policy_sum += float(policy_loss.detach()) * len(logits)
            value_sum += float(value_loss.detach()) * len(logits)
        if samples == 0:
            raise ValueError("batches is empty")
        optimizer.zero_grad(set_to_none=True)
        return {
            "policy_loss": policy_sum / samples,
            "value_loss": value_sum / samples,
            "samples": float(samples),
        }

    # State.

    def state_dict(self) -> dict[str, Any]:
        """``models``: name -> tensors (copies); the rest plain values."""
        return {
            "members": [
                {"name": m.name, "weight": m.weight, "games": m.games, "score": m.score}
                for m in self._members
            ],
            "models": {
                m.name: {k: v.detach().clone() for k, v in m.model.state_dict().items()}
                for m in self._members
            },
            "rng": self._rng.bit_generator.state,
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict`.

        Models of the same names are reused for their architecture; others need ``model_class``.

        Raises:
            ValueError: something missing or not fitting; nothing changes.
        """
        check_keys(state_dict, self.state_dict(), "ModelEnsemble")
        rng = np.random.default_rng(0)
        try:
            rng.bit_generator.state = state_dict["rng"]
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"rng state is malformed: {error}") from error
        member_form = forms.record(
            name=forms.text,
            weight=forms.number(0.0),
            games=forms.number(0.0, LARGEST_COUNT),
            score=forms.number(0.0),
        )
        forms.record(
            members=forms.listed(member_form),
            models=forms.mapping(forms.mapping(forms.tensor)),
            rng=forms.generator,
        )("", state_dict)
        given = [entry["name"] for entry in state_dict["members"]]
        if len(set(given)) != len(given):
            raise ValueError("members: names repeat")
        _check_total([entry["weight"] for entry in state_dict["members"]], "members: weight")
        if set(given) != state_dict["models"].keys():
            raise ValueError("members and models must have the same names")
        members = []
        for entry in state_dict["members"]:
            name = entry["name"]
            own = self.get_model(name)
            if own is None and self.model_class is None:
                raise ValueError(f"members: {name!r} is not here, and there is no model_class")
            model = copy.deepcopy(own) if own is not None else self._build()
            try:
                model.load_state_dict(state_dict["models"][name])
            except RuntimeError as error:
                raise ValueError(f"models: {name!r} does not fit: {error}") from error
            model.to(self.device).eval().requires_grad_(False)
            games = check_number("games", entry["games"], 0.0)
            score = check_number("score", entry["score"], 0.0, games)
            members.append(
                _Member(name, model, check_number("weight", entry["weight"], 0.0), games, score)
            )
        self._members, self._rng = members, rng

    def _build(self) -> nn.Module:
        assert self.model_class is not None
        return self.model_class(**self.model_kwargs)


def _check_total(weights: list[float], name: str) -> None:
    if not math.isfinite(sum(weights)):
        raise ValueError(f"{name}: the weights of all models must have a finite sum, got {weights}")


def _outputs(name: str, model: nn.Module, features: Any) -> tuple[Tensor, Tensor]:
    with features_fit(name):
        result = model(features)
    pair = isinstance(result, tuple | list) and len(result) == 2
    if not pair or not all(isinstance(output, Tensor) for output in result):
        raise ValueError(f"{name} must return (policy_logits, value)")
    logits, value = result
    if logits.dim() != 2 or value.dim() not in (1, 2) or len(value) != len(logits):
        raise ValueError(
            f"{name} must return (B, A) and (B,) or (B, seats), "
            f"got {tuple(logits.shape)} and {tuple(value.shape)}"
        )
    return logits, value


__all__ = ["EnsemblePrediction", "ModelEnsemble"]
