"""Encoding of positions and moves, the network, batched inference and model files.

The names below are imported on first use, so that encoding alone never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.network.board_network import BoardNetwork
    from ringrift_pipeline.network.checkpoint import (
        CorruptModelError,
        MissingModelError,
        ModelError,
        ModelMismatchError,
        NonFiniteModelError,
        load_model,
        read_model_metadata,
        save_model,
    )
    from ringrift_pipeline.network.devices import (
        DIVERGENCE,
        MOST_DIVERGENCE,
        UNMEASURED,
        backend_on,
        resolve_backend,
        resolve_device,
        resolve_precision,
    )
    from ringrift_pipeline.network.encoder import encode_states
    from ringrift_pipeline.network.encoding import (
        ENCODING_VERSION,
        GLOBAL_NAMES,
        MAX_PLAYERS,
        NUM_GLOBALS,
        NUM_PLANES,
        PLANE_NAMES,
    )
    from ringrift_pipeline.network.errors import (
        EvaluationError,
        MissingBackendError,
        NonFiniteOutputError,
    )
    from ringrift_pipeline.network.evaluator import (
        MASKED_LOGIT,
        Evaluator,
        features_to_tensors,
    )
    from ringrift_pipeline.network.model import NetworkConfig, RingRiftNetwork
    from ringrift_pipeline.network.moves import (
        CELLS_PER_MOVE,
        MOVE_KIND_NAMES,
        NUM_MOVE_KINDS,
        describe_moves,
    )
    from ringrift_pipeline.network.symmetric_evaluation import SymmetricEvaluator
    from ringrift_pipeline.network.symmetry import BoardSymmetries

_MODULE_OF = {
    "BoardSymmetries": "symmetry",
    "BoardNetwork": "board_network",
    "CELLS_PER_MOVE": "moves",
    "CorruptModelError": "checkpoint",
    "DIVERGENCE": "devices",
    "ENCODING_VERSION": "encoding",
    "EvaluationError": "errors",
    "MissingBackendError": "errors",
    "Evaluator": "evaluator",
    "GLOBAL_NAMES": "encoding",
    "MASKED_LOGIT": "evaluator",
    "MOST_DIVERGENCE": "devices",
    "MAX_PLAYERS": "encoding",
    "MOVE_KIND_NAMES": "moves",
    "MissingModelError": "checkpoint",
    "ModelError": "checkpoint",
    "ModelMismatchError": "checkpoint",
    "NUM_GLOBALS": "encoding",
    "NUM_MOVE_KINDS": "moves",
    "NUM_PLANES": "encoding",
    "NetworkConfig": "model",
    "NonFiniteModelError": "checkpoint",
    "NonFiniteOutputError": "errors",
    "PLANE_NAMES": "encoding",
    "RingRiftNetwork": "model",
    "SymmetricEvaluator": "symmetric_evaluation",
    "UNMEASURED": "devices",
    "backend_on": "devices",
    "describe_moves": "moves",
    "encode_states": "encoder",
    "features_to_tensors": "evaluator",
    "load_model": "checkpoint",
    "read_model_metadata": "checkpoint",
    "resolve_backend": "devices",
    "resolve_device": "devices",
    "resolve_precision": "devices",
    "save_model": "checkpoint",
}

__all__ = [
    "CELLS_PER_MOVE",
    "DIVERGENCE",
    "ENCODING_VERSION",
    "GLOBAL_NAMES",
    "MASKED_LOGIT",
    "MAX_PLAYERS",
    "MOST_DIVERGENCE",
    "MOVE_KIND_NAMES",
    "NUM_GLOBALS",
    "NUM_MOVE_KINDS",
    "NUM_PLANES",
    "PLANE_NAMES",
    "UNMEASURED",
    "BoardNetwork",
    "BoardSymmetries",
    "CorruptModelError",
    "EvaluationError",
    "Evaluator",
    "MissingBackendError",
    "MissingModelError",
    "ModelError",
    "ModelMismatchError",
    "NetworkConfig",
    "NonFiniteModelError",
    "NonFiniteOutputError",
    "RingRiftNetwork",
    "SymmetricEvaluator",
    "backend_on",
    "describe_moves",
    "encode_states",
    "features_to_tensors",
    "load_model",
    "read_model_metadata",
    "resolve_backend",
    "resolve_device",
    "resolve_precision",
    "save_model",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
