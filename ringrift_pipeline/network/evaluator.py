"""Batched inference: packed states in, policy logits and win probabilities out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ringrift_pipeline.game import layout
from ringrift_pipeline.network.board_network import BoardNetwork
from ringrift_pipeline.network.device_network import DeviceNetwork
from ringrift_pipeline.network.devices import (
    PRECISIONS,
    resolve_backend,
    resolve_device,
    resolve_precision,
)
from ringrift_pipeline.network.encoder import Encoder
from ringrift_pipeline.network.errors import NonFiniteOutputError, check_outputs
from ringrift_pipeline.network.model import RingRiftNetwork
from ringrift_pipeline.network.move_logits import MASKED_LOGIT, move_logits, seat_chances
from ringrift_pipeline.network.openvino_network import OpenVinoNetwork, Outputs

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules


def features_to_tensors(
    features: Mapping[str, npt.NDArray[Any]], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Tensors of the arrays of ``encode_states``, same dtypes, on ``device``."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(array)).to(device)
        for name, array in features.items()
    }


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _roomy(batch: int) -> int:
    """A number of rows, at least ``batch``, that batches often have.

    oneDNN prepares and keeps code for every shape that it meets, some 0.7 MiB for each size of
    batch (OpenVINO 7 MiB): with every size from 1 to 128 that is 80 MiB, and selfplay meets them
    all in time.
    """
    step = 1 if batch <= 2 else 4 if batch <= 4 else 8 if batch <= 128 else 32
    return batch + -batch % step


class _OnCpu:
    """A network of torch that takes and returns arrays."""

    def __init__(self, network: BoardNetwork) -> None:
        self.network = network

    def __call__(self, planes: npt.NDArray[np.uint8], globals_: npt.NDArray[np.float32]) -> Outputs:
        cells, kind_bias, value = self.network(torch.from_numpy(planes), torch.from_numpy(globals_))
        return cells.numpy(), kind_bias.numpy(), value.numpy()


class Evaluator:
    """Evaluates batches of positions of one config.

    The network is copied: the caller's stays in the mode and on the device it was in. The same
    batch gives the same bits on the same machine, whatever ran before and however many threads
    torch uses elsewhere. An instance serves one thread.

    Args:
        model: a network of the config's geometry.
        rules: the config's rules.
        device: "auto", "cpu", "cuda", ...
        precision: "float32", "bfloat16" or "auto", see :func:`resolve_precision`; outputs are
            float32 in any case.
        backend: "torch", "openvino" or "auto", see :func:`resolve_backend`.
        value_temperature: divides the value logits, e.g. the calibration report's temperature.
        max_batch: longer batches are evaluated in pieces of this size.
        threads: used during an evaluation on the CPU, torch's setting restored afterwards; None
            leaves torch's alone, and OpenVINO all cores.
        name: of the model, in errors.

    Raises:
        ValueError: geometry mismatch, unknown device, or an argument out of bounds.
        MissingBackendError: as :func:`resolve_backend`.
    """

    #: Words of a state that the encoding leaves out: how far the game is, and who left it when.
    unseen: tuple[int, ...] = (
        layout.PLY,
        layout.TURN,
        layout.LAST_MOVER,
        *range(layout.LOST_TURN, layout.LOST_TURN + 4),
    )

    def __init__(
        self,
        model: RingRiftNetwork,
        rules: Rules,
        device: str | torch.device = "auto",
        *,
        precision: str = "float32",
        backend: str = "torch",
        value_temperature: float = 1.0,
        max_batch: int = 512,
        threads: int | None = 1,
        name: str = "the network",
    ) -> None:
        if model.config.geometry != rules.geometry:
            raise ValueError(
                f"a network for {model.config.geometry} boards cannot evaluate {rules.config} "
                f"({rules.geometry}); load a model trained on a {rules.geometry} board"
            )
        if not (np.isfinite(value_temperature) and value_temperature > 0):
            raise ValueError(f"value_temperature must be positive, got {value_temperature!r}")
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1 or None, got {threads!r}")
        self.rules = rules
        self.name = name
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.value_temperature = float(value_temperature)
        self.max_batch = max_batch
        self.threads = threads if self.device.type == "cpu" else None
        self.backend = resolve_backend(backend, self.device)
        self._encoder = Encoder(rules)
        self._board: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32]], Outputs]
        head = copy.deepcopy(model.policy).float().requires_grad_(False)
        # On a device the moves are looked up there: they are fewer bytes than the board's planes.
        self._there = None
        if self.backend == "openvino":
            self._board = OpenVinoNetwork(model, rules, self.precision, self.threads)
        else:
            network = BoardNetwork(model, rules, PRECISIONS[self.precision]).to(self.device)
            self._board = _OnCpu(network)
        if self.device.type != "cpu":
            self._there = DeviceNetwork(network, copy.deepcopy(head).to(self.device), self.device)
        tables = (head.plane_index, head.kind_embed, head.kind_out)
        ranks = (head.rank_table, head.rank_slope)
        self._tables = tuple(table.cpu().contiguous().numpy() for table in (*tables, *ranks))

    def evaluate(
        self,
        states: npt.NDArray[np.int64],
        moves: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Policy logits and values of a batch of unfinished positions.

        Args:
            states: (B, S) int64.
            moves: (B, L) int64 packed legal moves, padded at will behind ``counts``.
            counts: (B,) number of legal moves.

        Returns:
            ``logits`` (B, L) float32, ``MASKED_LOGIT`` behind the legal moves; ``value``
            (B, players) float32, each absolute seat's probability of winning, rows sum to 1.

        Raises:
            ValueError: as ``encode_states``.
            NonFiniteOutputError: the network gives a policy or value that is not finite; the
                message names the model and the position.
        """
        batch, width = moves.shape
        logits = np.empty((batch, width), dtype=np.float32)
        values = np.empty((batch, self.rules.players), dtype=np.float32)
        with torch.inference_mode(), _torch_threads(self.threads):
            for start in range(0, batch, self.max_batch):
                piece = slice(start, min(start + self.max_batch, batch))
                try:
                    self._evaluate_piece(
                        states[piece], moves[piece], counts[piece], logits[piece], values[piece]
                    )
                except NonFiniteOutputError as error:
                    rows = [start + row for row in error.rows]
                    raise NonFiniteOutputError(str(error), rows) from None
        return logits, values

    def evaluate_encoded(
        self, features: Mapping[str, npt.NDArray[Any]], counts: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What :meth:`evaluate` computes, of positions that are encoded already, in one piece.

        Args:
            features: the arrays of ``encode_states``, B rows of L moves.
            counts: (B,) int32 number of legal moves.

        Returns:
            ``logits`` (B, L) float32, ``MASKED_LOGIT`` behind the legal moves; value logits (B, 4)
            float32, relative to the players to move, not divided by the temperature. Neither is
            checked for numbers that are not finite.
        """
        logits = np.empty(features["legal_mask"].shape, dtype=np.float32)
        with torch.inference_mode(), _torch_threads(self.threads):
            value = self._looked_up(features, counts, logits)
        return logits, value.copy()  # a backend may give out its own memory, and write there again

    def _evaluate_piece(
        self,
        states: npt.NDArray[np.int64],
        moves: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int32],
        logits: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
    ) -> None:
        widest = int(counts.max())
        if widest > moves.shape[1]:
            raise ValueError(f"counts reach {widest}, but moves hold only {moves.shape[1]} a state")
        counts = np.ascontiguousarray(counts, dtype=np.int32)
        rows = len(states) if self._there else _roomy(len(states))
        features = self._encoder.encode(states, moves[:, :widest], counts, rows)
        movers = np.ascontiguousarray(states[:, layout.PLAYER])
        value = self._looked_up(features, counts, logits)
        # By the logits: one of -inf would become an innocent chance of 0.
        chosen = value[:, : values.shape[1]]
        check_outputs(self.name, self.rules, states, counts, logits, chosen)
        seat_chances(value, movers, self.value_temperature, values)

    def _looked_up(
        self,
        features: Mapping[str, npt.NDArray[Any]],
        counts: npt.NDArray[np.int32],
        logits: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """Fills ``logits`` and returns the value logits (B, 4)."""
        if self._there is not None:
            legal = features["legal_mask"]
            logits[:] = MASKED_LOGIT
            logits[:, : legal.shape[1]][legal], value = self._there.evaluate(features, counts)
            return value
        batch = len(counts)
        outputs = self._board(features["planes"], features["globals"])
        cells, kind_bias, value = (output[:batch] for output in outputs)
        self._look_up(features, counts, (cells, kind_bias), logits)
        return value

    def _look_up(
        self,
        features: Mapping[str, npt.NDArray[Any]],
        counts: npt.NDArray[np.int32],
        board: tuple[npt.NDArray[np.float32], ...],
        logits: npt.NDArray[np.float32],
    ) -> None:
        index, embed, kind_out, rank_table, rank_slope = self._tables
        move_logits(
            board[0],
            board[1],
            features["move_kind"],
            features["move_cells"],
            features["move_rank"],
            counts,
            index,
            embed,
            kind_out,
            rank_table,
            rank_slope,
            logits,
        )
