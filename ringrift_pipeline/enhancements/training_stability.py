"""Telling a spike of the loss from a divergence, and the state to go back to.

``LossMonitor`` judges each step's loss, and counts gradients that are not finite, before the step
is taken: a spike is one bad batch, whose step is left out; a divergence is a model gone bad, and
training goes back to the last ``Snapshot``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import whole_state
from ringrift_pipeline.enhancements.gradient_management import AdaptiveGradientClipper
from ringrift_pipeline.enhancements.gradient_norms import total_norm
from ringrift_pipeline.enhancements.optimizer_state import check_parameter_states

Verdict = Literal["ok", "spike", "non_finite", "divergence"]

MIN_HISTORY = 10  # losses before anything but NaN and infinity is judged
SPREADS = 10.0  # a loss within so many robust standard deviations of the median is no spike
HEALTHY_RISE = 0.25  # a snapshot is taken while the median is at most so much above its best


class LossMonitor:
    """Judges a run's losses, one an optimizer step.

    - ``non_finite``: NaN or infinite.
    - ``spike``: above ``spike_factor`` times the running median, and more than 10 robust standard
      deviations (1.4826 times the median absolute deviation) above it.
    - ``divergence``: the ``divergence_patience``-th of the above in a row; or the running median
      itself above ``spike_factor`` times the best it ever was.

    Args:
        spike_factor: above 1.
        window: losses in the running median, at least 5.
        divergence_patience: bad steps in a row that make a divergence, at least 1.
    """

    def __init__(
        self, spike_factor: float = 3.0, window: int = 50, divergence_patience: int = 5
    ) -> None:
        if not (math.isfinite(spike_factor) and spike_factor > 1.0):
            raise ValueError(f"spike_factor must be above 1, got {spike_factor}")
        if window < 5 or divergence_patience < 1:
            raise ValueError(
                "window must be at least 5 and divergence_patience at least 1, "
                f"got {window} and {divergence_patience}"
            )
        self.spike_factor = float(spike_factor)
        self.window = int(window)
        self.divergence_patience = int(divergence_patience)
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._losses: deque[float] = deque(maxlen=self.window)
        self._best: float | None = None  # lowest running median of a full window
        self._bad = 0  # bad steps in a row

    @property
    def median(self) -> float | None:
        """Running median of the good losses; None before the first."""
        return _median(self._losses) if self._losses else None

    @property
    def healthy(self) -> bool:
        """Whether the running median is near its best: a state worth going back to."""
        return self._best is None or _median(self._losses) <= _above(self._best, HEALTHY_RISE)

    def judge(self, loss: float) -> Verdict:
        """The verdict on a loss; a good one enters the running median: ``weigh`` and ``accept``."""
        verdict = self.weigh(loss)
        if verdict == "ok":
            self.accept(loss)
        return verdict

    def weigh(self, loss: float) -> Verdict:
        """The verdict on a loss. A bad one is counted; a good one waits for ``accept``."""
        if not math.isfinite(loss):
            return self.note_bad("non_finite")
        if len(self._losses) >= min(MIN_HISTORY, self.window):
            median = _median(self._losses)
            spread = 1.4826 * _median([abs(x - median) for x in self._losses])
            bound = max(_above(median, self.spike_factor - 1.0), median + SPREADS * spread)
            if loss > bound:
                return self.note_bad("spike")
        if self._best is not None:
            median = _median([*list(self._losses)[1:], loss])
            if median > _above(self._best, self.spike_factor - 1.0):
                self._losses.append(loss)
                return "divergence"
        return "ok"

    def accept(self, loss: float) -> None:
        """A good loss, whose step is taken, enters the running median and ends a row of bad steps."""
        self._losses.append(loss)
        if len(self._losses) == self.window:
            median = _median(self._losses)
            self._best = median if self._best is None else min(self._best, median)
        self._bad = 0

    def note_bad(self, verdict: Verdict) -> Verdict:
        """Count a bad step (a gradient that is not finite, say): that verdict, or divergence."""
        self._bad += 1
        if self._bad >= self.divergence_patience:
            self._bad = 0
            return "divergence"
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"losses": list(self._losses), "best": self._best, "bad": self._bad}

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; ValueError for a damaged one changes nothing."""
        forms.record(
            losses=forms.listed(forms.number(), most=self.window),
            best=forms.optional(forms.number()),
            bad=forms.whole(0, self.divergence_patience),
        )("", state)
        if (state["best"] is not None) != (len(state["losses"]) == self.window):
            raise ValueError("best must be there when losses fill the window, and only then")
        self._losses = deque((float(x) for x in state["losses"]), maxlen=self.window)
        self._best = None if state["best"] is None else float(state["best"])
        self._bad = int(state["bad"])


