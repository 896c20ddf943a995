"""What the environment says of a bucket: its address, its server, and how patient one is with it."""

from __future__ import annotations

import os
import re

from ringrift_pipeline.store.errors import BucketSettingError

BUCKET_VARIABLE = "RINGRIFT_BUCKET"
PATIENCE_VARIABLE = "RINGRIFT_BUCKET_PATIENCE"
PATIENCE = 300.0
"""Seconds from a request's first failure on, after which it is not tried again."""

_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9][A-Za-z0-9._-]*)*)/?")


def bucket_url() -> str | None:
    """What ``RINGRIFT_BUCKET`` says, None where it says nothing."""
    return os.environ.get(BUCKET_VARIABLE, "").strip() or None


def named_bucket() -> str | None:
    """The bucket that ``RINGRIFT_BUCKET`` names, ``s3://name/prefix``, as all spell it; None where it
    says nothing. Raises BucketSettingError.
    """
    url = bucket_url()
    return None if url is None else "s3://" + "/".join(filter(None, parts_of(url)))


def parts_of(url: str) -> tuple[str, str]:
    """Name and prefix of a bucket, ``s3://name/prefix``. Raises BucketSettingError for anything else,
    which is not repeated where it may hold a password.
    """
    found = _URL.fullmatch(url)
    if found is None or ".." in url:
        said = repr(url) if "@" not in url else "an address with an @"
        raise BucketSettingError(
            f"{said} names no bucket: write s3://name or s3://name/prefix in {BUCKET_VARIABLE}"
        )
    return found[1], found[2].strip("/")


def endpoint() -> str:
    """The server that the environment names, empty for that of Amazon.

    It is kept and shown. Raises BucketSettingError, which does not repeat it, for one with a password in
    it: the client signs its requests, and sends none that has another authorization beside that.
    """
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if address := os.environ.get(variable):
            if "@" in address:
                raise BucketSettingError(
                    f"{variable} is an address with an @: write it without user and password, which belong "
                    "in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
            return address
    return ""


def said_patience() -> float:
    """Seconds that ``RINGRIFT_BUCKET_PATIENCE`` says, else `PATIENCE`. Raises BucketSettingError."""
    text = os.environ.get(PATIENCE_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else PATIENCE
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 86_400.0:
        raise BucketSettingError(f"{PATIENCE_VARIABLE} is {text!r}: write seconds, from 0 to 86400")
    return seconds
