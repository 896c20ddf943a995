"""Policy and value losses, one a sample, of the forms that a game's network has.

All are differentiable, so that weighting samples weights their gradients. Actions that are not
legal carry a logit of ``-inf`` or are named by ``legal_mask``; both leave loss and gradient finite.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import (
    check_choice,
    check_dense,
    check_flag,
    check_number,
)

ValueKind = Literal["auto", "scalar", "logits", "probabilities", "wdl"]

IGNORED_ACTION = -100  # an index target that means "no policy target", as in torch.cross_entropy
SUSPICIOUS_LOSS = 1e6  # nats; weight on a masked entry gives far more
OVERFLOWED_LOGIT = 256.0  # a greatest logit of a row beyond it is no policy of a healthy network
TARGET_TOLERANCE = 2e-2  # how far from 1 a target's sum may be: half precision over many actions


class LossParts(NamedTuple):
    """Losses a sample, each (B,) floating point and differentiable."""

    total: Tensor  # policy_weight * policy + value_weight * value
    policy: Tensor  # cross-entropy, nats
    value: Tensor  # squared error, or cross-entropy in nats
    entropy: Tensor | None = None  # of the predicted policy, nats, without gradient; on request


def check_loss_parts(name: str, parts: LossParts) -> None:
    """ValueError naming the part that is not (B,) floating point like the total, or no graph."""
    total = parts.total
    for part, values in parts._asdict().items():
        if part == "entropy" and values is None:
            continue
        if not isinstance(values, Tensor):
            raise ValueError(f"{name}: {part} must be a tensor (B,), got {type(values).__name__}")
        if values.dim() != 1 or values.shape != total.shape or not values.is_floating_point():
            raise ValueError(
                f"{name} must give losses (B,), one a sample: {part} is {values.dtype} "
                f"{tuple(values.shape)}"
                + ("" if part == "total" else f", total {tuple(total.shape)}")
            )
        if values.device != total.device or values.device.type == "meta":
            raise ValueError(f"{name}: {part} is on {values.device}, total on {total.device}")
    if not total.requires_grad:
        raise ValueError(
            f"{name}: the losses (total) do not depend on a parameter that requires a gradient"
        )


def masked_log_softmax(logits: Tensor, legal_mask: Tensor | None = None) -> Tensor:
    """Log-probabilities over the legal entries; illegal ones get a huge finite negative number.

    Args:
        logits: (B, A) floating point; half precision is computed in float32. ``-inf`` is illegal.
        legal_mask: (B, A) bool, True where legal; None for ``-inf`` alone.

    Returns:
        (B, A), float32 or float64. Finite wherever the legal logits are; gradient 0 where illegal.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    illegal = logits == -math.inf
    if legal_mask is not None:
        illegal = illegal | ~legal_mask
    return F.log_softmax(logits.masked_fill(illegal, _floor(logits)), dim=-1)


def _floor(logits: Tensor) -> float:
    return -1e30 if logits.dtype == torch.float32 else -1e300


