"""Points of the plane as a picture: what is drawn, over what is real."""

import numpy as np
from jaxtyping import Float

__all__ = ["MARGIN", "scatter"]

MARGIN = 1.12
"""Half the side of a picture, in units of the larger half side of the box around the points that set its scale."""


def scatter(
    points: Float[np.ndarray, "N 2"], beneath: Float[np.ndarray, "M 2"] | None = None, *, side: int = 768
) -> Float[np.ndarray, "side side 3"]:
    """A square picture in [-1, 1] of points (small, blue) over others (larger, pale orange).

    The latter, or else the points themselves, say where its middle is and how far it reaches; what lies beyond that is
    left out.
    """
    # matplotlib takes a second to import: only those who draw wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=side)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    shown = points if beneath is None else beneath
    low, high = shown.min(axis=0), shown.max(axis=0)
    (x, y), reach = (low + high) / 2, MARGIN * max(float((high - low).max()) / 2, 1e-6)
    axes.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach), aspect="equal")
    axes.axis("off")
    if beneath is not None:
        axes.scatter(*beneath.T, s=0.5, c="#ffd09b", linewidths=0)
    axes.scatter(*points.T, s=0.12, c="#1f5fbf", alpha=0.7, linewidths=0)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return (pixels / 127.5 - 1).astype(np.float32)
