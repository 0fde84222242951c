"""Where samples begin, in place of noise: image-to-image, inversion, and inpainting."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genjax.data import decode_whole
from genjax.errors import InputError

__all__ = ["Start", "kept_of", "picture_of"]


class Start(NamedTuple):
    """Where samples begin, in place of noise: at images (SDEdit, Meng et al. 2022, arXiv:2108.01073, section 3)."""

    images: Float[np.ndarray, "N H W C"]
    """One for each sample, or one for all (N = 1)."""
    strength: float
    """Share of the steps that are taken, in (0, 1]: 1 begins at the first time of the grid, and leaves the least."""
    inverted: bool = False
    """Whether the start is where the probability-flow ODE carries the image, and not the image with fresh noise (Song
    et al. 2021, arXiv:2010.02502, section 5.4). On its way there the network is told the null of the condition, or, if
    it was never trained on that, what is wanted."""

    kept: Float[np.ndarray, "N H W 1"] | None = None
    """1 where the image is kept as it is and 0 where it is drawn anew, one for each sample or one for all; None draws
    all anew. Between them the estimates are blended."""

    def steps(self, steps: int) -> int:
        """How many of the steps are taken. Raises InputError for a strength that is no share."""
        if not 0 < self.strength <= 1:
            raise InputError(f"strength is a share of the steps, above 0 and at most 1, not {self.strength:g}")
        return max(1, round(self.strength * steps))

    def times(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, " S"]:
        """Those of a whole grid that are left."""
        return times[len(times) - 1 - self.steps(len(times) - 1) :]


def picture_of(option: str, name: str, channels: int) -> Float[np.ndarray, "H W channels"]:
    """A picture in [-1, 1] from a file that an option names. Raises InputError where there is no such file."""
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{option} is a PNG, JPEG or WebP file, and there is none at {path}")
    return decode_whole(path.read_bytes(), str(path), channels=channels)


def kept_of(mask: Float[np.ndarray, "H W 1"]) -> Float[np.ndarray, "1 H W 1"]:
    """What is kept by a mask in [-1, 1], which is white where the image is drawn anew."""
    return (mask < 0).astype(np.float32)[None]
