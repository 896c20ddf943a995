"""What the environment says to servers, looked at before they are started: a wrong word would come up
in a log that nobody reads, or at night.
"""

from __future__ import annotations

from ringrift_pipeline.orchestration.celery_settings import CelerySettings
from ringrift_pipeline.orchestration.notify import check_webhook
from ringrift_pipeline.orchestration.pools import distributed, limits
from ringrift_pipeline.orchestration.retention import disk_budget
from ringrift_pipeline.orchestration.schedules import time_zone


def check_environment() -> None:
    """Raises PoolError, TimeZoneError, WebhookUrlError, BudgetError for a variable that means nothing,
    or is missing.
    """
    limits()
    if distributed():
        CelerySettings.from_environment()
    time_zone()
    check_webhook()
    disk_budget()
