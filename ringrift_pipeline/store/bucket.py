"""A bucket on the S3 API: objects read whole, written on a condition, sent and fetched as files.

Nothing here knows of artefacts. What the bucket refuses for a while is asked for again; what it
refuses for good is one error. Of S3 the rest of the store sees keys and bytes only.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ringrift_pipeline.store.bounded import MOST, TooLargeError
from ringrift_pipeline.store.bucket_settings import (
    BUCKET_VARIABLE,
    endpoint,
    parts_of,
    said_patience,
)
from ringrift_pipeline.store.errors import BucketError, BucketSettingError, InvalidNameError
from ringrift_pipeline.store.transfer import count

ANSWER = 30.0
"""Seconds within which a request is answered, or counts as refused. The client's own bound on silence
ends where a server says "100 Continue" and then no more (aiohttp 3.14).
"""
LISTING = 600.0  # the same for a listing, which is a request for each thousand
SLOWEST = 200_000  # bytes a second of a transfer, in addition to that

LONGEST_WAIT = 15.0  # seconds between two tries
SAY_EVERY = 10.0  # seconds
_TRANSIENT = frozenset(  # beside every answer of 500 and above
    {
        "ConditionalRequestConflict",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
UNKNOWN = (
    "NotImplemented",
    "InvalidArgument",
    "InvalidRequest",
    "501",
)  # what a server does not do
_log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """An object as it was read: its bytes, and the tag that a conditional write asks for."""

    data: bytes
    tag: str


class Bucket:
    """One prefix of one bucket; keys are relative to it, their parts divided by ``/``.

    Holds no connection (those belong to the process, see `_root`), so it pickles and may be used by
    threads and by forked processes. Server and credentials come from the usual ``AWS_*`` variables.

    Every method raises BucketError when the bucket refuses, at once where asking again is of no use,
    else after `patience` seconds of waiting; and InvalidNameError for a key that leads elsewhere.
    With `within`, whatever is asked later than so many seconds from now is refused.
    """

    def __init__(
        self, url: str, patience: float | None = None, within: float | None = None
    ) -> None:
        """Raises BucketSettingError for what is no ``s3://name/prefix``, for a server's address with a
        password in it, or if a package is missing.
        """
        self.name, self.prefix = parts_of(url)
        endpoint()
        self.url = url.rstrip("/")
        self.patience = said_patience() if patience is None else patience
        self._ends = math.inf if within is None else time.monotonic() + within
        try:
            import s3fs  # noqa: F401
            import tenacity  # noqa: F401
            import upath  # noqa: F401
        except ImportError as error:
            raise BucketSettingError(
                f"{BUCKET_VARIABLE} is set and {error.name} is not installed: "
                "pip install 'ringrift-pipeline[bucket]'"
            ) from None

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    # --- small objects --------------------------------------------------------------------------

    def read(self, key: str) -> Seen | None:
        """The whole of a small object, None if there is none. Raises TooLargeError."""
        where = self._call(key)

        async def whole() -> Seen:
            answer = await self._fs._call_s3("get_object", **where)
            async with answer["Body"] as body:
                if answer["ContentLength"] > MOST:
                    raise TooLargeError(
                        f"{self.at(key)} has {answer['ContentLength']} bytes, at most {MOST} can be"
                    )
                return Seen(await body.read(), answer["ETag"])

        try:
            seen: Seen = self._try(f"reading {key}", whole)
        except FileNotFoundError:
            return None
        count(size=len(seen.data))
        return seen

    def write(self, key: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        self._try(f"writing {key}", self._fs._call_s3, "put_object", Body=data, **self._call(key))
        count(size=len(data))

    def write_if(self, key: str, data: bytes, seen: Seen | None) -> bool:
        """Write an object if it still is what was `seen` (None: if there is none).

        Of any number of concurrent writers exactly one wins. A write whose answer was lost, and which
        is found there when it is tried again, counts as won.

        Neither universal-pathlib nor s3fs has writes with ``If-Match``: this asks the S3 client that
        s3fs brings.
        """
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.tag}
        arguments: dict[str, Any] = {**self._call(key), **condition, "Body": data}
        try:
            self._try(f"writing {key}", self._fs._call_s3, "put_object", **arguments)
            return True
        except (FileNotFoundError, _LostRace):
            now = self.read(key)
            return now is not None and now.data == data

    def changed(self, key: str) -> tuple[datetime, str] | None:
        """When an object was last written, by the bucket's clock, and its tag; None if there is none."""
        try:
            about = self._try(
                f"asking for {key}", self._fs._call_s3, "head_object", **self._call(key)
            )
        except FileNotFoundError:
            return None
        return about["LastModified"], about["ETag"]

    # --- files ----------------------------------------------------------------------------------

    def upload(self, path: Path, key: str) -> None:
        """Send a file. Whoever reads the object gets the whole of it, or none. Raises FileNotFoundError, with
        the file's name, if it is gone.
        """
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        size = path.stat().st_size
        seconds = ANSWER + size / SLOWEST
        self._try(
            f"uploading {key}", self._fs._put_file, str(path), self._path(key), seconds=seconds
        )
        count(size=size)

    def download(self, key: str, path: Path, size: int) -> None:
        """Fetch an object, of `size` bytes, into a new file. Raises FileNotFoundError if there is none."""
        seconds = ANSWER + size / SLOWEST
        self._try(
            f"downloading {key}", self._fs._get_file, self._path(key), str(path), seconds=seconds
        )
        count(size=size)

    def hash(self, key: str, size: int) -> str:
        """SHA-256 of an object, of `size` bytes, as it arrives: nothing of it is kept, in no file
        either. Raises FileNotFoundError if there is none.
        """

        async def hashed() -> str:
            digest = hashlib.sha256()
            answer = await self._fs._call_s3("get_object", **self._call(key))
            async with answer["Body"] as body:
                while piece := await body.read(1 << 20):
                    digest.update(piece)
            return digest.hexdigest()

        return self._try(f"hashing {key}", hashed, seconds=ANSWER + size / SLOWEST)

    def copy(self, key: str, other: str) -> None:
        """Copy an object within the bucket. Raises FileNotFoundError if there is none."""
        paths = self._path(key), self._path(other)
        self._try(f"copying {key}", self._fs._cp_file, *paths, seconds=LISTING)

    def delete(self, key: str) -> None:
        """Delete an object if it is there."""
        self._try(f"deleting {key}", self._fs._call_s3, "delete_object", **self._call(key))

    # --- listings -------------------------------------------------------------------------------

    def listing(self, key: str) -> dict[str, int]:
        """Names of all objects below a key, relative to it, sorted, each with its size in bytes.

        A request for each thousand. Names that would lead elsewhere as a path are left out: no such
        object is ours.
        """
        base = self._path(key)
        found = self._try(f"listing {key}", self._fs._find, base, detail=True, seconds=LISTING)
        sizes = {name[len(base) + 1 :]: int(about["size"]) for name, about in found.items()}
        return {name: sizes[name] for name in sorted(sizes) if _is_key(name)}

    def folders(self, key: str = "") -> list[str]:
        """The next part of the names of all objects below a key that have further ones, sorted."""
        try:
            where = self._path(key)
            found = self._try(f"listing {key}", self._fs._ls, where, detail=True, seconds=LISTING)
        except FileNotFoundError:
            return []
        names = (about["name"].rstrip("/").rpartition("/")[2] for about in found)
        kinds = (about["type"] for about in found)
        return sorted(
            name
            for name, kind in zip(names, kinds, strict=True)
            if kind == "directory" and _is_key(name)
        )

    # --- the server -----------------------------------------------------------------------------

    def check_conditions(self, key: str) -> None:
        """Find out, with an object of its own, whether the server keeps to conditions of writes.

        Raises BucketSettingError if it ignores them or does not know them: everything that makes one
        of several writers win rests on them.
        """
        try:
            kept = (
                self.write_if(key, b"1", None)
                and not self.write_if(key, b"2", None)
                and (seen := self.read(key)) is not None
                and not self.write_if(key, b"3", seen._replace(tag='"0"'))
                and self.write_if(key, b"4", seen)
                and not self.write_if(key, b"5", seen)
            )
        except BucketError as error:
            if error.code not in UNKNOWN:
                raise
            kept = False
        self.delete(key)
        if not kept:
            raise BucketSettingError(
                f"{self.url} at {endpoint() or 'Amazon S3'} ignores If-None-Match or If-Match when it "
                "is written to: two writers would overwrite each other's work. Use a server, or a "
                "version of it, that knows conditional writes, as Amazon S3 does"
            )

    def ask(self, what: str, method: str, **arguments: Any) -> Any:
        """What the S3 client answers to another request of this bucket; `what` names it in errors."""
        return self._try(what, self._fs._call_s3, method, Bucket=self.name, **arguments)

    def at(self, key: str) -> str:
        """The address of an object, for people."""
        return f"{self.url}/{key}" if key else self.url

    @property
    def _fs(self) -> Any:
        return _root(self.url, endpoint(), os.getpid()).fs

    def _path(self, key: str) -> str:
        if key and not _is_key(key):
            raise InvalidNameError(f"{key[:200]!r} is no key of {self.url}: it leads elsewhere")
        return "/".join(part for part in (self.name, self.prefix, key) if part)

    def _call(self, key: str) -> dict[str, Any]:
        name, _, rest = self._path(key).partition("/")
        return {"Bucket": name, "Key": rest}

    def _try(
        self,
        what: str,
        coroutine: Callable[..., Any],
        *args: Any,
        seconds: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Await a coroutine, `seconds` at most (`ANSWER`), anew until the bucket lets it, with waits
        between that grow, and differ. The patience begins when the first try has failed, and is over
        `patience` seconds later, however many of them later tries took; one of these is under way then.
        """
        import fsspec.asyn
        from tenacity import Retrying, retry_if_exception, wait_random_exponential

        began = said = time.monotonic()
        refused: float | None = None  # since when

        def waited() -> float:
            return 0.0 if refused is None else time.monotonic() - refused

        def is_over(state: Any) -> bool:
            nonlocal refused
            refused = time.monotonic() if refused is None else refused
            return waited() >= self.patience or time.monotonic() >= self._ends

        def say(state: Any) -> None:
            nonlocal said
            if state.attempt_number == 1 or time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                _log.warning(
                    "%s refuses %s (%s); tried again for %.0f of %.0f s",
                    self.url,
                    what,
                    _reason(state.outcome.exception()),
                    waited(),
                    self.patience,
                )

        def ask() -> Any:
            left = self._ends - time.monotonic()
            if left <= 0:
                raise TimeoutError("there was no time left to ask")
            limit = min(left, ANSWER if seconds is None else seconds)
            return fsspec.asyn.sync(self._fs.loop, coroutine, *args, timeout=limit, **kwargs)

        pause = wait_random_exponential(multiplier=0.5, max=min(LONGEST_WAIT, self.patience))
        tries = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=is_over,
            wait=lambda state: min(pause(state), max(0.0, self._ends - time.monotonic())),
            before_sleep=say,
            reraise=True,
        )
        try:
            return tries(ask)
        except Exception as error:
            told = _told(self.url, what, error, waited())
            if told is error:
                raise
            raise told from error
        finally:
            count(seconds=time.monotonic() - began)


class _LostRace(Exception):
    """Internal: the condition of a write does not hold."""


@functools.lru_cache(maxsize=4)
def _root(url: str, server: str, process: int) -> Any:
    """The prefix as a path of universal-pathlib: one client a process, shared by its threads.

    Listings are not cached: others write. The client itself tries again twice, within seconds.
    """
    from upath import UPath

    root = UPath(
        url,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 3}},
    )
    root.fs.retries = 1
    return root


def _is_key(key: str) -> bool:
    parts = key.split("/")
    return key.isprintable() and not {"", ".", ".."}.intersection(parts) and "\\" not in key


def _answer(error: BaseException | None) -> tuple[str, int]:
    """Code and HTTP status that the server gave, ``("", 0)`` where it did not get to answer."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
        error = error.__cause__
    return "", 0


def _is_transient(error: BaseException) -> bool:
    from botocore import exceptions
    from s3fs.core import S3_RETRYABLE_ERRORS

    code, status = _answer(error)
    if code or status:
        return code in _TRANSIENT or status == 429 or (status >= 500 and status != 501)
    lost = (ConnectionError, TimeoutError, exceptions.ConnectionError, *S3_RETRYABLE_ERRORS)
    return isinstance(error, lost)


def _reason(error: BaseException | None) -> str:
    code, status = _answer(error)
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{code or status}: {text}" if code or status else text


def _told(url: str, what: str, error: Exception, waited: float) -> Exception:
    """The error that the store knows for one of the client's."""
    from botocore.exceptions import BotoCoreError

    code, status = _answer(error)
    if code == "PreconditionFailed" or status == 412:
        return _LostRace()
    if _is_transient(error):
        action = "start the same command, or run, again once the bucket answers"
        return BucketError(url, f"{what} for {waited:.0f} s", _reason(error), action, code)
    if code == "NoSuchBucket":
        action = f"make the bucket, or name another in {BUCKET_VARIABLE}"
    elif isinstance(error, FileNotFoundError):
        return error
    elif isinstance(error, BotoCoreError | PermissionError):
        action = (
            "look after the AWS_* variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION) and what this key may do: get, put, delete and list "
            "objects"
        )
    elif code or status:
        action = "ask whoever runs the bucket; started again, the work goes on where it was"
    else:
        return error
    return BucketError(url, what, _reason(error), action, code)
