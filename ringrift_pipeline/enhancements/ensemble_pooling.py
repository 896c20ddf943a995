"""How the members' outputs become one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ringrift_pipeline.enhancements.loss_parts import ValueKind

_FLOOR = -1e30  # stands for -inf where it is multiplied


@dataclass(frozen=True)
class EnsemblePrediction:
    """What the ensemble thinks of a batch; tensors on the models' device, without gradient."""

    policy_log_probs: Tensor  # (B, A) float32, normalised over legal actions; -inf where illegal
    value: Tensor  # (B, seats) probabilities; (B, 3) for wdl; (B,) for a scalar head
    policy_disagreement: Tensor  # (B,) Jensen-Shannon divergence of the members, nats
    value_disagreement: Tensor  # (B,) members' standard deviation, of the most disputed seat
    value_divergence: Tensor | None = None  # (B,) Jensen-Shannon, nats; None for a scalar head

    @property
    def policy(self) -> Tensor:
        """(B, A) probabilities, 0 where illegal."""
        return self.policy_log_probs.exp()


def pool(
    log_probs: Sequence[Tensor], values: Sequence[Tensor], shares: Sequence[float]
) -> EnsemblePrediction:
    """Weighted geometric mean of policies, weighted arithmetic mean of values.

    Args:
        log_probs: one (B, A) a member, normalised, ``-inf`` where illegal.
        values: one a member, as ``value_probabilities`` gives them.
        shares: one a member, positive, summing to 1.

    Raises:
        ValueError: values of different shapes, or a row without an action legal for all members.
    """
    if len({value.shape for value in values}) > 1:
        raise ValueError(f"members' values differ in shape: {[tuple(v.shape) for v in values]}")
    policies = torch.stack(list(log_probs))  # (M, B, A)
    share = torch.as_tensor(shares, dtype=policies.dtype, device=policies.device)
    illegal = (policies == -torch.inf).any(dim=0)
    nothing_left = illegal.all(dim=1)
    if bool(nothing_left.any()):
        row = int(nothing_left.nonzero()[0])
        raise ValueError(
            f"legal_mask: row {row} has no action that is legal for all members, whose logits of "
            "-inf rule out one another's"
        )
    pooled = torch.einsum("m,mba->ba", share, policies.clamp_min(_FLOOR))
    pooled = pooled.masked_fill(illegal, -torch.inf)
    stacked = torch.stack(list(values))  # (M, B, ...)
    weights = share.to(stacked.dtype)
    weight = weights.reshape(-1, *[1] * (stacked.dim() - 1))
    value = (weight * stacked).sum(dim=0)
    spread = (weight * (stacked - value).square()).sum(dim=0).sqrt()
    return EnsemblePrediction(
        policy_log_probs=torch.log_softmax(pooled, dim=-1),
        value=value,
        policy_disagreement=jensen_shannon(policies, share),
        value_disagreement=spread if spread.dim() == 1 else spread.amax(dim=1),
        value_divergence=None if stacked.dim() == 2 else jensen_shannon(stacked.log(), weights),
    )


def value_probabilities(value: Tensor, kind: ValueKind) -> Tensor:
    """A value head's output as probabilities (B, seats), or (B,) as it is for a scalar.

    Raises:
        ValueError: a shape that does not fit ``kind``.
    """
    value = value if value.dtype == torch.float64 else value.float()
    columns = 1 if value.dim() == 1 else value.shape[1]
    if kind == "auto":
        kind = "scalar" if columns == 1 else "logits"
    if kind == "scalar":
        if columns != 1:
            raise ValueError(f"value_kind 'scalar' needs one column, got {columns}")
        return value.reshape(value.shape[0])
    if columns == 1 or (kind == "wdl" and columns != 3):
        raise ValueError(f"value_kind {kind!r} does not fit a value of {tuple(value.shape)}")
    return value if kind == "probabilities" else torch.softmax(value, dim=-1)


def jensen_shannon(policies: Tensor, share: Tensor) -> Tensor:
    """(B,) entropy of the mean policy minus mean entropy, of (M, B, A) log-probabilities."""
    probabilities = policies.exp()
    mean = torch.einsum("m,mba->ba", share, probabilities)
    entropies = -torch.xlogy(probabilities, probabilities).sum(dim=2)
    mixed = -torch.xlogy(mean, mean).sum(dim=1)
    return (mixed - share @ entropies).clamp_min(0.0)


__all__ = ["EnsemblePrediction", "jensen_shannon", "pool", "value_probabilities"]
