"""Celery's application of a worker that was installed before ``checkpoint`` was changed."""

from ringrift_pipeline.store import kinds

kinds.CODE_VERSIONS["checkpoint"] = "0.9"

from ringrift_pipeline.orchestration.celery_app import app  # noqa: E402, F401