def policy_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy (B,) in nats of (B, A) log-probabilities; ``-inf`` and its like count nothing."""
    return -(log_probabilities.exp() * log_probabilities.clamp_min(-1e4)).sum(dim=-1)


def compute_loss_parts(
    policy_logits: Tensor,
    policy_targets: Tensor,
    value_pred: Tensor,
    value_targets: Tensor,
    policy_weight: float = 1.0,
    *,
    value_weight: float = 1.0,
    legal_mask: Tensor | None = None,
    value_kind: ValueKind = "auto",
    validate: bool | None = None,
    with_entropy: bool = False,
) -> LossParts:
    """Total, policy and value loss of each sample.

    Args:
        policy_logits: (B, A) floating point, ``-inf`` where an action is not legal.
        policy_targets: (B, A) probabilities, each row summing to 1 or all 0 (no policy target:
            the row's policy loss is 0); or (B,) integer actions, -100 for no target.
        value_pred: prediction, see ``value_kind``; never passed through a tanh here.
        value_targets: see ``value_kind``.
        policy_weight: factor of the policy loss, >= 0.
        value_weight: factor of the value loss, >= 0.
        legal_mask: (B, A) bool, True where legal; None for ``-inf`` logits alone.
        value_kind: the form of the value head:

            - ``scalar``: (B,) or (B, 1) against (B,) or (B, 1); squared error.
            - ``logits``: (B, seats) against a distribution (B, seats) or the winning seat (B,)
              int; cross-entropy of the softmax. A seat that does not exist may be ``-inf``.
            - ``probabilities``: (B, seats) probabilities against the same; cross-entropy.
            - ``wdl``: (B, 3) logits of win, draw and loss against a distribution (B, 3), or
              against results (B,) or (B, 1) in [-1, 1], where 1 is a win and 0 a draw;
              cross-entropy.
            - ``auto``: ``scalar`` for (B,) and (B, 1); ``wdl`` for (B, 3) against floating-point
              (B,) or (B, 1); else ``logits``.
        validate: check the targets' numbers, not only shapes. None: on the CPU, where reading
            them costs no synchronisation.
        with_entropy: give the predicted policy's entropy too.

    Returns:
        ``LossParts``, float32 (float64 for float64 input).

    Raises:
        ValueError: shapes or dtypes that do not fit, a target that is not finite, negative, not
            normalised, out of range, or that puts weight on an illegal action. A logit of ``-inf``
            under a target is no error where the model has overflowed (a row of the batch has NaN,
            ``inf``, no finite logit, or its greatest beyond 256): the loss is infinite then.
    """
    policy_weight = check_number("policy_weight", policy_weight, 0.0)
    value_weight = check_number("value_weight", value_weight, 0.0)
    if policy_weight == 0 and value_weight == 0:
        raise ValueError("policy_weight and value_weight must not both be 0")
    if validate is not None:
        check_flag("validate", validate)
    check_flag("with_entropy", with_entropy)
    _check_policy(policy_logits, legal_mask)
    device = policy_logits.device
    _check_tensor("policy_targets", policy_targets, device)
    _check_tensor("value_pred", value_pred, device)
    _check_tensor("value_targets", value_targets, device)
    if validate is None:
        validate = device.type == "cpu"
    policy, log_probs = _cross_entropy(
        policy_logits, policy_targets, legal_mask, "policy_targets", validate
    )
    value = value_loss(value_pred, value_targets, value_kind=value_kind, validate=validate)
    if value.shape != policy.shape:
        raise ValueError(
            f"value_pred has {value.shape[0]} samples, policy_logits {policy.shape[0]}"
        )
    entropy = policy_entropy(log_probs.detach()) if with_entropy else None
    return LossParts(policy_weight * policy + value_weight * value, policy, value, entropy)


def policy_loss(
    logits: Tensor, targets: Tensor, *, legal_mask: Tensor | None = None, validate: bool = True
) -> Tensor:
    """Cross-entropy (B,) in nats over legal actions; arguments as ``compute_loss_parts``."""
    _check_policy(logits, legal_mask)
    _check_tensor("policy_targets", targets, logits.device)
    return _cross_entropy(logits, targets, legal_mask, "policy_targets", validate)[0]


def _check_policy(logits: Tensor, legal_mask: Tensor | None) -> None:
    check_dense("policy_logits", logits)
    if legal_mask is not None:
        _check_tensor("legal_mask", legal_mask, logits.device)
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"policy_logits must be floating point (B, A), got {logits.dtype} {tuple(logits.shape)}"
        )
    if legal_mask is not None and (
        legal_mask.shape != logits.shape or legal_mask.dtype != torch.bool
    ):
        raise ValueError(
            f"legal_mask must be bool {tuple(logits.shape)}, "
            f"got {legal_mask.dtype} {tuple(legal_mask.shape)}"
        )


def value_loss(
    prediction: Tensor,
    targets: Tensor,
    *,
    value_kind: ValueKind = "auto",
    validate: bool = True,
) -> Tensor:
    """Value loss (B,); arguments and forms as ``compute_loss_parts``."""
    check_choice("value_kind", value_kind, get_args(ValueKind))
    check_dense("value_pred", prediction)
    _check_tensor("value_targets", targets, prediction.device)
    if prediction.dim() not in (1, 2) or not prediction.is_floating_point():
        raise ValueError(
            "value_pred must be floating point (B,), (B, 1) or (B, seats), "
            f"got {prediction.dtype} {tuple(prediction.shape)}"
        )
    columns = 1 if prediction.dim() == 1 else prediction.shape[1]
    flat_targets = targets.dim() == 1 or targets.shape[1:] == (1,)
    if value_kind == "auto":
        if columns == 1:
            value_kind = "scalar"
        elif columns == 3 and flat_targets and targets.is_floating_point():
            value_kind = "wdl"
        else:
            value_kind = "logits"
    size = prediction.shape[0]
    if value_kind == "scalar":
        if columns != 1 or not flat_targets or targets.shape[0] != size:
            raise ValueError(
                "a scalar value needs value_pred and value_targets of shape (B,) or (B, 1), "
                f"got {tuple(prediction.shape)} and {tuple(targets.shape)}"
            )
        predicted = _widened(prediction).reshape(size)
        wanted = targets.reshape(size).to(predicted.dtype)
        if validate and not bool(torch.isfinite(wanted).all()):
            raise ValueError("value_targets are not finite")
        return (predicted - wanted).square()
    if columns < 2:
        raise ValueError(
            f"value_kind {value_kind!r} needs value_pred (B, seats), got {tuple(prediction.shape)}"
        )
    if value_kind == "wdl":
        if columns != 3:
            raise ValueError(f"value_kind 'wdl' needs value_pred (B, 3), got {columns} columns")
        if flat_targets and targets.shape[0] == size:
            targets = _win_draw_loss(targets.reshape(size), _widened(prediction).dtype, validate)
    if value_kind == "probabilities":
        if validate and bool(((prediction < 0.0) | (prediction > 1.0 + TARGET_TOLERANCE)).any()):
            raise ValueError(
                "value_pred of kind 'probabilities' must be in [0, 1]; for logits use 'logits'"
            )
        return _cross_entropy(prediction, targets, None, "value_targets", validate, given=True)[0]
    return _cross_entropy(prediction, targets, None, "value_targets", validate)[0]


def _check_tensor(name: str, tensor: Tensor, device: torch.device) -> None:
    check_dense(name, tensor)
    if tensor.device != device:
        raise ValueError(
            f"{name} must be where the predictions are ({device}), it is on {tensor.device}"
        )


def _widened(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _win_draw_loss(results: Tensor, dtype: torch.dtype, validate: bool) -> Tensor:
    """Results (B,) in [-1, 1] as distributions (B, 3) whose mean is the result."""
    results = results.to(dtype)
    if validate and not bool(((results >= -1.0) & (results <= 1.0)).all()):
        raise ValueError("value_targets of kind 'wdl' must be results in [-1, 1]")
    win, loss = results.clamp_min(0.0), (-results).clamp_min(0.0)
    return torch.stack([win, 1.0 - win - loss, loss], dim=1)


def _cross_entropy(
    scores: Tensor,
    targets: Tensor,
    legal_mask: Tensor | None,
    name: str,
    validate: bool,
    given: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B,) of logits, or of probabilities when ``given``; and log-probabilities."""
    size, width = scores.shape
    soft = targets.dim() == 2
    if soft and targets.shape != scores.shape:
        raise ValueError(f"{name} must be {(size, width)} or ({size},), got {tuple(targets.shape)}")
    if not soft and targets.shape != (size,):
        raise ValueError(f"{name} must be {(size, width)} or ({size},), got {tuple(targets.shape)}")
    if not soft and (targets.is_floating_point() or targets.dtype == torch.bool):
        raise ValueError(f"{name} of shape (B,) must be integer indices, got {targets.dtype}")
    if size == 0:
        return _widened(scores).sum(dim=-1), _widened(scores)
    if validate:
        _check_targets(targets, width, name)

    def log_probabilities(guarded: bool) -> Tensor:
        if given:
            tiny = torch.finfo(_widened(scores).dtype).tiny
            return _widened(scores).clamp_min(tiny).log()
        if guarded:
            return masked_log_softmax(scores, legal_mask)
        wide = _widened(scores)
        if legal_mask is not None:
            wide = wide.masked_fill(~legal_mask, _floor(wide))
        return F.log_softmax(wide, dim=-1)

    def loss_from(log_probs: Tensor) -> Tensor:
        if soft:
            return -(targets.to(log_probs.dtype) * log_probs).sum(dim=-1)
        ignored = targets == IGNORED_ACTION
        chosen = targets.masked_fill(ignored, 0).to(torch.int64).unsqueeze(1)
        return -log_probs.gather(1, chosen).squeeze(1).masked_fill(ignored, 0.0)

    # Where reading the result is free, leave out the search for -inf, and look for its traces.
    log_probs = log_probabilities(not validate)
    loss = loss_from(log_probs)
    if validate and not loss.detach().max().item() <= SUSPICIOUS_LOSS:  # NaN comes here too
        log_probs = log_probabilities(True)
        loss = loss_from(log_probs)
        if not given:
            lost = _targets_lost(scores, targets, legal_mask, name)
            loss = loss.masked_fill(lost, math.inf)
    elif validate and legal_mask is not None:
        # a row without a legal action has all its logits alike, and a loss that looks innocent
        alike = (log_probs.detach()[:, 0] + math.log(width)).abs() < 1e-5
        if bool(alike.any()):
            _targets_lost(scores, targets, legal_mask, name)
    elif not validate and not given:  # a row of nothing but -inf has an innocent loss, too
        legal = scores if legal_mask is None else scores.masked_fill(~legal_mask, -math.inf)
        loss = loss.masked_fill((legal.amax(dim=1) == -math.inf) & (loss > 0), math.inf)
    return loss, log_probs


def _targets_lost(scores: Tensor, targets: Tensor, legal_mask: Tensor | None, name: str) -> Tensor:
    """(B,) bool: rows whose target is on a ``-inf`` that comes of the model's overflow.

    ValueError for a target on an entry that is illegal.
    """
    scores = scores.detach()
    if targets.dim() == 2:
        wanted = targets > 0
    else:
        chosen = targets.clamp_min(0).to(torch.int64).unsqueeze(1)
        wanted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
        wanted &= (targets >= 0).unsqueeze(1)
    legal = scores if legal_mask is None else scores.masked_fill(~legal_mask, -math.inf)
    lost = (wanted & (legal == -math.inf)).any(dim=1)
    greatest = legal.amax(dim=1)
    idle = (greatest == -math.inf) & ~wanted.any(dim=1)  # no legal action, and no target
    overflowed = bool((~(greatest.abs() <= OVERFLOWED_LOGIT) & ~idle).any())
    wrong = lost
    if overflowed:  # then only the mask tells what is illegal
        masked = torch.zeros_like(wanted) if legal_mask is None else ~legal_mask
        wrong = (wanted & masked).any(dim=1)
    if bool(wrong.any()):
        raise ValueError(
            f"{name} put weight on an entry that is illegal (mask False or logit -inf) "
            f"in row {int(torch.nonzero(wrong)[0])} of the batch"
        )
    return lost


def _check_targets(targets: Tensor, width: int, name: str) -> None:
    if targets.dim() == 1:
        valid = (targets >= 0) & (targets < width) | (targets == IGNORED_ACTION)
        if not bool(valid.all()):
            bad = targets[~valid][0].item()
            raise ValueError(f"{name} must be in [0, {width}) or {IGNORED_ACTION}, got {bad}")
        return
    dtype = torch.float64 if targets.dtype == torch.float64 else torch.float32
    sums = targets.sum(dim=-1, dtype=dtype).cpu().numpy()
    valid = (abs(sums - 1.0) <= TARGET_TOLERANCE) | (sums == 0.0)
    if not valid.all():
        row = int(valid.argmin())
        raise ValueError(
            f"{name} must be finite and sum to 1 (or all 0: no target), row {row} sums to "
            f"{float(sums[row])}"
        )
    least = targets.min().item()
    if least < 0.0:
        raise ValueError(f"{name} must not be negative, got {least}")


__all__ = [
    "IGNORED_ACTION",
    "LossParts",
    "ValueKind",
    "check_loss_parts",
    "compute_loss_parts",
    "masked_log_softmax",
    "policy_entropy",
    "policy_loss",
    "value_loss",
]
