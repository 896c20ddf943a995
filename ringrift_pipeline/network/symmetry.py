"""Symmetries of the boards, to train on every position from every side.

The squares have eight. Of a hexagon's twelve, ``hexagonal`` has all, while hex8 keeps the four
that its border rule respects (it collapses along the axial offsets (1, 1) and (-1, -1) too).

Planes and cells of moves follow the symmetry exactly. The three cells that stand for a line or a
region remain three of its cells, though not always those that the encoder would choose on the
turned board: which ones it takes there follows from the order of the cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ringrift_pipeline.game import layout

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules


def symmetry_tables(rules: Rules) -> npt.NDArray[np.int64]:
    """(K, N*N) where each symmetry sends each plane cell; row 0 is the identity.

    K is 8 on square boards, 12 on ``hexagonal``, 4 on hex8. Cells of the plane that are off the
    board stay where they are (they hold nothing).
    """
    n = rules.size
    y, x = np.divmod(np.arange(n * n), n)
    images = []
    if rules.geometry == "square":
        for flip in (False, True):
            u, v = (y, x) if flip else (x, y)
            for _ in range(4):
                images.append(v * n + u)
                u, v = n - 1 - v, u
    else:
        radius = n // 2
        for flip in (False, True):
            u, v = (y - radius, x - radius) if flip else (x - radius, y - radius)
            for turn in range(6):
                if rules.constants[layout.B_BORDER_FLOOD] == 0 or turn % 3 == 0:
                    images.append((v + radius) * n + u + radius)
                u, v = -v, u + v
    tables = np.tile(np.arange(n * n), (len(images), 1))
    on_board = rules.plane_of[rules.cells]
    for table, image in zip(tables, images, strict=True):
        table[on_board] = image[on_board]
    return tables


def transform_features(
    features: Mapping[str, Tensor], tables: Tensor, which: Tensor
) -> dict[str, Tensor]:
    """Turn each position of a batch by a symmetry of its own.

    Args:
        features: tensors of ``encode_states``; left as they are.
        tables: (K, N*N) int64, ``symmetry_tables`` on the features' device.
        which: (B,) int64 in 0..K-1, the symmetry of each position.

    Returns:
        The features with ``planes`` and ``move_cells`` turned. Legal moves keep their places, so
        targets stay as they are.
    """
    planes, cells = features["planes"], features["move_cells"]
    batch, channels = planes.shape[:2]
    image = tables[which]  # (B, N*N)
    target = image.unsqueeze(1).expand(-1, channels, -1)
    turned = torch.empty_like(planes, memory_format=torch.contiguous_format).view(
        batch, channels, -1
    )
    turned.scatter_(2, target, planes.reshape(batch, channels, -1))
    flat = cells.reshape(batch, -1).long()
    moved = image.gather(1, flat.clamp_min(0)).to(cells.dtype).view(cells.shape)
    out = dict(features)
    out["planes"] = turned.view(planes.shape)
    out["move_cells"] = torch.where(cells >= 0, moved, cells)
    return out
