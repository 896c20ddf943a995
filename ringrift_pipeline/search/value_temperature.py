"""The temperature that a model's calibration report sets for the chances its player reports."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.store.errors import CorruptArtefactError
from ringrift_pipeline.store.kinds import CALIBRATION, CALIBRATION_FILE, CALIBRATION_FORMAT

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store


@dataclass(frozen=True)
class ValueTemperature:
    """A temperature of value logits, and a sentence on where it comes from (or why it is 1)."""

    temperature: float
    reason: str


def value_temperature(store: Store, model: Artefact, config: str) -> ValueTemperature:
    """The temperature that the calibration report of this very model sets, for games of ``config``.

    The newest report in ``store`` that was made of the model's digest counts; those of other
    models of its generation are not looked at. Where there is none, where it does not verify (the
    store quarantines it), where its format is another than ours, or where the model was calibrated
    on another config, the temperature is 1 and the reason says which: play does not depend on
    the report, so a damaged one stops nobody from playing.
    """
    if model.config != config:
        return ValueTemperature(1.0, f"the model was calibrated for {model.config}, not {config}")
    reason = "there is no calibration report of this model"
    for found in reversed(store.artefacts(model.config, model.generation, CALIBRATION)):
        if found.metadata.get("model") != model.digest:
            continue
        try:
            report = store.open(found.path).read_json(CALIBRATION_FILE)
        except CorruptArtefactError as error:
            reason = f"the calibration report of this model was ignored: {error}"
            continue
        if report.get("format", 1) != CALIBRATION_FORMAT:  # those of the first version name none
            return ValueTemperature(
                1.0,
                f"the calibration report has format {report['format']!r}, this version reads "
                f"{CALIBRATION_FORMAT}",
            )
        return _checked(report.get("temperature"), found)
    return ValueTemperature(1.0, reason)


def _checked(temperature: object, report: Artefact) -> ValueTemperature:
    if isinstance(temperature, int | float) and not isinstance(temperature, bool):
        number = float(temperature)
        if math.isfinite(number) and number > 0.0:
            return ValueTemperature(
                number,
                f"calibration report {report.digest[:12]} of generation {report.generation:04d}",
            )
    return ValueTemperature(
        1.0, f"the calibration report names {temperature!r}, which is no temperature"
    )


def data_root_of(folder: Path) -> Path | None:
    """The data root whose artefact ``folder`` is by its place, None if it lies elsewhere."""
    # <root>/<config>/generations/<generation>/<kind>/<folder>
    places = folder.resolve().parents
    return places[4] if len(places) > 4 and places[2].name == "generations" else None


def store_of(folder: Path, root: str | os.PathLike[str]) -> Store:
    """The store that ``folder`` lies in by its place, else that of ``root``. Another one than
    ``root`` is read as it lies there, without a bucket behind it.
    """
    from ringrift_pipeline.store import Store

    found = data_root_of(folder)
    if found is None or found == Path(root).expanduser().resolve():
        return Store(root)
    return Store(found, bucket="")


def tempered(value: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Chances (..., players) at a temperature: ``p ** (1 / T)``, made to sum to 1 again.

    For a softmax over the seats that play this is the softmax of the logits divided by T.
    """
    if temperature == 1.0:
        return value
    powers = (value / value.max(axis=-1, keepdims=True)) ** (1.0 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)
