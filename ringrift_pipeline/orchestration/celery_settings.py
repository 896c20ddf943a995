"""What the environment says to those who hand steps to Celery's workers, and what both ends say when
something is amiss.

Imports nothing of Celery's. Addresses may hold passwords: they stay in the environment, and no message
or file repeats them.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ringrift_pipeline.orchestration.pools import GPU_QUEUE, PoolError
from ringrift_pipeline.store import BucketSettingError
from ringrift_pipeline.store.bucket_settings import BUCKET_VARIABLE, named_bucket
from ringrift_pipeline.store.kinds import CODE_VERSIONS

BROKER_VARIABLE = "RINGRIFT_CELERY_BROKER"
BACKEND_VARIABLE = "RINGRIFT_CELERY_BACKEND"
NO_WORKER_VARIABLE = "RINGRIFT_CELERY_NO_WORKER_AFTER"
LOST_VARIABLE = "RINGRIFT_CELERY_LOST_AFTER"
OUTAGE_VARIABLE = "RINGRIFT_CELERY_OUTAGE"

APP = "ringrift_pipeline.orchestration.celery_app"
HEADER = "ringrift"  # of a task: the terms of who asked for it
BUCKET = "bucket"  # in these terms
PROGRESS = "PROGRESS"  # state of a task that is worked on, with its signs of life


class CelerySettingsError(PoolError):
    """A variable of the environment is missing, or means nothing."""


class RefusalError(RuntimeError):
    """A worker is not one for the run that asks; another may be."""


class WorkerVersionError(RefusalError):
    """A worker of another version than the run was asked to work for it."""


class OtherBucketError(RefusalError):
    """A worker keeps what it makes elsewhere than the run does that it was asked to work for."""


class OtherHistoryError(RuntimeError):
    """A worker's instance knows nothing of the run that it is to work for."""


class NoWorkerError(RuntimeError):
    """Nobody takes steps from a queue."""


class BrokerAwayError(RuntimeError):
    """Redis does not answer."""


@dataclass(frozen=True)
class CelerySettings:
    """Where the broker is, and how patient the executor is. Times are seconds.

    Attributes:
        broker: address of the Redis that holds the queues, ``redis://[:password@]host:port/0``.
        backend: address of the one that holds the signs of life; the same, unless it is said.
        no_worker_after: how long a step may wait in a queue that nobody takes from.
        lost_after: how long a worker may give no sign of life; it gives one every two seconds.
        outage: how long Redis may be away while a run waits for it.
    """

    broker: str
    backend: str
    no_worker_after: float = 40.0
    lost_after: float = 60.0
    outage: float = 300.0

    @classmethod
    def from_environment(cls) -> CelerySettings:
        """Raises CelerySettingsError, for what names no bucket as well: steps are told where it is."""
        broker = os.environ.get(BROKER_VARIABLE)
        if not broker:
            raise CelerySettingsError(
                f"{BROKER_VARIABLE} is not set: name the Redis of the queues, redis://host:6379/0"
            )
        try:
            named_bucket()
        except BucketSettingError as error:
            raise CelerySettingsError(str(error)) from None
        return cls(
            checking_certificates(broker),
            checking_certificates(os.environ.get(BACKEND_VARIABLE) or broker),
            seconds_of(NO_WORKER_VARIABLE, cls.no_worker_after),
            seconds_of(LOST_VARIABLE, cls.lost_after),
            seconds_of(OUTAGE_VARIABLE, cls.outage),
        )

    @property
    def place(self) -> str:
        """Host and port of the broker, for people."""
        return place_of(self.broker)


def seconds_of(name: str, default: float, least: float = 1.0) -> float:
    """The seconds that a variable of the environment says. Raises CelerySettingsError."""
    text = os.environ.get(name)
    try:
        seconds = default if not text else float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= 86_400.0:
        raise CelerySettingsError(f"{name} is {text!r}: set it to seconds, {least:g} to 86400")
    return seconds


