"""What the page is told when a request cannot be answered."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that is refused.

    Attributes: ``status`` (HTTP), ``field`` (of the request that is wrong, or None).
    """

    def __init__(self, message: str, field: str | None = None, status: int = 422) -> None:
        super().__init__(message)
        self.field = field
        self.status = status
