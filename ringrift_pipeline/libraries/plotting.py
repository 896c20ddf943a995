"""What of matplotlib charts are made of, with its own settings or those of the user's folder."""

from __future__ import annotations

from ringrift_pipeline.libraries.current_folder import unread

with unread("matplotlibrc", "matplotlib", "~/.config/matplotlib/matplotlibrc, or MATPLOTLIBRC"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

__all__ = ["Axes", "Figure", "FigureCanvasAgg", "MaxNLocator", "rc_context"]
