"""The auxiliary heads between trainings: kept beside the model's files, which know nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ringrift_pipeline.network.model import AUXILIARY
from ringrift_pipeline.store import check_file, check_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ringrift_pipeline.enhancements.config_stages import TrainingLoopConfig
    from ringrift_pipeline.network import RingRiftNetwork
    from ringrift_pipeline.store import Folder

FILE = "auxiliary.safetensors"


def has_heads(settings: TrainingLoopConfig) -> bool:
    """Whether a network trains with auxiliary heads."""
    return settings.territory_weight > 0.0 or settings.margin_weight > 0.0


def heads_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The auxiliary heads' weights in a network's state dict; empty where there are none."""
    return {name: weight for name, weight in state.items() if name.startswith(AUXILIARY)}


def without_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict without its auxiliary heads."""
    return {name: weight for name, weight in state.items() if not name.startswith(AUXILIARY)}


def save_heads(folder: Folder, state: Mapping[str, Tensor]) -> None:
    """Write the auxiliary heads of a network's state dict into a draft's folder, if it has any.

    Raises NonFiniteModelError for a weight that is NaN or infinite.
    """
    from safetensors.torch import save_file

    from ringrift_pipeline.network.checkpoint import check_finite

    heads = {name: weight.detach().cpu().contiguous() for name, weight in heads_of(state).items()}
    if heads:
        path = folder / FILE
        check_finite(heads, f"the auxiliary heads for {path.parent}")
        save_file(heads, path)


def load_heads(folder: Path, model: RingRiftNetwork) -> bool:
    """Attach auxiliary heads to ``model``: those in ``folder``, untrained ones where none fit.

    Returns whether there were some. Raises CorruptArtefactError for a damaged file,
    NonFiniteModelError for a weight that is NaN or infinite.
    """
    from safetensors.torch import load_file

    from ringrift_pipeline.network.checkpoint import check_finite

    attached = model.attach_auxiliary()
    if not (folder / FILE).is_file():
        check_folder(folder)  # it may have had some
        return False
    check_file(folder / FILE)
    saved = load_file(folder / FILE)
    wanted = {f"{AUXILIARY}{name}": weight for name, weight in attached.state_dict().items()}
    if {n: w.shape for n, w in saved.items()} != {n: w.shape for n, w in wanted.items()}:
        return False
    check_finite(saved, str(folder / FILE))
    attached.load_state_dict({name.removeprefix(AUXILIARY): w for name, w in saved.items()})
    return True
