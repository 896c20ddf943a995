"""What a fine-tuned config must not forget: the Fisher information of the model it began with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.selfplay.plan import Plan, load_plan, open_model
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.training.inputs import reuse, sealed_inputs
from ringrift_pipeline.training.window import build_window, open_window

if TYPE_CHECKING:
    from torch import nn

    from ringrift_pipeline.enhancements import EWCRegularizer
    from ringrift_pipeline.network import RingRiftNetwork
    from ringrift_pipeline.store import Artefact, Store

KIND = "fisher"
FILE = "fisher.safetensors"

_BATCH = 64


class FinetuneError(ValueError):
    """The fine-tuning that the settings ask for cannot be done; the message says why."""


def measure_fisher(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Land the Fisher information of the model that a fine-tuned config began with.

    Measured once, on ``finetune.ewc_samples`` rows of the window that model was trained on (in
    its own config), with its weights; it belongs to the generation that began with the model, and
    later generations find it there.

    Raises
    ------
    FinetuneError
        if the plan is not of a fine-tuned config.
    MissingArtefactError, PlanError
        if the source's model or shards are no longer there as they were.
    Interrupted
        if ``should_stop`` says so; nothing is kept then.
    """
    from ringrift_pipeline.enhancements import EWCRegularizer
    from ringrift_pipeline.network import load_model, resolve_device
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.forward import by_width
    from ringrift_pipeline.training.threads import torch_threads

    entry = plan.finetune
    if entry is None:
        raise FinetuneError(
            f"{plan.config} generation {plan.generation:04d} was not fine-tuned from another config"
        )
    first = load_plan(store, plan.config, entry["generation"])
    source = open_model(store, entry["source"])
    theirs = load_plan(store, source.config, source.generation)
    window = build_window(store, theirs, progress=progress, should_stop=should_stop)
    inputs = sealed_inputs(first, KIND, [source, window])
    existing = reuse(store, first, KIND, inputs, FILE)
    if existing is not None:
        return existing
    reporter = Reporter(progress, should_stop)
    device = resolve_device(first.settings.device)
    dataset = WindowDataset(open_window(window.path), device)
    generator = np.random.default_rng(first.seed_for("fisher rows"))
    count = min(entry["samples"], len(dataset))
    rows = np.sort(generator.choice(len(dataset), count, replace=False))
    rows = rows[by_width(dataset, rows)]

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, count, _BATCH):
            reporter.check("training: stopped while measuring what the source needs")
            yield dataset.batch(rows[start : start + _BATCH])
            reporter.report(min(start + _BATCH, count), count, "what the source needs")

    with torch_threads(first.settings.training.threads):
        ewc = EWCRegularizer(
            load_model(source.path, device).requires_grad_(True), seed=first.seed_for("fisher")
        )
        ewc.compute_fisher(batches(), num_samples=count)
    metadata = {
        "inputs": inputs,
        "rows": count,
        "source_config": source.config,
        "source_generation": source.generation,
        "source_digest": source.digest,
    }
    with store.create(first.config, first.generation, KIND, metadata=metadata) as draft:
        ewc.save_state(draft / FILE)
    return draft.artefact


def open_regularizer(artefact: Artefact, model: nn.Module, weight: float) -> EWCRegularizer:
    """The penalty for ``model`` leaving what a ``fisher`` artefact says is needed.

    Raises
    ------
    FinetuneError
        if the model has other parameters than the one it was measured on.
    """
    from ringrift_pipeline.enhancements import EWCRegularizer

    ewc = EWCRegularizer(model)
    try:
        ewc.load_state(artefact.file(FILE))
    except ValueError as error:
        raise FinetuneError(
            f"finetune.ewc_weight cannot be used, set it to 0 or keep the source's network: {error}"
        ) from error
    ewc.lambda_ewc = weight
    return ewc


def source_losses(store: Store, plan: Plan, model: RingRiftNetwork) -> dict[str, float]:
    """What fine-tuning has cost where it began: losses on the source's held-out games, nats.

    ``finetune/source_loss_before`` is the source's own model, ``finetune/source_loss_after``
    ``model``; both on at most ``finetune.ewc_samples`` rows of the window that the source was
    trained on. Raises as :func:`measure_fisher`.
    """
    from ringrift_pipeline.network import load_model
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.forward import held_out_losses
    from ringrift_pipeline.training.row_checks import check_outputs_of_rows

    entry = plan.finetune
    if entry is None:
        return {}
    source = open_model(store, entry["source"])
    window = build_window(store, load_plan(store, source.config, source.generation))
    dataset = WindowDataset(open_window(window.path))
    rows = dataset.window.holdout_rows[: entry["samples"]]
    training = plan.settings.training
    found = {}
    for when, one in (("before", load_model(source.path)), ("after", model)):
        losses = held_out_losses(one, dataset, rows, training.policy_weight, training.value_weight)
        name = f"the model {when} fine-tuning"
        check_outputs_of_rows(name, dataset.window, rows, losses.by_row)
        found[f"finetune/source_loss_{when}"] = losses.loss
    return found


__all__ = ["FILE", "KIND", "FinetuneError", "measure_fisher", "open_regularizer", "source_losses"]
