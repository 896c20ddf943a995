"""Gradient accumulation that equals the large batch, and adaptive gradient clipping.

Both classes read the device once a step, however many parameters there are, and leave the
optimizer alone when a gradient is not finite.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.argument_checks import (
    check_keys,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.gradient_norms import (
    agc_scales,
    gradient_norms,
    total_norm,
)

ClipMode = Literal["parameter", "agc", "global"]
CLIP_MODES: tuple[str, ...] = ("parameter", "agc", "global")

# Total norms that mode "global" wants before it trusts their percentile.
_MIN_HISTORY = 10


class GradientAccumulator:
    """Sums the gradients of several batches into one optimizer step.

    With ``scale_loss(loss, num_samples)`` the gradient of a step is, to rounding, the gradient of
    the mean loss over all its samples: batches of unequal size and the remainder at the end of an
    epoch included (``should_step(batch_idx, num_batches)`` says when to step for it).

    Args:
        accumulation_steps: batches to one optimizer step, at least 1.
        max_grad_norm: bound of the total L2 norm of a step's gradient; None or 0 does not clip.
        batch_size: samples of one batch, only for :attr:`effective_batch_size`.

    Raises:
        ValueError: an argument out of range, by name.

    Attributes:
        steps: optimizer steps taken.
        skipped_steps: steps left out because a gradient was not finite.
        last_step_skipped: whether the latest :meth:`step` was left out.
    """

    def __init__(
        self,
        accumulation_steps: int = 1,
        max_grad_norm: float | None = 1.0,
        *,
        batch_size: int = 1,
    ) -> None:
        self.accumulation_steps = check_whole("accumulation_steps", accumulation_steps, 1)
        self.max_grad_norm = (
            check_number("max_grad_norm", max_grad_norm, 0.0, above=True) if max_grad_norm else None
        )
        self.batch_size = check_whole("batch_size", batch_size, 1)
        self.steps = 0
        self.skipped_steps = 0
        self.last_step_skipped = False
        self._batches = 0  # batches in the unfinished group
        self._samples = 0.0  # their samples, and the first one's
        self._first = 1.0

    @property
    def effective_batch_size(self) -> int:
        """Samples of one full optimizer step: ``batch_size * accumulation_steps``."""
        return self.batch_size * self.accumulation_steps

    @property
    def pending_batches(self) -> int:
        """Batches scaled since the last step, whose gradients wait in ``param.grad``."""
        return self._batches

    def should_step(self, batch_idx: int | None = None, num_batches: int | None = None) -> bool:
        """Whether to step after this batch: its group is full, or it is the last one.

        Args:
            batch_idx: index of the batch in its epoch, from 0; None goes by the batches that
                :meth:`scale_loss` has seen.
            num_batches: batches of the epoch, so that the remainder is stepped too.

        Raises:
            ValueError: ``batch_idx`` outside of ``[0, num_batches)``.
        """
        if batch_idx is None:
            return self._batches >= self.accumulation_steps
        index = check_whole("batch_idx", batch_idx, 0)
        if num_batches is not None:
            if index >= check_whole("num_batches", num_batches, 1):
                raise ValueError(f"batch_idx {index} is not below num_batches {num_batches}")
            if index == num_batches - 1:
                return True
        return (index + 1) % self.accumulation_steps == 0

    def scale_loss(self, loss: Tensor, num_samples: int | None = None) -> Tensor:
        """The batch's mean loss, scaled for ``backward``; call it once a batch.

        Args:
            loss: scalar mean loss of the batch.
            num_samples: samples behind that mean; None, for every batch of a group or for none,
                takes them for equally large.

        Raises:
            ValueError: ``num_samples`` below 1, or ``loss`` not a scalar.
        """
        check_type("loss", loss, Tensor)
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ValueError(f"loss must be a scalar, got {loss.dtype} {tuple(loss.shape)}")
        samples = 1.0 if num_samples is None else float(check_whole("num_samples", num_samples, 1))
        if self._batches == 0:
            self._first = samples
        self._batches += 1
        self._samples += samples
        return loss * (samples / (self._first * self.accumulation_steps))

    @torch.no_grad()
    def step(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clipper: AdaptiveGradientClipper | None = None,
    ) -> float:
        """Unscale, correct for a short group, clip, step, and clear the gradients.

        A non-finite gradient leaves parameters and optimizer state untouched (the loss scale is
        lowered, as it should be) and is counted in :attr:`skipped_steps`.

        Args:
            optimizer: its parameters are clipped and stepped.
            model: its gradients are cleared as well, frozen or forgotten parameters included.
            scaler: the loss scaler of mixed precision, if any.
            clipper: clips before ``max_grad_norm`` does.

        Returns:
            Total L2 norm of the gradient before clipping; inf or nan when the step was skipped.

        Raises:
            ValueError: an argument of another kind, by name; nothing changes.
        """
        check_type("optimizer", optimizer, torch.optim.Optimizer)
        if model is not None:
            check_type("model", model, nn.Module)
        if scaler is not None:
            check_type("scaler", scaler, torch.amp.GradScaler)
        if clipper is not None and not hasattr(clipper, "update_and_clip"):
            raise ValueError(f"clipper must have update_and_clip, got {type(clipper).__name__}")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scaler is not None and gradients:
            scaler.unscale_(optimizer)
        if gradients and self._batches:
            correction = self.accumulation_steps * self._first / self._samples
            if correction != 1.0:
                torch._foreach_mul_(gradients, correction)
        norm = total_norm(gradients) if clipper is None else clipper.update_and_clip(parameters)
        self.last_step_skipped = not math.isfinite(norm)
        if self.last_step_skipped:
            self.skipped_steps += 1
        else:
            if self.max_grad_norm is not None and norm > self.max_grad_norm:
                now = norm if clipper is None else total_norm(gradients)
                if now > self.max_grad_norm:
                    torch._foreach_mul_(gradients, self.max_grad_norm / now)
            with torch.enable_grad():
                if scaler is not None and gradients:
                    scaler.step(optimizer)
                else:
                    optimizer.step()
            self.steps += 1
        if scaler is not None and gradients:
            scaler.update()
        self.discard()
        optimizer.zero_grad(set_to_none=True)
        if model is not None:
            model.zero_grad(set_to_none=True)
        return norm

    def discard(self) -> None:
        """Forget the unfinished group's batches (its gradients are the caller's to clear)."""
        self._batches = 0
        self._samples = 0.0
        self._first = 1.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values. An unfinished group is not in it: save between steps."""
        return {
            "accumulation_steps": self.accumulation_steps,
            "max_grad_norm": self.max_grad_norm,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict`; ValueError leaves the state as it was."""
        check_keys(state_dict, self.state_dict(), "GradientAccumulator")
        fresh = GradientAccumulator(
            state_dict["accumulation_steps"],
            state_dict["max_grad_norm"],
            batch_size=state_dict["batch_size"],
        )
        fresh.steps = check_whole("steps", state_dict["steps"], 0)
        fresh.skipped_steps = check_whole("skipped_steps", state_dict["skipped_steps"], 0)
        self.__dict__.update(fresh.__dict__)


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
        if mode not in CLIP_MODES:
            raise ValueError(f"mode must be one of {', '.join(CLIP_MODES)}, got {mode!r}")
        self.mode = mode
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
            parameters: the same parameters in the same order at every call (a generator will do).
                Gradients must have been unscaled, see :meth:`GradientAccumulator.step`.

        Returns:
            Total L2 norm before clipping; inf or nan when the step is to be skipped, and then
            every ``grad`` is None.

        Raises:
            ValueError: no tensors, or another number of them than at the last call.
        """
        if not isinstance(parameters, Iterable):
            raise ValueError(f"parameters must be tensors, got {type(parameters).__name__}")
        tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError("parameters must all be tensors")
        if self._average.size and self._average.size != len(tensors):
            raise ValueError(
                f"parameters: {len(tensors)} given, {self._average.size} at the last call; "
                "reset() before clipping another model"
            )
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
        average = np.asarray(state_dict["average"], dtype=np.float64)
        count = np.asarray(state_dict["count"], dtype=np.int64)
        norms = [float(norm) for norm in state_dict["grad_norms"]]
        if average.shape != count.shape or average.ndim != 1:
            raise ValueError(f"average {average.shape} and count {count.shape} do not match")
        if not np.all(np.isfinite(average)) or not np.all(np.isfinite(norms)):
            raise ValueError("average and grad_norms must be finite")
        numbers = {
            name: check_whole(name, state_dict[name], 0)
            for name in ("steps", "clipped_steps", "nonfinite_steps")
        }
        self.grad_norms = deque(norms, maxlen=self.history_size)
        self.last_nonfinite = [int(i) for i in state_dict["last_nonfinite"]]
        self._average, self._count = average, count
        self.__dict__.update(numbers)


__all__ = ["CLIP_MODES", "AdaptiveGradientClipper", "ClipMode", "GradientAccumulator"]
