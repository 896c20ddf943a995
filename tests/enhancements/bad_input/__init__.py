"""What every public method takes: one `Row` a method, for `test_bad_input`.

To add a method, add a row to the room where it belongs: an object in use, good arguments, and
what each argument is. What an argument is says how it can be made bad, see `changes`.
"""

from __future__ import annotations

from . import calibration, data, models, optimization, runs
from .row import Row

TABLE: tuple[Row, ...] = (
    *optimization.gradient_rows(),
    *optimization.schedule_rows(),
    *optimization.averaging_rows(),
    *data.quality_rows(),
    *data.sampler_rows(),
    *data.miner_rows(),
    *data.tracker_rows(),
    *models.loss_rows(),
    *models.ensemble_rows(),
    *calibration.calibration_rows(),
    *models.ewc_rows(),
    *runs.seed_rows(),
    *runs.config_rows(),
    *runs.feedback_rows(),
    *runs.facade_rows(),
)
