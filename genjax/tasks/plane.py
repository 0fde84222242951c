"""Points of the plane as a picture: what is drawn, over what is real."""

import numpy as np
from jaxtyping import Float

__all__ = ["scatter"]


def scatter(
    points: Float[np.ndarray, "N 2"], beneath: Float[np.ndarray, "M 2"] | None = None, *, side: int = 512
) -> Float[np.ndarray, "side side 3"]:
    """A square picture in [-1, 1] of points (blue) over others (grey), on the scale of the latter."""
    # matplotlib takes a second to import: only those who draw wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=side)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    reach = 1.1 * float(np.abs(points if beneath is None else beneath).max())
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    if beneath is not None:
        axes.scatter(*beneath.T, s=0.2, c="0.75", linewidths=0)
    axes.scatter(*points.T, s=0.3, c="tab:blue", linewidths=0)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return (pixels / 127.5 - 1).astype(np.float32)
