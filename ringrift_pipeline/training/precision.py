"""How far the arithmetic that search uses takes a model's policy from what it is in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.training.window import Window, WindowError, build_window, open_window

if TYPE_CHECKING:
    from ringrift_pipeline.network import RingRiftNetwork
    from ringrift_pipeline.store import Artefact, Store

ROWS = 1024
"""Held-out positions, at most: a second's work for a large network."""
BATCH = 256


def measured(
    store: Store, plan: Plan, checkpoint: Artefact, model: RingRiftNetwork
) -> dict[str, Any]:
    """What search's arithmetic does to the policy of ``model``, as metadata.

    ``search_precision`` and ``search_backend`` are what the plan notes of its selfplay;
    ``val/precision_policy_kl`` the mean of KL(float32 || that precision), nats, over
    ``precision_positions`` held-out positions of the checkpoint's window. For float32 it is 0,
    unless the plan fell back to it: the next plan asks how the model bears bfloat16.
    Where the plan's backend is not installed here, torch measures it (``precision_backend``). Where
    it cannot be measured, as the window's shards are no longer there, ``search_precision_note`` says
    why instead; under ``search.precision`` auto the model then plays in float32.
    """
    from ringrift_pipeline.network import (
        DIVERGENCE,
        UNMEASURED,
        MissingBackendError,
        resolve_precision,
    )
    from ringrift_pipeline.store import CorruptArtefactError, MissingArtefactError

    precision, backend = plan.precision, plan.backend
    # This step may be made elsewhere than the games: OpenVINO is the CPU's.
    device = "cpu" if backend == "openvino" else plan.settings.device
    told: dict[str, Any] = {"search_precision": precision, "search_backend": backend}
    if precision == "float32" and plan.settings.search.precision == "auto":
        precision = resolve_precision("auto", device)
    if precision == "float32":
        return told | {DIVERGENCE: 0.0, "precision_positions": 0}
    try:
        window = _window(store, plan, checkpoint)
    except (MissingArtefactError, CorruptArtefactError, WindowError) as error:
        return told | {UNMEASURED: f"there are no positions to measure it on: {error}"}
    rows = some_rows(window)
    if not len(rows):
        return told | {UNMEASURED: "no held-out position has a choice of moves"}
    try:
        found = policy_divergence(model, window, rows, precision, device, backend)
    except MissingBackendError:
        told["precision_backend"] = "torch"
        found = policy_divergence(model, window, rows, precision, device)
    mean = float(found.mean())
    return told | {
        DIVERGENCE: mean if math.isfinite(mean) else None,
        "precision_positions": len(rows),
    }


def some_rows(window: Window) -> NDArray[np.int64]:
    """Up to ``ROWS`` held-out rows with more than one legal move, spread over the window, (K,)."""
    rows = window.holdout_rows
    rows = rows[window.counts[rows] > 1]
    return rows[:: max(1, math.ceil(len(rows) / ROWS))]


def policy_divergence(
    model: RingRiftNetwork,
    window: Window,
    rows: NDArray[np.int64],
    precision: str,
    device: str = "cpu",
    backend: str = "torch",
) -> NDArray[np.float64]:
    """KL(policy in float32 by torch || policy in ``precision`` by ``backend``) of each row, (K,)
    nats.

    Raises BadRowsError for rows that are no data.
    """
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import Evaluator
    from ringrift_pipeline.training.dataset import WindowDataset

    rules = get_rules(window.config)
    exact = Evaluator(model, rules, device)
    low = Evaluator(model, rules, device, precision=precision, backend=backend)
    dataset = WindowDataset(window)
    counts = window.counts
    found = [np.empty(0)]
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        tensors = dataset.batch(some)["features"]
        features = {name: tensor.numpy() for name, tensor in tensors.items()}
        logits = [
            _log_policy(each.evaluate_encoded(features, counts[some].astype(np.int32))[0])
            for each in (exact, low)
        ]
        # behind the legal moves both chances are 0, and the difference is finite
        found.append((np.exp(logits[0]) * (logits[0] - logits[1])).sum(axis=1))
    return np.concatenate(found)


def _log_policy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _window(store: Store, plan: Plan, checkpoint: Artefact) -> Window:
    """The window that the checkpoint was trained on; made again if it is not there."""
    found = store.current(plan.config, plan.generation, "window", verify=False)
    if found is None or found.digest != checkpoint.metadata.get("window"):
        found = build_window(store, plan)
    return open_window(found.path)
