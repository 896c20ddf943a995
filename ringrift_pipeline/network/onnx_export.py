"""A network of one config as an ONNX file: encoded positions in, policy and chances out."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ringrift_pipeline.network.board_network import BoardNetwork
from ringrift_pipeline.network.encoder import encode_states
from ringrift_pipeline.network.model import RingRiftNetwork
from ringrift_pipeline.network.move_logits import MASKED_LOGIT

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules

INPUTS = ("planes", "globals", "move_kind", "move_cells", "move_rank", "legal_mask")
OUTPUTS = ("policy_logits", "policy", "value")
OPSET = 18


class ExportError(RuntimeError):
    """A network cannot be exported; the message says what to do."""


class ExportedNetwork(nn.Module):
    """What the file computes, of the arrays of ``encode_states``, batch and width free.

    Returns ``policy_logits`` and ``policy`` (B, L), -1e9 and 0 where no move is, and ``value``
    (B, players): the chance of each seat, the player to move first. All float32.

    Raises:
        ValueError: the network is for boards of another geometry.
    """

    def __init__(self, network: RingRiftNetwork, rules: Rules) -> None:
        super().__init__()
        if network.config.geometry != rules.geometry:
            raise ValueError(
                f"a network for {network.config.geometry} boards cannot be exported for "
                f"{rules.config} ({rules.geometry})"
            )
        self.players = int(rules.players)
        self.board = BoardNetwork(network, rules)
        self.head = copy.deepcopy(network.policy).float().cpu().requires_grad_(False)

    def forward(
        self,
        planes: Tensor,
        globals_: Tensor,
        move_kind: Tensor,
        move_cells: Tensor,
        move_rank: Tensor,
        legal_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cells, kind_bias, value = self.board(planes, globals_)
        batch = torch.arange(move_kind.shape[0], device=move_kind.device).unsqueeze(1)
        # Padding is described too (a kind without cells), so every entry can be looked up.
        logits = self.head.gather_flat(
            cells[..., : self.head.num_planes],
            cells[..., self.head.num_planes :],
            kind_bias,
            batch.expand(move_kind.shape).reshape(-1),
            move_kind.reshape(-1).long(),
            move_cells.reshape(-1, move_cells.shape[2]).long(),
            move_rank.reshape(-1).long(),
        ).view(move_kind.shape)
        logits = torch.where(legal_mask, logits, torch.full_like(logits, MASKED_LOGIT))
        return logits, logits.softmax(dim=1), value[:, : self.players].softmax(dim=1)


def example_position(rules: Rules, plies: int = 12, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Encoded positions of one game, those of :func:`first_choices`.

    The arrays are those of ``encode_states`` for ``rows`` positions, as wide as the most moves.
    """
    return encode_states(rules, *first_choices(rules, plies, rows))


def first_choices(
    rules: Rules, plies: int = 12, rows: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The first choices of a game after ``plies`` plies, moves by rotation: ``rows`` states (B, S)
    int64, their packed moves (B, L) int64 and how many of them there are (B,) int32.
    """
    from ringrift_pipeline.game import kernels

    state = np.zeros(rules.state_size, dtype=np.int64)
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    kernels.initial_state(rules.constants, state, False)
    states: list[npt.NDArray[np.int64]] = []
    legal: list[npt.NDArray[np.int64]] = []
    ply = 0
    while len(states) < rows:
        count = kernels.legal_moves(rules.constants, state, buffer)
        if ply >= plies and count > 1:
            states.append(state.copy())
            legal.append(buffer[:count].copy())
        kernels.apply_move(rules.constants, state, buffer[(7 * ply) % count])
        ply += 1
    counts = np.array([len(moves) for moves in legal], dtype=np.int32)
    moves = np.zeros((rows, int(counts.max())), dtype=np.int64)
    for row, listed in zip(moves, legal, strict=True):
        row[: len(listed)] = listed
    return np.array(states), moves, counts


def export_onnx(path: Path, network: RingRiftNetwork, rules: Rules) -> None:
    """Write ``network`` for ``rules`` to the new file ``path``, weights included.

    Raises:
        ExportError: the packages that write ONNX are not installed.
        ValueError: as :class:`ExportedNetwork`.
    """
    exported = ExportedNetwork(network, rules).eval()
    features = example_position(rules, rows=2)
    arguments = tuple(torch.from_numpy(features[name]) for name in INPUTS)
    batch, width = torch.export.Dim("batch"), torch.export.Dim("moves")
    shapes = tuple({0: batch} if name in INPUTS[:2] else {0: batch, 1: width} for name in INPUTS)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"{error.name} is not installed, which writes ONNX: pip install 'ringrift-pipeline[onnx]'"
        ) from error
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it says which other libraries it has not found
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                exported,
                arguments,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    program.save(path)