def place_of(address: str) -> str:
    """``host:port`` of an address, without what it may hold of names and passwords."""
    try:
        parts = urlsplit(address)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "an address that cannot be read"


def without_secrets(text: str, address: str) -> str:
    """What an error says, without the password of an address, written in any way, and without names and
    passwords of others.
    """
    text = re.sub(r"//[^\s/]*@", "//", text)
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        options = [value for name, value in parse_qsl(parts.query) if name == "password"]
        for secret in filter(None, (parts.password, *options)):
            for written in {secret, unquote(secret), quote(secret, safe="")}:
                text = text.replace(written, "***")
    return text


def checking_certificates(address: str) -> str:
    """The address of a Redis with TLS (``rediss://``) with what makes both of its clients look at the
    server's certificate, unless it says how: one would not, the other refuses to begin.
    """
    parts, option = urlsplit(address), "ssl_cert_reqs"
    if parts.scheme != "rediss" or option in parts.query:
        return address
    asked = "&".join(filter(None, (parts.query, f"{option}=CERT_REQUIRED")))
    return parts._replace(query=asked).geturl()


def versions() -> dict[str, Any]:
    """What two ends must have in common: the package, Dagster, and the code behind every asset."""
    return {
        "package": version("ringrift-pipeline"),
        "dagster": version("dagster"),
        "code": dict(CODE_VERSIONS),
    }


def terms() -> dict[str, Any]:
    """What is sent with a step, and two ends must have in common: versions, and the bucket. Its server
    may have another address there. Raises BucketSettingError.
    """
    return {**versions(), BUCKET: named_bucket()}


def refuse_others(asked: Mapping[str, Any] | None) -> None:
    """Raises WorkerVersionError, OtherBucketError unless ``asked``, the terms of a run, are this
    process's own.
    """
    refuse_other_versions(asked)
    refuse_other_bucket(asked or {})


def refuse_other_versions(asked: Mapping[str, Any] | None) -> None:
    """Raises WorkerVersionError unless ``asked``, the terms of a run, have this process's versions."""
    own = versions()
    if asked is not None and {name: asked.get(name) for name in own} == own:
        return
    raise WorkerVersionError(
        f"the worker on {socket.gethostname()} has {_told(own, asked)}, the run was made by "
        f"{_told(asked, own)}: give both the same version, and execute the run again from failure"
    )


def _told(these: Mapping[str, Any] | None, others: Mapping[str, Any] | None) -> str:
    """Versions as text; of the assets' only those that differ."""
    if not these:
        return "a version that does not say which it is"
    there = (others or {}).get("code", {})
    code = {
        name: number for name, number in these.get("code", {}).items() if there.get(name) != number
    }
    text = f"ringrift-pipeline {these.get('package')} with Dagster {these.get('dagster')}"
    return text + (f" and {', '.join(f'{k} {v}' for k, v in code.items())}" if code else "")


def refuse_other_bucket(asked: Mapping[str, Any]) -> None:
    """Raises OtherBucketError unless this process keeps what it makes where the run does."""
    own = named_bucket()
    if BUCKET in asked and asked[BUCKET] == own:
        return
    theirs = _kept(asked[BUCKET]) if BUCKET in asked else "a bucket that it does not name"
    raise OtherBucketError(
        f"the worker on {socket.gethostname()} keeps what it makes in {_kept(own)}, the run in {theirs}: "
        f"what one makes the other would not find. Set {BUCKET_VARIABLE} to the same on both, start the "
        "one that was wrong again, and execute the run again from failure"
    )


def _kept(bucket: str | None) -> str:
    return f"no bucket ({BUCKET_VARIABLE} is not set)" if bucket is None else bucket


def start_line(queue: str) -> str:
    """What to type on a machine that shall work on a queue."""
    device = queue == GPU_QUEUE
    threads, slots = ("", "1") if device else ("OMP_NUM_THREADS=1 ", "$(nproc)")  # a core a step
    return f"{threads}celery -A {APP} worker -Q {queue} --concurrency {slots} -n {queue}@%h"
