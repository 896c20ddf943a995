"""Elastic weight consolidation: training on without losing what was learned.

    ewc = EWCRegularizer(model, lambda_ewc=1000.0)
    ewc.compute_fisher(first_task)           # after training on it
    loss = task_loss + ewc.penalty(model)    # while training on the next

The penalty is ``lambda / 2 * sum(F * (theta - anchor)**2)``: what a parameter may move is weighed
by its Fisher information (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural
networks").
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_choice,
    check_keys,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.checkpoint_files import check_hash, write_checkpoint
from ringrift_pipeline.enhancements.ewc_penalty import Quadratic, add_pulls
from ringrift_pipeline.enhancements.fisher_information import fisher_information
from ringrift_pipeline.enhancements.model_views import plain_names, unwrapped
from ringrift_pipeline.enhancements.predictive_labels import Criterion, HeadKind, PredictiveLabels

logger = logging.getLogger(__name__)

Anchor = Literal["mean", "latest"]
STATE_FORMAT = "ewc/1"
_SETTINGS = ("lambda_ewc", "normalize_fisher", "gamma", "anchor", "seed")


class EWCRegularizer:
    """The penalty for leaving what earlier tasks need.

    Of a task with Fisher information F (diagonal, mean over samples) and optimum theta, what is
    kept is the quadratic ``F / 2 * (x - theta)**2``. Tasks are merged online: with importance L
    and anchor a so far, ``compute_fisher`` makes L' = gamma * L + F, and

    - ``anchor="mean"``: a' = (gamma * L * a + F * theta) / L', a parameter at a time. Then
      ``L' / 2 * (x - a')**2`` is the sum of all tasks' quadratics up to a constant, exactly: the
      same gradient everywhere at the memory of one task. (Where L' is 0, a' is theta.)
    - ``anchor="latest"``: a' = theta (Schwarz et al. 2018, "Progress & Compress"; Huszar 2018).
      Right where theta was found with the penalty in its loss and trained to the end: then
      the pull of the earlier tasks is balanced there, and expanding about theta counts it once.

    Args:
        model: ``model(features)``, trained; a wrapper (``DataParallel``, ``AveragedModel``,
            ``torch.compile``) stands for what it wraps.
        lambda_ewc: weight of the penalty, >= 0.
        normalize_fisher: divide each task's F by its greatest entry, over all parameters alike, so
            that lambda means the same for any task and model and layers keep their proportions.
        gamma: what a further task leaves of the importance of those before, in (0, 1].
        anchor: see above.
        seed: of the drawn labels.
        heads: form of each of the model's heads, see ``PredictiveLabels``.

    Raises:
        ValueError: a setting out of range, by name, or a model without trainable parameters.

    Attributes:
        tasks: how many were merged; while 0 the penalty is 0.
    """

    def __init__(
        self,
        model: nn.Module,
        lambda_ewc: float = 1000.0,
        normalize_fisher: bool = True,
        *,
        gamma: float = 1.0,
        anchor: Anchor = "mean",
        seed: int = 0,
        heads: Mapping[str, HeadKind] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch module, got {type(model).__name__}")
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("model has no parameter that requires a gradient")
        self.model = model
        self._set(lambda_ewc, normalize_fisher, gamma, anchor, seed)
        PredictiveLabels(0, heads)  # refuse unknown forms now
        self._heads = dict(heads or {})
        self.tasks = 0
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}
        self._told: frozenset[str] = frozenset()

    def _set(
        self, lambda_ewc: Any, normalize_fisher: Any, gamma: Any, anchor: Any, seed: Any
    ) -> None:
        weight = check_number("lambda_ewc", lambda_ewc, 0.0)
        if not isinstance(normalize_fisher, bool):
            raise ValueError(f"normalize_fisher must be True or False, got {normalize_fisher!r}")
        decay = check_number("gamma", gamma, 0.0, 1.0, above=True)
        check_choice("anchor", anchor, get_args(Anchor))
        self.seed = check_whole("seed", seed, 0)
        self.lambda_ewc, self.gamma = weight, decay
        self.normalize_fisher = normalize_fisher
        self.anchor: Anchor = anchor

    @property
    def fisher(self) -> dict[str, Tensor]:
        """Parameter name -> merged importance F, of its parameter's shape, >= 0; a copy.

        float64 for float64 parameters, else float32, on the parameter's device. Empty before the
        first task.
        """
        return {name: tensor.clone() for name, tensor in self._fisher.items()}

    @property
    def anchors(self) -> dict[str, Tensor]:
        """Parameter name -> where the penalty pulls to; a copy, as :attr:`fisher` in all else."""
        return {name: tensor.clone() for name, tensor in self._anchor.items()}

    # --- a task ended -----------------------------------------------------------------------

    def compute_fisher(
        self,
        dataloader: Iterable[Any],
        criterion: Criterion | None = None,
        num_samples: int = 1000,
        device: str | torch.device | None = None,
    ) -> None:
        """Measure the present model's Fisher information and merge it as a further task.

        The mean over samples of squared per-sample gradients of the log-likelihood, with labels
        drawn from the model's own prediction; the data's labels are not used. The result does not
        depend on the batch size (but for rounding). The model is in evaluation mode meanwhile and
        is left as it was: modes, gradients, buffers and torch's random state.

        Args:
            dataloader: batches ``(features, ...)``, mappings with ``features`` and optionally
                ``legal_mask`` (B, A) bool (for the first head of that shape), or features alone;
                tensors and arrays with the batch in front, nested as the model takes them.
            criterion: ``criterion(outputs, labels)`` -> (B,) losses for labels drawn in the form
                of the outputs; torch's loss modules are used without their reduction. None: the
                negative log-likelihood, summed over heads.
            num_samples: the first so many are used; all where there are fewer.
            device: where the model is, for checking; None: wherever that is.

        Raises:
            ValueError: no samples, outputs or batches of an unknown form, a gradient that is not
                finite, a parameter whose shape differs from the earlier tasks' (each named); the
                state is as before then.
        """
        model = unwrapped(self.model)
        names = plain_names(model)
        current = {names[n]: p for n, p in model.named_parameters() if p.requires_grad}
        for name in (name for name in current if name in self._fisher):
            if self._fisher[name].shape != current[name].shape:
                raise ValueError(_other_shape(name, self._fisher[name], current[name]))
        measured = fisher_information(
            model,
            dataloader,
            criterion,
            num_samples,
            device,
            seed=np.random.SeedSequence(self.seed, spawn_key=(self.tasks,)),
            heads=self._heads,
        )
        fisher = {names[name]: tensor for name, tensor in measured.items()}
        if self.normalize_fisher:
            greatest = max(float(tensor.max()) for tensor in fisher.values())
            if greatest > 0.0:
                fisher = {name: tensor.div_(greatest) for name, tensor in fisher.items()}
        self._merge(fisher, {name: p.detach() for name, p in current.items()})

    @torch.no_grad()
    def _merge(self, fisher: dict[str, Tensor], optimum: dict[str, Tensor]) -> None:
        for name, old in self._fisher.items():
            old.mul_(self.gamma)
            if name not in fisher:  # frozen meanwhile: its importance only fades
                continue
            new, theta = fisher[name].to(old.device), optimum[name].to(old.device)
            total = old + new
            if self.anchor == "latest":
                self._anchor[name].copy_(theta)
            else:
                share = torch.where(total > 0, new / total, 1.0)
                self._anchor[name].lerp_(theta.to(old.dtype), share.to(old.dtype))
            old.copy_(total)
        for name in [name for name in fisher if name not in self._fisher]:
            self._fisher[name] = fisher[name].contiguous()
            self._anchor[name] = optimum[name].to(fisher[name].dtype).contiguous().clone()
        self.tasks += 1

    # --- the penalty ------------------------------------------------------------------------

    def penalty(self, model: nn.Module) -> Tensor:
        """``lambda / 2 * sum(F * (theta - anchor)**2)``, a scalar, once differentiable; 0 if no task.

        Args:
            model: the one given at the start, a copy, or either one wrapped.

        Raises:
            ValueError: it lacks a parameter of the tasks, or has it in another shape, by name.
        """
        total: Tensor | None = None
        for parameter, fisher, anchor in self._matched(model):
            part = Quadratic.apply(parameter, fisher, anchor)
            total = part if total is None else total + part
        if total is None:
            return torch.zeros((), device=next(model.parameters()).device)
        return total * (0.5 * self.lambda_ewc)

    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> Tensor:
        """Add the penalty's gradient to ``.grad`` of the parameters; returns the penalty.

        The same as ``penalty(model).backward()``, without a graph. A parameter's ``.grad`` has its
        shape and dtype; where it is None one is made.

        Args:
            model: the one that was measured, or one of the same parameters, wrapped or not.

        Returns:
            The penalty, a 0-d tensor of the importance's dtype without graph, on the model's
            device; 0 before the first task.

        Raises:
            ValueError: as ``penalty``; no gradient has changed then.
        """
        matched = self._matched(model)
        if not matched:
            return torch.zeros((), device=next(model.parameters()).device)
        total = add_pulls(matched, self.lambda_ewc)
        return total * (0.5 * self.lambda_ewc)

    def unprotected(self, model: nn.Module) -> list[str]:
        """Names of trainable parameters of a model that no task knows: the penalty lets them be."""
        inner = unwrapped(model)
        names = plain_names(inner)
        return [
            names[n]
            for n, p in inner.named_parameters()
            if p.requires_grad and names[n] not in self._fisher
        ]

    def _matched(self, model: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(parameter, importance, anchor) of every parameter that a task knows."""
        if not self._fisher:
            return []
        inner = unwrapped(model)
        names = plain_names(inner)
        parameters = {names[n]: p for n, p in inner.named_parameters()}
        _check_fit(self._fisher, parameters)
        matched: list[tuple[Tensor, Tensor, Tensor]] = []
        for name, fisher in self._fisher.items():
            parameter = parameters[name]
            if fisher.device != parameter.device:
                self._fisher[name] = fisher = fisher.to(parameter.device)
                self._anchor[name] = self._anchor[name].to(parameter.device)
            matched.append((parameter, fisher, self._anchor[name]))
        if len(matched) < len(parameters):
            odd = frozenset(self.unprotected(inner))
            if odd - self._told:
                self._told |= odd
                logger.warning("no task knows %s: not protected", ", ".join(sorted(odd)))
        return matched

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Settings, importance and anchor, copies: tensors by name and plain values."""
        return {
            "format": STATE_FORMAT,
            **{name: getattr(self, name) for name in _SETTINGS},
            "tasks": self.tasks,
            "fisher": self.fisher,
            "anchors": self.anchors,
        }

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, settings included.

        Raises:
            ValueError: another format, something missing or out of range, or parameters that the
                model lacks or has in another shape, by name; the state is as before then.
        """
        found = state.get("format") if isinstance(state, Mapping) else None
        if not isinstance(state, Mapping) or found != STATE_FORMAT:
            raise ValueError(f"format: state is not an {STATE_FORMAT} state, but {found!r}")
        check_keys(state, (*_SETTINGS, "tasks", "fisher", "anchors"), type(self).__name__)
        forms.record(fisher=forms.mapping(forms.tensor), anchors=forms.mapping(forms.tensor))(
            "", state
        )
        fisher, anchors = dict(state["fisher"]), dict(state["anchors"])
        tasks = check_whole("tasks", state["tasks"], 0)
        if fisher.keys() != anchors.keys() or bool(fisher) != bool(tasks):
            raise ValueError("state: fisher and anchors must name the same parameters")
        inner = unwrapped(self.model)
        names = plain_names(inner)
        parameters = {names[n]: p for n, p in inner.named_parameters()}
        _check_fit(fisher, parameters)
        for name in fisher:
            good = torch.isfinite(fisher[name]).all() and (fisher[name] >= 0).all()
            if anchors[name].shape != fisher[name].shape or not (
                good and torch.isfinite(anchors[name]).all()
            ):
                raise ValueError(f"state: {name} must have finite numbers, importance none below 0")
        self._set(*(state[name] for name in _SETTINGS))
        place = {name: parameters[name].device for name in fisher}
        self._fisher = {n: t.detach().to(place[n], copy=True) for n, t in fisher.items()}
        self._anchor = {n: t.detach().to(place[n], copy=True) for n, t in anchors.items()}
        self.tasks = tasks

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`state_dict` to a safetensors file, by way of a temporary name."""
        check_type("path", path, (str, os.PathLike))
        state = self.state_dict()
        tensors = {f"fisher/{name}": t for name, t in state.pop("fisher").items()}
        tensors |= {f"anchor/{name}": t for name, t in state.pop("anchors").items()}
        write_checkpoint(Path(path), tensors, {"ewc": json.dumps(state, sort_keys=True)})

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Restore what :meth:`save_state` wrote, bit for bit.

        Raises:
            ValueError: the file is missing, damaged or of another format (by path), or does not
                fit, as for ``load_state_dict``.
        """
        check_type("path", path, (str, os.PathLike))
        try:
            with safe_open(str(path), framework="pt", device="cpu") as source:
                state = json.loads((source.metadata() or {})["ewc"])
                tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(f"path {path} holds no EWC state that can be read: {error}") from error
        if not isinstance(state, dict):
            raise ValueError(f"path {path} holds no EWC state")
        check_hash(Path(path))
        for kind, entry in (("fisher", "fisher/"), ("anchors", "anchor/")):
            state[kind] = {
                name.removeprefix(entry): tensor
                for name, tensor in tensors.items()
                if name.startswith(entry)
            }
        self.load_state_dict(state)


def _check_fit(fisher: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    missing = [name for name in fisher if name not in parameters]
    if missing:
        raise ValueError(f"model lacks {', '.join(missing[:5])}, which an earlier task protects")
    for name, tensor in fisher.items():
        if tensor.shape != parameters[name].shape:
            raise ValueError(_other_shape(name, tensor, parameters[name]))


def _other_shape(name: str, fisher: Tensor, parameter: Tensor) -> str:
    return (
        f"model: {name} has shape {tuple(parameter.shape)}, the earlier task's "
        f"{tuple(fisher.shape)}"
    )


__all__ = ["EWCRegularizer"]
