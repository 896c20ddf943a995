"""Where and how a network is computed: device, arithmetic, and what runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ringrift_pipeline.network.errors import MissingBackendError

CPU_INFO = Path("/proc/cpuinfo")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKENDS = ("torch", "openvino")

#: In the metadata of a model's artefact: mean KL divergence of the policy in bfloat16 from that in
#: float32 on held-out positions, nats; None where it is not finite.
DIVERGENCE = "val/precision_policy_kl"
#: How much of it search computes with.
MOST_DIVERGENCE = 1e-3
#: There: why it could not be measured.
UNMEASURED = "search_precision_note"


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant by ``device``; "auto" is CUDA where present, else the CPU.

    Raises:
        ValueError: the name means nothing to torch, or CUDA is asked for and absent.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use auto, cpu or cuda") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} asked for, but no CUDA device is present; use cpu")
    return resolved


def resolve_precision(
    precision: str = "auto",
    device: str | torch.device = "auto",
    models: Iterable[Mapping[str, Any]] = (),
) -> str:
    """ "float32" or "bfloat16": what ``precision`` means on ``device``.

    "auto" is bfloat16 where the arithmetic is native (CUDA that has it, x86 processors that list
    ``avx512_bf16`` or ``amx_bf16``) and every one of ``models`` bears it (see :func:`bears`), else
    float32.

    Args:
        models: metadata of the artefacts of the models that are to be computed.

    Raises:
        ValueError: an unknown precision, or as :func:`resolve_device`.
    """
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise ValueError(f"precision must be auto, {' or '.join(PRECISIONS)}, got {precision!r}")
    kind = resolve_device(device).type
    native = (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)) or (
        kind == "cpu" and _cpu_has_bfloat16()
    )
    return "bfloat16" if native and all(map(bears, models)) else "float32"


def bears(model: Mapping[str, Any]) -> bool:
    """Whether a model's policy in bfloat16 is what it is in float32, by its artefact's metadata.

    It is not where :data:`DIVERGENCE` is above :data:`MOST_DIVERGENCE`, or None, as the policy was
    not finite, nor where it could not be measured (:data:`UNMEASURED` says why). A model of which
    nothing is said, as of earlier versions and of other hands, is taken to bear it.
    """
    if DIVERGENCE not in model:
        return UNMEASURED not in model
    measured = model[DIVERGENCE]
    return measured is not None and float(measured) <= MOST_DIVERGENCE


def resolve_backend(backend: str = "auto", device: str | torch.device = "auto") -> str:
    """ "torch" or "openvino": what ``backend`` means on ``device``.

    "auto" is OpenVINO on the CPU where it is installed (the extra ``openvino``), else torch: of
    what was measured it is the fastest, by up to four times for one position
    (``benchmarks/inference.py``, docs/inference.md).

    Raises:
        MissingBackendError: OpenVINO is asked for and not installed.
        ValueError: an unknown backend, OpenVINO on another device, or as :func:`resolve_device`.
    """
    kind = resolve_device(device).type
    installed = find_spec("openvino") is not None
    if backend == "auto":
        return "openvino" if kind == "cpu" and installed else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be auto, {' or '.join(BACKENDS)}, got {backend!r}")
    if backend == "openvino" and kind != "cpu":
        raise ValueError(f"OpenVINO runs networks on the CPU, not on {kind}: use backend torch")
    if backend == "openvino" and not installed:
        raise MissingBackendError(
            "OpenVINO is to run the network, and is not installed: pip install "
            "'ringrift-pipeline[openvino]', or set search.backend=torch for a new generation"
        )
    return backend


def backend_on(device: str | torch.device, backend: str) -> str:
    """What runs a network on ``device`` where ``backend`` was chosen on another machine.

    OpenVINO runs networks on the CPU alone: elsewhere "openvino" becomes "torch".

    Raises:
        ValueError: as :func:`resolve_device`.
    """
    on_cpu = resolve_device(device).type == "cpu"
    return backend if on_cpu or backend != "openvino" else "torch"


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 (oneDNN emulates it elsewhere, slowly)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags
