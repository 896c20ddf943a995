"""The network: convolutional, residual, of no particular board size.

Every layer is a 3x3 or 1x1 convolution, or acts on masked means and maxima over the board, so
one set of weights plays every board of a geometry and every number of players. There is no
normalisation layer at all: residual branches begin small, by the number of blocks, and carry
scalar gains and biases (after Fixup, Zhang et al. 2019), which keeps averaged weights exact and inference cheap. Global pooling
feeds whole-board knowledge back into the trunk (KataGo, Wu 2019).

Hexagonal boards lie in the square plane in axial coordinates, where a cell's six neighbours are
the 3x3 square less the corners (-1, -1) and (+1, +1): those two weights are held at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringrift_pipeline.network.encoding import (
    G_PLAYERS,
    MAX_PLAYERS,
    NUM_GLOBALS,
    NUM_PLANES,
    ON_BOARD,
    PLANE_SCALES,
)
from ringrift_pipeline.network.moves import (
    CELL_ROLES,
    CELLS_PER_MOVE,
    INTERACTION_CHANNELS,
    NO_ROLE,
    NUM_MOVE_KINDS,
)

#: Beginning of the names of the auxiliary heads' weights.
AUXILIARY = "auxiliary."
#: Value logit of a seat that does not exist: softmax makes it an exact zero in float32.
ABSENT_SEAT_LOGIT = -1e4

_RANK_SLOTS = 8


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Shape of a network.

    Attributes:
        blocks: residual blocks, at least 1; every second one pools globally.
        channels: channels of the trunk, at least 4.
        value_channels: width of the value head, at least 4.
        geometry: "square" or "hex"; hex convolutions use the seven-cell kernel.
        players: number of players it was made for, 2-4. Weights do not depend on it: any network
            evaluates games of two to four.

    Raises:
        ValueError: a field is out of its bounds; the message names it.
    """

    blocks: int = 6
    channels: int = 64
    value_channels: int = 32
    geometry: str = "square"
    players: int = 2

    def __post_init__(self) -> None:
        for name, least, most in (
            ("blocks", 1, 64),
            ("channels", 4, 1024),
            ("value_channels", 4, 1024),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and least <= value <= most):
                raise ValueError(
                    f"network {name} must be a whole number from {least} to {most}, got {value!r}"
                )
        if self.geometry not in ("square", "hex"):
            raise ValueError(f"network geometry must be 'square' or 'hex', got {self.geometry!r}")
        if self.players not in (2, 3, 4):
            raise ValueError(f"network players must be 2, 3 or 4, got {self.players!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Inverse of :meth:`to_dict`; unknown or missing keys raise ValueError."""
        known = set(cls.__dataclass_fields__)
        if set(data) != known:
            odd = sorted(set(data) ^ known)
            raise ValueError(
                f"network config must have exactly the keys {sorted(known)}; odd: {odd}"
            )
        return cls(**data)


class BoardConv2d(nn.Module):
    """3x3 convolution over a board, (B, in, N, N) -> (B, out, N, N); zero outside the plane."""

    kernel_mask: Tensor | None

    def __init__(self, inputs: int, outputs: int, geometry: str, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        mask = None
        if geometry == "hex":
            mask = torch.ones(1, 1, 3, 3)
            mask[..., 0, 0] = 0.0
            mask[..., 2, 2] = 0.0
        self.register_buffer("kernel_mask", mask, persistent=False)

    @property
    def fan_in(self) -> int:
        """Inputs of one output: 9 or 7 cells times the input channels."""
        return self.weight.shape[1] * (9 if self.kernel_mask is None else 7)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.kernel_mask is None else self.weight * self.kernel_mask
        return F.conv2d(x, weight, self.bias, padding=1)


def masked_pool(x: Tensor, mask: Tensor) -> Tensor:
    """Mean, mean scaled by board width, and maximum over the board: (B, C, N, N) -> (B, 3C).

    ``x`` must be non-negative and zero off the board; ``mask`` is (B, 1, N, N).
    """
    cells = mask.sum(dim=(1, 2, 3)).unsqueeze(1)
    mean = x.sum(dim=(2, 3)) / cells
    return torch.cat((mean, mean * (cells.sqrt() - 12.0) / 8.0, x.amax(dim=(2, 3))), dim=1)


class ResidualBlock(nn.Module):
    """x + gain * conv(relu(conv(relu(x)))), the gain starting at one and the last conv small.

    With ``pooled``, the masked pool of the inner activations is added back to them as a bias.
    """

    def __init__(self, channels: int, geometry: str, pooled: bool) -> None:
        super().__init__()
        self.first = BoardConv2d(channels, channels, geometry)
        self.second = BoardConv2d(channels, channels, geometry)
        self.pool = nn.Linear(3 * channels, channels) if pooled else None
        self.bias_in = nn.Parameter(torch.zeros(1))
        self.bias_mid = nn.Parameter(torch.zeros(1))
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        inner = F.relu(self.first((F.relu(x) + self.bias_in) * mask))
        inner = inner * mask
        if self.pool is not None:
            bias = self.pool(masked_pool(inner, mask))
            inner = F.relu(inner + bias[:, :, None, None]) * mask
        return x + self.second(inner + self.bias_mid * mask) * self.gain * mask


class PolicyHead(nn.Module):
    """Logits of described moves, (B, L).

    A move's logit is the sum of its kind's planes at its cells, plus a bias for its kind that
    depends on the whole board (all that a move without cells has), plus an interaction of its
    cells (a small hidden layer over their summed embeddings, so that "from here to there" is more
    than "from here" plus "to there"), plus a term of its rank, learned per kind.
    """

    plane_index: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        roles = np.asarray(CELL_ROLES)
        index = np.full((NUM_MOVE_KINDS, CELLS_PER_MOVE), 0, dtype=np.int64)
        used = roles != NO_ROLE
        index[used] = np.arange(int(used.sum()))
        self.register_buffer("plane_index", torch.from_numpy(index), persistent=False)
        self.num_planes = int(used.sum())
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.hidden_pool = nn.Linear(3 * channels, channels)
        self.planes = nn.Conv2d(channels, self.num_planes, 1)
        self.embed = nn.Conv2d(channels, CELLS_PER_MOVE * INTERACTION_CHANNELS, 1)
        self.kind_embed = nn.Parameter(torch.zeros(NUM_MOVE_KINDS, INTERACTION_CHANNELS))
        self.kind_out = nn.Parameter(torch.zeros(NUM_MOVE_KINDS, INTERACTION_CHANNELS))
        self.kind_bias = nn.Linear(3 * channels, NUM_MOVE_KINDS)
        self.rank_table = nn.Parameter(torch.zeros(NUM_MOVE_KINDS, _RANK_SLOTS))
        self.rank_slope = nn.Parameter(torch.zeros(NUM_MOVE_KINDS))

    def forward(self, x: Tensor, pooled: Tensor, moves: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L); 0 where ``legal_mask`` is False.

        ``x`` (B, C, N, N) and ``pooled`` (B, 3C) are the trunk's; ``moves`` holds ``move_kind``,
        ``move_rank`` and ``legal_mask`` (B, L) and ``move_cells`` (B, L, 3).
        """
        hidden = F.relu(self.hidden(x) + self.hidden_pool(pooled)[:, :, None, None])
        planes = self.planes(hidden).permute(0, 2, 3, 1).flatten(1, 2)
        embed = self.embed(hidden).permute(0, 2, 3, 1).flatten(1, 2)
        return self.gather(planes, embed, self.kind_bias(pooled), moves)

    def gather(
        self, planes: Tensor, embed: Tensor, kind_bias: Tensor, moves: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits (B, L) from what the board says, as ``forward``.

        ``planes`` (B, N*N, ``num_planes``), ``embed`` (B, N*N, 3 * 16) and ``kind_bias``
        (B, NUM_MOVE_KINDS).
        """
        legal = moves["legal_mask"]
        where = legal.reshape(-1).nonzero().squeeze(1)  # (M,), padding costs nothing below
        logits = self.gather_flat(
            planes,
            embed,
            kind_bias,
            where // legal.shape[1],
            moves["move_kind"].reshape(-1).index_select(0, where).long(),
            moves["move_cells"].reshape(-1, CELLS_PER_MOVE).index_select(0, where).long(),
            moves["move_rank"].reshape(-1).index_select(0, where).long(),
        )
        out = torch.zeros(legal.numel(), dtype=logits.dtype, device=logits.device)
        return out.index_copy(0, where, logits).view(legal.shape)

    def gather_flat(
        self,
        planes: Tensor,
        embed: Tensor,
        kind_bias: Tensor,
        board: Tensor,
        kind: Tensor,
        cells: Tensor,
        rank: Tensor,
    ) -> Tensor:
        """Logits (M,) of moves of kind ``kind``, cells ``cells`` (M, 3) and rank ``rank``.

        ``board`` is each move's row of the batch; all four are int64.
        """
        present = (cells >= 0).to(embed.dtype)
        flat = cells.clamp_min(0) + (board * planes.shape[1]).unsqueeze(1)

        # Sum of the kind's planes at the cells.
        index = flat * self.num_planes + self.plane_index.index_select(0, kind)
        at_cells = planes.reshape(-1).index_select(0, index.view(-1)).view(-1, CELLS_PER_MOVE)
        logits = (at_cells * present).sum(dim=1)

        # Interaction of the cells.
        slots = torch.arange(CELLS_PER_MOVE, device=cells.device)
        rows = (flat * CELLS_PER_MOVE + slots).view(-1)
        embedded = embed.reshape(-1, INTERACTION_CHANNELS).index_select(0, rows)
        embedded = embedded.view(-1, CELLS_PER_MOVE, INTERACTION_CHANNELS)
        summed = (embedded * present.unsqueeze(2)).sum(dim=1)
        summed = F.relu(summed + F.embedding(kind, self.kind_embed))
        logits = logits + (summed * F.embedding(kind, self.kind_out)).sum(dim=1)

        # Kind and rank.
        logits = logits + kind_bias.reshape(-1).index_select(0, board * NUM_MOVE_KINDS + kind)
        slot = kind * _RANK_SLOTS + rank.clamp_max(_RANK_SLOTS - 1)
        logits = logits + self.rank_table.reshape(-1).index_select(0, slot)
        slope = self.rank_slope.index_select(0, kind)
        return logits + slope * torch.log1p(rank.to(slope.dtype))


class ValueHead(nn.Module):
    """Logits of winning for the four relative seats, (B, 4)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1)
        self.hidden = nn.Linear(3 * width + NUM_GLOBALS, 2 * width)
        self.out = nn.Linear(2 * width, MAX_PLAYERS)

    def forward(self, x: Tensor, mask: Tensor, globals_: Tensor) -> Tensor:
        pooled = masked_pool(F.relu(self.conv(x)) * mask, mask)
        return self.out(F.relu(self.hidden(torch.cat((pooled, globals_), dim=1))))


class AuxiliaryHeads(nn.Module):
    """What only training asks of the trunk: who will own each cell, and the final ring margin.

    They begin at zero, so that attaching them to a trained network disturbs nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.territory = nn.Conv2d(channels, MAX_PLAYERS + 1, 1)
        self.margin = nn.Linear(3 * channels + NUM_GLOBALS, MAX_PLAYERS)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, pooled: Tensor, globals_: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 5, N, N) over the relative seats and nobody, and margins (B, 4).

        ``x`` (B, C, N, N) and ``pooled`` (B, 3C) are the trunk's.
        """
        return self.territory(x), self.margin(torch.cat((pooled, globals_), dim=1))


class RingRiftNetwork(nn.Module):
    """Policy and value of RingRift positions.

    Args:
        config: the shape.
        seed: seed of the initial weights; they depend on nothing else.

    ``forward`` takes the tensors of ``encode_states`` (any floating or integer dtype) and returns
    ``policy_logits`` (B, L) and ``value_logits`` (B, 4). Logits of padded moves are 0: mask them
    with ``legal_mask``. Value logits are relative to the
    player to move; seats beyond the position's player count get ``ABSENT_SEAT_LOGIT``.

    ``auxiliary`` is None but in training (:meth:`attach_auxiliary`); it is no part of the network
    that plays: neither ``forward`` nor ``num_parameters`` nor model files know of it.
    """

    plane_scales: Tensor
    auxiliary: AuxiliaryHeads | None

    def __init__(self, config: NetworkConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        scales = torch.from_numpy(np.array(PLANE_SCALES)).view(1, NUM_PLANES, 1, 1)
        self.register_buffer("plane_scales", scales, persistent=False)
        self.stem = BoardConv2d(NUM_PLANES, channels, config.geometry)
        self.stem_globals = nn.Linear(NUM_GLOBALS, channels, bias=False)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, config.geometry, pooled=index % 2 == 1)
            for index in range(config.blocks)
        )
        self.policy = PolicyHead(channels)
        self.value = ValueHead(channels, config.value_channels)
        self.auxiliary = None
        if not self.stem.weight.is_meta:  # made for its shapes alone
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def fill(weight: Tensor, fan_in: int, gain: float) -> None:
            weight.normal_(0.0, gain / fan_in**0.5, generator=generator)

        for module in self.modules():
            if isinstance(module, BoardConv2d):
                fill(module.weight, module.fan_in, 2.0**0.5)
                if module.kernel_mask is not None:
                    module.weight.mul_(module.kernel_mask)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                fill(module.weight, fan_in, 1.0)
                if module.bias is not None:
                    module.bias.zero_()
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)
            block.first.weight.mul_(len(self.blocks) ** -0.5)
            fill(block.second.weight, block.second.fan_in, 0.3 * len(self.blocks) ** -0.5)
            if block.second.kernel_mask is not None:
                block.second.weight.mul_(block.second.kernel_mask)
            if block.pool is not None:
                block.pool.weight.mul_(0.1)
        head = self.policy
        head.hidden_pool.weight.mul_(0.1)
        head.planes.weight.mul_(0.5)
        head.kind_bias.weight.mul_(0.3)
        fill(head.kind_embed, 1, 0.1)
        fill(head.kind_out, INTERACTION_CHANNELS, 0.5)
        fill(head.rank_table, 1, 0.01)
        fill(head.rank_slope, 1, 0.01)
        # The globals of few games teach the value fastest: let them in strongly.
        self.value.hidden.weight.mul_(2.0**0.5)
        self.value.hidden.weight[:, -NUM_GLOBALS:].mul_(3.0)

    @property
    def num_parameters(self) -> int:
        """Number of trainable weights."""
        return sum(
            p.numel() for name, p in self.named_parameters() if not name.startswith(AUXILIARY)
        )

    def attach_auxiliary(self) -> AuxiliaryHeads:
        """Give the network heads for :meth:`forward_with_auxiliary`, untrained ones; returns them."""
        self.auxiliary = AuxiliaryHeads(self.config.channels).to(self.plane_scales.device)
        return self.auxiliary

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask, globals_ = self._trunk(features)
        return self._heads(x, masked_pool(x, mask), mask, globals_, features)

    def forward_with_auxiliary(
        self, features: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What ``forward`` returns, and the auxiliary heads' territory and margin.

        Raises:
            ValueError: no heads are attached.
        """
        if self.auxiliary is None:
            raise ValueError("the network has no auxiliary heads: attach_auxiliary() first")
        x, mask, globals_ = self._trunk(features)
        pooled = masked_pool(x, mask)
        policy, value = self._heads(x, pooled, mask, globals_, features)
        return policy, value, *self.auxiliary(x, pooled, globals_)

    def _trunk(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The trunk's activations (B, C, N, N), the board's mask (B, 1, N, N) and the globals."""
        dtype = self.plane_scales.dtype
        planes = features["planes"].to(dtype=dtype)
        globals_ = features["globals"].to(dtype=dtype)
        mask = planes[:, ON_BOARD : ON_BOARD + 1]
        planes = (planes * self.plane_scales).contiguous(memory_format=torch.channels_last)
        x = self.stem(planes) + self.stem_globals(globals_)[:, :, None, None]
        x = x * mask
        for block in self.blocks:
            x = block(x, mask)
        return F.relu(x), mask, globals_

    def _heads(
        self,
        x: Tensor,
        pooled: Tensor,
        mask: Tensor,
        globals_: Tensor,
        features: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        policy = self.policy(x, pooled, features)
        value = self.value(x, mask, globals_)
        # Seats beyond the player count, read from the one-hot over 2, 3 and 4 players.
        players = 2 + globals_[:, G_PLAYERS : G_PLAYERS + 3].argmax(dim=1)
        seats = torch.arange(MAX_PLAYERS, device=value.device)
        absent = seats.unsqueeze(0) >= players.unsqueeze(1)
        return policy, value.masked_fill(absent, ABSENT_SEAT_LOGIT)
