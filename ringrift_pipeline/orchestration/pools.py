"""Where a step waits for its turn.

On one machine that is a pool: the processor's cores, or the GPU where the step works on one. Pools are
part of the definitions, so the device is looked for when they are loaded, without torch. With Celery
(``$RINGRIFT_EXECUTOR``) it is one of two queues, whose workers are the limit, and there are no pools.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from ringrift_pipeline.orchestration.names import CPU_POOL, GPU_POOL
from ringrift_pipeline.selfplay.workers import cores

POOL_VARIABLE = "RINGRIFT_POOL"
GPU_STEPS_VARIABLE = "RINGRIFT_GPU_STEPS"
DEVICE_VARIABLE = "RINGRIFT_DEVICE"  # TrainingConfig's own, where it comes from the environment
DEVICES = Path("/dev")

# What works on the run's device; everything else is arithmetic of the processor.
ON_THE_DEVICE = frozenset(
    {
        "selfplay_shards",
        "hard_examples",
        "checkpoint",
        "ema_model",
        "ensemble",
        "calibration_report",
        "evaluation",
        "gauntlet",
        "ablation",
    }
)

EXECUTOR_VARIABLE = "RINGRIFT_EXECUTOR"
LOCAL, CELERY = "local", "celery"
GPU_QUEUE_VARIABLE = "RINGRIFT_GPU_QUEUE"
SELFPLAY_QUEUE, GPU_QUEUE = "selfplay", "gpu"

# What a queue of devices is for. Games, of selfplay and of evaluations, are played by many processors.
ON_THE_GPU_QUEUE = frozenset(
    {"hard_examples", "checkpoint", "ema_model", "ensemble", "calibration_report", "ablation"}
)

POOL_TAG = "ringrift/pool"  # of a step, for its run's executor
QUEUE_TAG = "dagster-celery/queue"  # dagster-celery's own


class PoolError(ValueError):
    """The environment says something of pools, queues or executors that means nothing."""


def distributed() -> bool:
    """Do steps go to Celery's workers (``RINGRIFT_EXECUTOR=celery``)?

    Raises:
        PoolError: the variable holds something else, or what Celery needs is not installed.
    """
    name = os.environ.get(EXECUTOR_VARIABLE) or LOCAL
    if name not in (LOCAL, CELERY):
        raise PoolError(f"{EXECUTOR_VARIABLE} is {name!r}: set it to {LOCAL} or {CELERY}")
    if name == CELERY and importlib.util.find_spec("dagster_celery") is None:
        raise PoolError(
            f"{EXECUTOR_VARIABLE} is {name!r}, which needs more packages: "
            "pip install 'ringrift-pipeline[celery]'"
        )
    return name == CELERY


def queue_of(name: str) -> str:
    """The queue of the steps that make ``name``: ``selfplay`` or ``gpu``.

    ``$RINGRIFT_GPU_QUEUE`` names what goes to ``gpu`` in place of `ON_THE_GPU_QUEUE`, with commas
    between: ``checkpoint,evaluation``.

    Raises:
        PoolError: it names something that does not work on a device.
    """
    text = os.environ.get(GPU_QUEUE_VARIABLE)
    if text is None:
        return GPU_QUEUE if name in ON_THE_GPU_QUEUE else SELFPLAY_QUEUE
    chosen = {part.strip() for part in text.split(",") if part.strip()}
    if unknown := sorted(chosen - ON_THE_DEVICE):
        raise PoolError(
            f"{GPU_QUEUE_VARIABLE} names {', '.join(unknown)}: choose from "
            + ", ".join(sorted(ON_THE_DEVICE))
        )
    return GPU_QUEUE if name in chosen else SELFPLAY_QUEUE


def pool_of(name: str) -> str | None:
    """The pool of the steps that make ``name`` (an asset, or a job's only step); None with Celery.

    ``$RINGRIFT_POOL`` (``cpu`` or ``gpu``) decides where it is set, else ``$RINGRIFT_DEVICE``, else
    whether there is a CUDA device.

    Raises:
        PoolError: a variable holds something else.
    """
    return None if distributed() else _pool(name)


def _pool(name: str) -> str:
    return GPU_POOL if name in ON_THE_DEVICE and uses_gpu() else CPU_POOL


def uses_gpu() -> bool:
    """Do steps of this process's environment work on a GPU? Raises PoolError."""
    pool = os.environ.get(POOL_VARIABLE, "")
    if pool not in ("", CPU_POOL, GPU_POOL):
        raise PoolError(f"{POOL_VARIABLE} is {pool!r}: set it to {CPU_POOL} or {GPU_POOL}")
    if pool:
        return pool == GPU_POOL
    device = os.environ.get(DEVICE_VARIABLE, "auto")
    return device != "cpu" if device != "auto" else _has_cuda()


def _has_cuda() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any(DEVICES.glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def limits() -> dict[str, int]:
    """Steps that may work at once, by pool: as many as cores, and one on the GPU
    (``$RINGRIFT_GPU_STEPS`` says how many else). With Celery the workers are the limit. Raises
    PoolError.
    """
    if distributed():
        return {}
    return {CPU_POOL: cores()} | ({GPU_POOL: _gpu_steps()} if uses_gpu() else {})


def asked_for() -> set[str]:
    """Pools whose limit the environment gives: that holds whatever it was before."""
    return {GPU_POOL} if GPU_STEPS_VARIABLE in os.environ else set()


def _gpu_steps() -> int:
    text = os.environ.get(GPU_STEPS_VARIABLE, "1")
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise PoolError(f"{GPU_STEPS_VARIABLE} is {text!r}: set it to a number of at least 1")
    return int(text)


def tags_of(name: str) -> dict[str, str]:
    """Tags of the steps that make ``name``: by them `limits_in_a_run` knows them, or Celery's
    executor their queue.
    """
    return {QUEUE_TAG: queue_of(name)} if distributed() else {POOL_TAG: _pool(name)}


def tags_of_checks(name: str) -> dict[str, str]:
    """Tags of the checks of ``name``: they are made where it was, which has what it was made of."""
    return {QUEUE_TAG: queue_of(name)} if distributed() else {}


def limits_in_a_run() -> list[dict[str, object]]:
    """The same limits within one run, for its executor.

    A step that waits in a pool asks again after up to 15 seconds, while the executor begins the
    next one at once: steps of one run must not come to wait in the pool.
    """
    return [
        {"key": POOL_TAG, "value": pool, "limit": limit}
        for pool, limit in limits().items()
        if pool != CPU_POOL  # the executor has no more steps at once than there are cores
    ]


def pools_for(device: str) -> dict[str, str]:
    """Environment of runs whose settings name ``device``: on the CPU nothing waits for a GPU."""
    return {POOL_VARIABLE: CPU_POOL} if device == "cpu" else {}
