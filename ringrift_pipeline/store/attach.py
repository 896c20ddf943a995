"""A data root that is the cache of a bucket: how it becomes one, and that it is no other's."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.atomic import write_bytes_atomic
from ringrift_pipeline.store.bucket import Bucket
from ringrift_pipeline.store.bucket_settings import BUCKET_VARIABLE, endpoint
from ringrift_pipeline.store.errors import (
    WELL_AGAIN,
    BucketSettingError,
    UnreadableArtefactError,
)
from ringrift_pipeline.store.manifest import (
    ManifestMismatch,
    UnreadableError,
    read_sealed,
    sealed_bytes,
)

HIDDEN = ".bucket"  # folder below the data root with what belongs to the cache alone
_MARK = "bucket.json"


def attached(root: Path) -> str | None:
    """The bucket that a data root is the cache of, None for an ordinary one. Raises
    UnreadableArtefactError where the disk refuses to say.
    """
    try:
        known = _read_mark(root)
    except ManifestMismatch:
        return "a bucket"
    return None if known is None else str(known["bucket"])


def _read_mark(root: Path) -> dict[str, Any] | None:
    """What a data root says that it is the cache of, None for an ordinary one. Raises ManifestMismatch;
    UnreadableArtefactError where the disk refuses to say.
    """
    mark = root / HIDDEN / _MARK
    try:
        return read_sealed(mark)[1]
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        raise UnreadableArtefactError(mark, str(error), WELL_AGAIN) from error


def refuse_attached(root: Path) -> None:
    """Raises BucketSettingError for the cache of a bucket, used as if it were none: what lands in it
    would be seen by nobody else.
    """
    found = attached(root)
    if found is not None:
        raise BucketSettingError(
            f"{root} is the cache of {found}: set {BUCKET_VARIABLE}={found}, or name another folder "
            "as the data root"
        )


def attach(root: Path, bucket: Bucket) -> None:
    """Make a data root the cache of a bucket, once; then, and whenever the server's address is a new
    one, see whether the server keeps to conditions of writes.

    Raises BucketSettingError for a server that does not, for the cache of another bucket, and for a
    folder with generations of its own: the cache may drop what the bucket has, and they are not there.
    """
    mark = root / HIDDEN / _MARK
    try:
        known = _read_mark(root) or {}
    except ManifestMismatch as error:
        raise BucketSettingError(
            f"{mark}, which says what bucket {root} is the cache of, is damaged ({error}): delete it "
            "and the folders of the configs beside it; what is in the bucket is fetched again"
        ) from None
    if not known and next(root.glob("*/generations/*"), None) is not None:
        raise BucketSettingError(
            f"{root} holds generations that are not in {bucket.url}: name an empty folder as the data "
            f"root, or unset {BUCKET_VARIABLE}"
        )
    if known and known.get("bucket") != bucket.url:
        raise BucketSettingError(
            f"{root} is the cache of {known.get('bucket')}, not of {bucket.url}: name another folder "
            "as the data root (what it holds of the old one is in that bucket)"
        )
    if known.get("endpoint") == endpoint():
        return
    bucket.check_conditions(f".ringrift/conditions-{secrets.token_hex(8)}")
    write_bytes_atomic(mark, sealed_bytes({"bucket": bucket.url, "endpoint": endpoint()}, _MARK))
