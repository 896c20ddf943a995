"""What a person looks at of a generation's selfplay: how decided the search was, ply by ply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ringrift_pipeline.store import Folder

__all__ = ["draw_entropy"]

ENTROPY = "policy_entropy"


def draw_entropy(
    folder: Folder,
    plies: NDArray[np.integer],
    entropy: NDArray[np.float64],
    legal: NDArray[np.integer],
) -> None:
    """Entropy of the search policy by ply, ``policy_entropy.png``.

    Args:
        plies: (K,) plies of the full searches.
        entropy: (K,) of their policies, nats.
        legal: (K,) legal moves they had: an even choice among n has an entropy of log n.
    """
    from ringrift_pipeline.drawing.charts import by_ply, new_chart, save_chart

    figure, (axes,) = new_chart()
    x, mean, low, high = by_ply(plies, entropy)
    axes.fill_between(x, low, high, alpha=0.2, linewidth=0, label="10% to 90%")
    axes.plot(x, mean, marker="o", markersize=3, label="search policy, mean")
    axes.plot(x, by_ply(plies, np.log(legal))[1], "--", color="0.5", label="an even choice")
    axes.set(xlabel="ply", ylabel="entropy, nats", title="How decided the full searches were")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    save_chart(figure, folder, ENTROPY)
