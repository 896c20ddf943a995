"""The candidate of a generation: the averaged weights of its training run, or its last ones."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
from ringrift_pipeline.store.kinds import EMA_MODEL
from ringrift_pipeline.training.inputs import reuse, sealed_inputs

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store

KIND = EMA_MODEL

AVERAGED = "exponential moving average"
LAST = "last weights: averaging.enabled is off"
"""What the metadata's ``weights`` says of a candidate; those of earlier versions say nothing, and
are averages."""


def average(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Write the checkpoint's averaged model as ``ema_model``, the generation's candidate.

    It is the exponential moving average at the validation with the lowest held-out loss; where
    ``averaging.enabled`` is off, the last weights, as metadata's ``weights`` says. Files:
    ``model.safetensors`` and ``model.json``, and the auxiliary heads' file if there are any;
    metadata compares the model with the last weights, and its policy in the arithmetic that search
    uses with that in float32.

    Raises
    ------
    MissingArtefactError
        if there is no checkpoint.
    NonFiniteModelError
        if a weight of it is not finite.
    """
    from ringrift_pipeline.network import load_model, save_model
    from ringrift_pipeline.network.checkpoint import SIDECAR_FILE, WEIGHTS_FILE
    from ringrift_pipeline.training.auxiliary import FILE
    from ringrift_pipeline.training.loop import BEST
    from ringrift_pipeline.training.precision import measured

    checkpoint = store.require(plan.config, plan.generation, "checkpoint")
    inputs = sealed_inputs(plan, KIND, [checkpoint])
    heads = f"{BEST}/{FILE}"
    needs = [WEIGHTS_FILE, SIDECAR_FILE] + ([FILE] if heads in checkpoint.files else [])
    existing = reuse(store, plan, KIND, inputs, *needs)
    if existing is not None:
        return existing
    model = load_model(checkpoint.path / BEST)
    averaging = plan.settings.averaging
    metadata: dict[str, Any] = {
        "inputs": inputs,
        "checkpoint": checkpoint.digest,
        "parent_generation": checkpoint.metadata["parent_generation"],
        "parent_digest": checkpoint.metadata["parent_digest"],
        "parent_config": checkpoint.metadata.get("parent_config"),
        "parameters": model.num_parameters,
        "train/step": checkpoint.metadata["train/best_step"],
        "weights": AVERAGED if averaging.enabled else LAST,
        "half_life_samples": averaging.decay_half_life_samples if averaging.enabled else None,
    }
    metadata |= {
        name: value for name, value in checkpoint.metadata.items() if name.startswith("val/")
    }
    last = checkpoint.metadata["val/last_loss"]
    metadata["val/loss_gain"] = None if last is None else last - checkpoint.metadata["val/loss"]
    metadata |= measured(store, plan, checkpoint, model)
    about = {
        "config": plan.config,
        "generation": plan.generation,
        "checkpoint": checkpoint.digest,
        "step": checkpoint.metadata["train/best_step"],
    }
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        save_model(draft, model, about)
        if heads in checkpoint.files:  # for the next training, nothing else
            shutil.copyfile(checkpoint.file(heads), draft / FILE)
    if progress is not None:
        progress(1, 1, f"{metadata['weights']} written")
    return draft.artefact
