"""Gradient accumulation that equals the large batch, and adaptive gradient clipping.

Both classes read the device once a step, however many parameters there are, and leave the
optimizer alone when a gradient is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.argument_checks import (
    check_flag,
    check_keys,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.gradient_clipping import (
    CLIP_MODES,
    AdaptiveGradientClipper,
    ClipMode,
)
from ringrift_pipeline.enhancements.gradient_norms import check_gradients, total_norm


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
            None if max_grad_norm is None else check_number("max_grad_norm", max_grad_norm, 0.0)
        ) or None
        self.batch_size = check_whole("batch_size", batch_size, 1)
        self.steps = 0
        self.skipped_steps = 0
        self.last_step_skipped = False
        self._batches = 0  # batches in the unfinished group
        self._samples = 0.0  # their samples, and the first one's
        self._first = 1.0
        self._counted: bool | None = None  # whether its batches tell their samples

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
            ValueError: ``num_samples`` below 1, or given for some batches of a group only, or
                ``loss`` not a scalar; nothing changes.
        """
        check_type("loss", loss, Tensor)
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ValueError(f"loss must be a scalar, got {loss.dtype} {tuple(loss.shape)}")
        samples = 1.0 if num_samples is None else float(check_whole("num_samples", num_samples, 1))
        counted = num_samples is not None
        if self._counted not in (None, counted):
            raise ValueError(
                "num_samples must be given for every batch of a group or for none: this one "
                f"{'has it' if counted else 'lacks it'}, the others {'lack' if counted else 'have'} it"
            )
        self._counted = counted
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
            ValueError: an argument of another kind, a gradient that is sparse or complex, or one
                that ``scaler`` has unscaled already; by name, nothing changes.
        """
        check_type("optimizer", optimizer, torch.optim.Optimizer)
        if model is not None:
            check_type("model", model, nn.Module)
        if scaler is not None:
            check_type("scaler", scaler, torch.amp.GradScaler)
        if clipper is not None and not hasattr(clipper, "update_and_clip"):
            raise ValueError(f"clipper must have update_and_clip, got {type(clipper).__name__}")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        check_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scaler is not None and gradients:
            _unscale(scaler, optimizer)
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
        self._counted = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values, the unfinished group's counts among them.

        Its gradients are not: they are in ``param.grad``, the caller's to save and put back (as
        ``TrainingEnhancementsFacade`` does); :meth:`discard` after loading begins the group anew.
        """
        return {
            "accumulation_steps": self.accumulation_steps,
            "max_grad_norm": self.max_grad_norm,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "last_step_skipped": self.last_step_skipped,
            "batches": self._batches,
            "samples": self._samples,
            "first": self._first,
            "counted": self._counted,
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
        skipped = check_flag("last_step_skipped", state_dict["last_step_skipped"])
        fresh.last_step_skipped = skipped
        fresh._batches = check_whole("batches", state_dict["batches"], 0)
        fresh._samples = check_number("samples", state_dict["samples"], 0.0)
        fresh._first = check_number("first", state_dict["first"], 1.0)
        counted = state_dict["counted"]
        fresh._counted = None if counted is None else check_flag("counted", counted)
        if (fresh._counted is None) != (fresh._batches == 0):
            raise ValueError(f"counted ({counted}) does not fit {fresh._batches} batches")
        if fresh._samples < fresh._batches or (fresh._batches == 0 and fresh._samples):
            raise ValueError(f"samples ({fresh._samples}) do not fit {fresh._batches} batches")
        self.__dict__.update(fresh.__dict__)


def _unscale(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """``scaler.unscale_``; ValueError when the caller has called it, or the scaler's step, before."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "unscale_()" not in str(error):
            raise
        raise ValueError(
            "scaler: step() unscales the gradients itself, and steps; call neither "
            f"scaler.unscale_ nor scaler.step before it ({error})"
        ) from error


__all__ = ["CLIP_MODES", "AdaptiveGradientClipper", "ClipMode", "GradientAccumulator"]
