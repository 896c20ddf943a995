"""The diagonal Fisher information of a model's predictive distribution, over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.argument_checks import check_iterable, check_whole
from ringrift_pipeline.enhancements.model_views import Evaluating
from ringrift_pipeline.enhancements.per_sample_gradients import SquaredGradients, rows_of
from ringrift_pipeline.enhancements.predictive_labels import (
    Criterion,
    HeadKind,
    PredictiveLabels,
    check_losses,
    per_sample,
    rows_of_labels,
)
from ringrift_pipeline.enhancements.training_batch import misfit, to_device

_MISFIT = "dataloader: features do not fit the model"


def fisher_information(
    model: nn.Module,
    dataloader: Iterable[Any],
    criterion: Criterion | None = None,
    num_samples: int = 1000,
    device: str | torch.device | None = None,
    *,
    seed: int | np.random.SeedSequence = 0,
    heads: Mapping[str, HeadKind] | None = None,
) -> dict[str, Tensor]:
    """Mean over samples of squared per-sample gradients, by the names of trainable parameters.

    Arguments and errors are those of ``EWCRegularizer.compute_fisher``; the model is left as it
    was.
    """
    count = check_whole("num_samples", num_samples, 1)
    losses = per_sample(criterion)
    place = next(p for p in model.parameters() if p.requires_grad).device
    if device is not None and str(device).split(":")[0] != place.type:
        raise ValueError(f"device is {device}, but the model is on {place}")
    labels = PredictiveLabels(seed, heads)
    with (
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        Evaluating(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        squares = SquaredGradients(model)
        for batch in check_iterable("dataloader", dataloader):
            _add_batch(squares, batch, labels, losses, place, count)
            if squares.samples >= count:
                break
    if squares.samples == 0:
        raise ValueError("dataloader has no samples")
    return {name: sums.div_(squares.samples) for name, sums in squares.sums.items()}


def _add_batch(
    squares: SquaredGradients,
    batch: Any,
    labels: PredictiveLabels,
    criterion: Criterion | None,
    device: torch.device,
    count: int,
) -> None:
    """Add a batch's squared gradients, as far as samples are wanted."""
    with misfit(_MISFIT):
        features, mask = _parts(to_device(batch, device))
    size = _size(features)
    wanted = min(size, count - squares.samples)
    if wanted < size:
        features, mask = rows_of((features, mask), slice(0, wanted), size)

    def losses_for(outputs: Any) -> Any:
        drawn = labels.draw(outputs, mask, wanted)

        def losses(outputs: Any, rows: slice) -> Tensor:
            some = rows_of_labels(drawn, rows)
            if criterion is not None:
                with misfit("criterion does not fit the model's outputs and their labels"):
                    given = criterion(outputs, some)
                return check_losses(given, rows.stop - rows.start)
            return labels.losses(outputs, some, None if mask is None else mask[rows])

        return losses

    with misfit(_MISFIT):
        squares.add(features, wanted, losses_for)
    for name, tensor in squares.sums.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"dataloader: a gradient of {name} is not finite within the first "
                f"{squares.samples} samples"
            )


def _parts(batch: Any) -> tuple[Any, Tensor | None]:
    """A batch's features and legal mask."""
    if isinstance(batch, Mapping):
        if "features" not in batch:
            return batch, None
        mask = batch.get("legal_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
            raise ValueError("dataloader: legal_mask must be a bool tensor")
        return batch["features"], mask
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0], None
    return batch, None


def _size(features: Any) -> int:
    """Samples in a batch: rows of its first tensor."""
    if isinstance(features, Tensor):
        if features.dim() and features.shape[0]:
            return int(features.shape[0])
        raise ValueError(f"dataloader: a batch has shape {tuple(features.shape)}")
    values = features.values() if isinstance(features, Mapping) else features
    if isinstance(values, Iterable) and not isinstance(values, str | bytes):
        for value in values:
            return _size(value)
    raise ValueError(f"dataloader: a batch has no tensor in front, but a {type(features).__name__}")


__all__ = ["fisher_information"]
