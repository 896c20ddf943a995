"""Clipping of gradients against what is usual for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_choice,
    check_iterable,
    check_keys,
    check_number,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.gradient_norms import (
    agc_scales,
    check_gradients,
    gradient_norms,
)

ClipMode = Literal["parameter", "agc", "global"]
CLIP_MODES: tuple[str, ...] = ("parameter", "agc", "global")

# Total norms that mode "global" wants before it trusts their percentile.
_MIN_HISTORY = 10


class AdaptiveGradientClipper:
    """Clips gradients against what is usual, not against a fixed number.

    Modes:
        ``parameter``: each tensor's L2 norm is held to ``clip_factor`` times the moving average of
        that tensor's own norm (mean of the first ``history_size`` steps, exponential after), the
        bound lying in ``[min_clip, max_clip]``. What enters the average is the clipped norm, so
        one spike cannot raise the bound; exact zeros do not enter it.

        ``agc``: unit-wise adaptive gradient clipping (Brock et al. 2021, "High-performance
        large-scale image recognition without normalization"): the gradient of each output unit is
        held to ``agc_ratio`` times the norm of its weights. Leave the heads out, as the paper
        does, by not passing their parameters.

        ``global``: the total norm is held to the ``percentile`` of the last ``history_size``
        finite total norms (Seetharaman et al. 2020, "AutoClip"), in ``[min_clip, max_clip]``.

    A step with a non-finite gradient is skipped whole: it enters no average, every ``grad`` is set
    to None so that ``optimizer.step()`` moves nothing, and ``get_stats`` counts it.

    Args:
        initial_max_norm: bound before there is any history, gradient norm.
        percentile: of past total norms, in (0, 100] (mode ``global``).
        history_size: steps looked back.
        min_clip, max_clip: least and greatest bound, gradient norm.
        mode: ``parameter``, ``agc`` or ``global``.
        clip_factor: multiple of its average that a tensor's norm may reach (mode ``parameter``).
        agc_ratio: share of the weight norm that a unit's gradient may reach (mode ``agc``).
        agc_eps: weight norms below it count as it, so that fresh zeros can move (mode ``agc``).

    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        initial_max_norm: float = 1.0,
        percentile: float = 90.0,
        history_size: int = 100,
        min_clip: float = 0.1,
        max_clip: float = 10.0,
        *,
        mode: ClipMode = "parameter",
        clip_factor: float = 2.0,
        agc_ratio: float = 0.01,
        agc_eps: float = 1e-3,
    ) -> None:
        self.initial_max_norm = check_number("initial_max_norm", initial_max_norm, 0.0, above=True)
        self.percentile = check_number("percentile", percentile, 0.0, above=True)
        if self.percentile > 100.0:
            raise ValueError(f"percentile must be in (0, 100], got {percentile!r}")
        self.history_size = check_whole("history_size", history_size, 1)
        self.min_clip = check_number("min_clip", min_clip, 0.0, above=True)
        self.max_clip = check_number("max_clip", max_clip, 0.0, above=True)
        if self.min_clip > self.max_clip:
            raise ValueError(f"min_clip {min_clip!r} must not exceed max_clip {max_clip!r}")
        self.mode: ClipMode = check_choice("mode", mode, CLIP_MODES)
        self.clip_factor = check_number("clip_factor", clip_factor, 0.0, above=True)
        self.agc_ratio = check_number("agc_ratio", agc_ratio, 0.0, above=True)
        self.agc_eps = check_number("agc_eps", agc_eps, 0.0, above=True)
        self.reset()

    def reset(self) -> None:
        """Forget all history."""
        self.grad_norms: deque[float] = deque(maxlen=self.history_size)
        self.steps = 0
        self.clipped_steps = 0
        self.nonfinite_steps = 0
        self.last_nonfinite: list[int] = []  # positions of the parameters of the latest bad step
        self._average = np.zeros(0)  # (P,) moving average of each parameter's norm
        self._count = np.zeros(0, np.int64)  # (P,) norms that went into it

    @property
    def current_max_norm(self) -> float:
        """The bound on the total norm now: in mode ``parameter`` that of all bounds together."""
        if self.mode == "parameter" and self._average.size:
            return float(np.sqrt(np.sum(self.parameter_bounds() ** 2)))
        if self.mode == "global" and len(self.grad_norms) >= min(_MIN_HISTORY, self.history_size):
            bound = np.percentile(np.fromiter(self.grad_norms, float), self.percentile)
            return float(np.clip(bound, self.min_clip, self.max_clip))
        return self.initial_max_norm

    def parameter_bounds(self) -> np.ndarray:
        """(P,) float64: the norm each parameter is held to, in the order of ``parameters``."""
        bounds = np.clip(self._average * self.clip_factor, self.min_clip, self.max_clip)
        return np.where(self._count > 0, bounds, self.initial_max_norm)

    @torch.no_grad()
    def update_and_clip(self, parameters: Iterable[Tensor] | Tensor) -> float:
        """Clip the gradients in place and learn from them.

        Args:
            parameters: P floating-point tensors of any shapes, the same in the same order at every
                call (a generator will do); each ``grad`` of its shape, dtype and device, or None.
                Gradients must have been unscaled, see :meth:`GradientAccumulator.step`.

        Returns:
            Total L2 norm before clipping, summed in float64; inf or nan when the step is to be skipped, and then
            every ``grad`` is None.

        Raises:
            ValueError: no tensors, another number of them than at the last call, or a gradient
                that is sparse or complex; nothing changes.
        """
        if isinstance(parameters, Tensor):
            parameters = [parameters]
        tensors = list(check_iterable("parameters", parameters))
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError("parameters must all be tensors")
        if self._average.size and self._average.size != len(tensors):
            raise ValueError(
                f"parameters: {len(tensors)} given, {self._average.size} at the last call; "
                "reset() before clipping another model"
            )
        check_gradients(tensors)
        present = [i for i, p in enumerate(tensors) if p.grad is not None]
        gradients: list[Any] = [tensors[i].grad for i in present]
        if not present:
            return 0.0
        if not self._average.size:
            self._average = np.zeros(len(tensors))
            self._count = np.zeros(len(tensors), np.int64)
        if self.mode == "agc":
            weights = [tensors[i] for i in present]
            norms, scales = agc_scales(weights, gradients, self.agc_ratio, self.agc_eps)
        else:
            norms, scales = gradient_norms(gradients), None
        total = float(np.sqrt(np.sum(norms**2)))
        if not math.isfinite(total):
            bad = np.flatnonzero(~np.isfinite(norms))
            self.last_nonfinite = [present[i] for i in bad] or present
            self.nonfinite_steps += 1
            for tensor in tensors:
                tensor.grad = None
            return total
        if self.mode == "agc":
            clipped = scales is not None
            if scales is not None:
                torch._foreach_mul_(gradients, scales)
        elif self.mode == "global":
            bound = self.current_max_norm
            clipped = total > bound
            if clipped:
                torch._foreach_mul_(gradients, bound / total)
        else:
            clipped = self._clip_each(np.asarray(present), gradients, norms)
        self.steps += 1
        self.clipped_steps += clipped
        self.grad_norms.append(total)
        return total

    def _clip_each(self, present: np.ndarray, gradients: list[Any], norms: np.ndarray) -> bool:
        bounds = self.parameter_bounds()[present]
        over = np.flatnonzero(norms > bounds)
        if over.size:
            factors = (bounds[over] / norms[over]).tolist()
            torch._foreach_mul_([gradients[i] for i in over], factors)
        seen = norms > 0
        index = present[seen]
        self._count[index] += 1
        rate = 1.0 / np.minimum(self._count[index], self.history_size)
        self._average[index] += rate * (np.minimum(norms, bounds)[seen] - self._average[index])
        return bool(over.size)

    def get_stats(self) -> dict[str, Any]:
        """Bound, mean and greatest total norm over the history, and what was clipped or skipped."""
        norms = list(self.grad_norms)
        return {
            "mode": self.mode,
            "current_clip_norm": self.current_max_norm,
            "mean_grad_norm": float(np.mean(norms)) if norms else 0.0,
            "max_grad_norm": max(norms, default=0.0),
            "history_size": len(norms),
            "steps": self.steps,
            "clipped_fraction": self.clipped_steps / self.steps if self.steps else 0.0,
            "nonfinite_steps": self.nonfinite_steps,
            "last_nonfinite": list(self.last_nonfinite),
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps exactly; the constructor's arguments are not in it."""
        return {
            "mode": self.mode,
            "grad_norms": list(self.grad_norms),
            "steps": self.steps,
            "clipped_steps": self.clipped_steps,
            "nonfinite_steps": self.nonfinite_steps,
            "last_nonfinite": list(self.last_nonfinite),
            "average": self._average.tolist(),
            "count": self._count.tolist(),
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict` of the same mode; ValueError leaves the state as it was."""
        check_keys(state_dict, self.state_dict(), "AdaptiveGradientClipper")
        if state_dict["mode"] != self.mode:
            raise ValueError(f"mode of the state is {state_dict['mode']!r}, ours is {self.mode!r}")
        forms.record(
            grad_norms=forms.numbers(None, low=0.0),
            average=forms.numbers(None, low=0.0),
            count=forms.numbers(None, low=0.0, whole=True),
            last_nonfinite=forms.listed(forms.whole()),
            steps=forms.whole(),
            clipped_steps=forms.whole(),
            nonfinite_steps=forms.whole(),
        )("", state_dict)
        numbers = {
            name: int(state_dict[name]) for name in ("steps", "clipped_steps", "nonfinite_steps")
        }
        average = np.array(state_dict["average"], dtype=np.float64)
        count = np.array(state_dict["count"], dtype=np.int64)
        norms = [float(norm) for norm in state_dict["grad_norms"]]
        if average.shape != count.shape or ((average > 0) & (count == 0)).any():
            raise ValueError(f"average {average.shape} and count {count.shape} do not fit")
        if len(norms) != min(numbers["steps"], self.history_size):
            raise ValueError(
                f"grad_norms has {len(norms)} norms after {numbers['steps']} steps with a history "
                f"of {self.history_size}"
            )
        if bool(state_dict["last_nonfinite"]) != bool(numbers["nonfinite_steps"]):
            raise ValueError("last_nonfinite does not fit nonfinite_steps")
        if numbers["clipped_steps"] > numbers["steps"]:
            raise ValueError("clipped_steps are more than steps")
        self.grad_norms = deque(norms, maxlen=self.history_size)
        self.last_nonfinite = [int(i) for i in state_dict["last_nonfinite"]]
        self._average, self._count = average, count
        self.__dict__.update(numbers)


__all__ = ["CLIP_MODES", "AdaptiveGradientClipper", "ClipMode"]