def _weights(name: str, value: Any) -> None:
    """A parameter that is finite, or a buffer without NaN (a mask may be infinite)."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {value!r:.80}")
    if name.startswith("model[p."):
        forms.tensor(name, value)
    elif bool(value.isnan().any()):
        raise ValueError(f"{name} is NaN")


def _anything(name: str, value: Any) -> None:
    pass


def _median(values: Any) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _above(level: float, share: float) -> float:
    """``share`` above a level, also where the level is negative."""
    return level + share * abs(level)


class Snapshot:
    """A copy of a model's parameters and buffers and of its optimizer's state, on their device.

    Memory: one model and its optimizer state. The copy is refilled in place.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._saved: dict[str, Tensor] = {}
        self._saved_state: dict[int, dict[str, Any]] = {}  # by position in the parameter groups
        self.taken = False

    @property
    def model(self) -> nn.Module:
        """The model it is of."""
        return self._model

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"p.{name}": p for name, p in self._model.named_parameters()}
        return named | {f"b.{name}": b for name, b in self._model.named_buffers()}

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def take(self) -> None:
        """Copy the present state."""
        self._saved = _copies(self._tensors(), self._saved)
        state = self._optimizer.state
        self._saved_state = {
            i: _copies(state[p], self._saved_state.get(i, {}))
            for i, p in enumerate(self._parameters())
            if p in state
        }
        self.taken = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copied state back, in place; ``RuntimeError`` when none was taken."""
        if not self.taken:
            raise RuntimeError("no snapshot was taken")
        for name, tensor in self._tensors().items():
            tensor.copy_(self._saved[name])
        for i, parameter in enumerate(self._parameters()):
            if i in self._saved_state:
                current = self._optimizer.state[parameter]
                restored = _copies(self._saved_state[i], current)
                current.clear()
                current.update(restored)
            else:
                self._optimizer.state.pop(parameter, None)

    def state_dict(self) -> dict[str, Any] | None:
        """The copied state, or None when none was taken."""
        if not self.taken:
            return None
        return {
            "model": {k: v.clone() for k, v in self._saved.items()},
            "optimizer": {i: _copies(v, {}) for i, v in self._saved_state.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` when it is of another model."""
        if state is None:
            self._saved, self._saved_state, self.taken = {}, {}, False
            return
        forms.record(model=forms.mapping(_weights), optimizer=forms.mapping(_anything, int))(
            "", state
        )
        live = self._tensors()
        saved = state["model"]
        if {k: v.shape for k, v in live.items()} != {k: v.shape for k, v in saved.items()}:
            raise ValueError(f"model: the snapshot is of another one: {', '.join(saved)!s:.200}")
        parameters = self._parameters()
        check_parameter_states("optimizer", state["optimizer"], parameters)
        self._saved = {k: saved[k].to(v, copy=True) for k, v in live.items()}
        self._saved_state = {
            int(i): {
                k: v.clone()
                if isinstance(v, Tensor) and v.dim() == 0
                else (v.to(parameters[int(i)].device, copy=True) if isinstance(v, Tensor) else v)
                for k, v in values.items()
            }
            for i, values in state["optimizer"].items()
        }
        self.taken = True


def _copies(source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the values; tensors go into the target's tensor of that name where one fits."""
    copies: dict[str, Any] = {}
    into: list[Tensor] = []
    of: list[Tensor] = []
    for name, value in source.items():
        old = target.get(name)
        if not isinstance(value, Tensor):
            copies[name] = value
        elif (
            isinstance(old, Tensor)
            and old.shape == value.shape
            and old.dtype == value.dtype
            and old.device == value.device
        ):
            copies[name] = old
            into.append(old)
            of.append(value)
        else:
            copies[name] = value.detach().clone()
    if into:
        torch._foreach_copy_(into, [value.detach() for value in of])
    return copies


class StepGuard:
    """Stands where ``GradientAccumulator.step`` expects a clipper: judges the loss, then clips.

    Args:
        loss: of the step.
        monitor: judges it; None lets every loss pass.
        clipper: clips the gradients; None only measures them.
        mean_weight: scalar tensor by which the gradients still have to be divided, or None.
        before_change: called when loss and gradient are good and the weights about to change.
        add_penalty: adds a penalty's gradient to the gradients and returns the penalty, or None.

    Attributes:
        verdict: the monitor's, where it was not ``ok``.
        norm: total gradient norm before clipping; NaN when the loss was refused.
        penalty: what ``add_penalty`` returned, a scalar.
        bad_parameters: places of the parameters whose gradient is not finite.
    """

    def __init__(
        self,
        loss: float,
        monitor: LossMonitor | None,
        clipper: AdaptiveGradientClipper | None,
        mean_weight: Tensor | None,
        before_change: Callable[[], None],
        add_penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        self.loss = loss
        self.monitor = monitor
        self.clipper = clipper
        self.mean_weight = mean_weight
        self.before_change = before_change
        self.add_penalty = add_penalty
        self.penalty: Tensor | None = None
        self.verdict: Verdict | None = None
        self.norm = math.nan
        self.bad_parameters: list[int] = []

    def update_and_clip(self, parameters: list[Tensor]) -> float:
        """Total norm before clipping; infinite to have the step left out."""
        if self.monitor is not None:
            verdict = self.monitor.weigh(self.loss)
            if verdict != "ok":
                self.verdict = verdict
                return math.inf
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.mean_weight is not None and gradients:
            torch._foreach_mul_(gradients, (1.0 / self.mean_weight).to(gradients[0].dtype))
        if self.add_penalty is not None:
            self.penalty = self.add_penalty()
            gradients = [p.grad for p in parameters if p.grad is not None]
        if self.clipper is not None:
            self.norm = self.clipper.update_and_clip(parameters)
        else:
            self.norm = total_norm(gradients)
        if math.isfinite(self.norm):
            if self.monitor is not None:
                self.monitor.accept(self.loss)
            self.before_change()
        elif self.clipper is not None:
            self.bad_parameters = list(self.clipper.last_nonfinite)
        else:
            self.bad_parameters = [
                i
                for i, p in enumerate(parameters)
                if p.grad is not None and not bool(torch.isfinite(p.grad).all())
            ]
        return self.norm


__all__ = ["LossMonitor", "Snapshot", "StepGuard", "Verdict"]
