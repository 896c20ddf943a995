"""Large files whose upload nobody has finished.

s3fs sends what has more than some 100 MB in parts. Who is killed meanwhile, or runs out of time, leaves
parts behind: no object, in no listing, and paid for until somebody throws them away.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ringrift_pipeline.store.bucket import UNKNOWN, Bucket
from ringrift_pipeline.store.errors import BucketError

GIVEN_UP = 24 * 3600.0
"""Seconds after which an upload that is not finished counts as killed: since its last object was written, of
a file in parts since it was begun.
"""

OURS = ("generations", "quarantine")  # in the second place of the keys of large files
_REFUSED = ("AccessDenied", "403", "MethodNotAllowed", "405", *UNKNOWN)
_log = logging.getLogger(__name__)


def abort_uploads(bucket: Bucket) -> int:
    """Throw away the parts of our files that were begun more than `GIVEN_UP` seconds ago: when, the bucket
    says; what the time is now, this machine does. Returns of how many files.

    Where the server does not tell of them, or this key may not do that, the log says so, and they stay.
    Raises BucketError for anything else that is refused.
    """
    base = f"{bucket.prefix}/" if bucket.prefix else ""
    aborted = 0
    try:
        for upload in _unfinished(bucket, base):
            ours = upload["Key"].removeprefix(base).split("/")[1:2]
            age = (datetime.now(UTC) - upload["Initiated"]).total_seconds()
            if age <= GIVEN_UP or not ours or ours[0] not in OURS:
                continue
            named = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            with contextlib.suppress(FileNotFoundError):  # it is finished after all, or was aborted
                bucket.ask("aborting an upload", "abort_multipart_upload", **named)
                aborted += 1
    except BucketError as error:
        if error.code not in _REFUSED:
            raise
        _log.warning(
            "parts of large files that nobody has finished stay in %s, and cost; a lifecycle rule "
            "(AbortIncompleteMultipartUpload) throws them away: %s",
            bucket.url,
            error.reason,
        )
    return aborted


def _unfinished(bucket: Bucket, base: str) -> Iterator[dict[str, Any]]:
    """What the server tells of each: ``Key``, ``UploadId``, ``Initiated``. A request for each thousand."""
    marks: dict[str, str] = {}
    while True:
        arguments = {"Prefix": base, **marks}
        page = bucket.ask("listing unfinished uploads", "list_multipart_uploads", **arguments)
        yield from page.get("Uploads") or ()
        before = marks
        marks = {
            name: page[f"Next{name}"]
            for name in ("KeyMarker", "UploadIdMarker")
            if page.get(f"Next{name}")
        }
        if not page.get("IsTruncated") or marks == before:
            return
