"""Fixed embeddings: sinusoids of time, and sines and cosines of 2-D position.

Both are the transformer's sinusoids (Vaswani et al. 2017, section 3.5), with the orders of halves that the diffusion
transformers were trained with: `[cos | sin]` for time, `[sin | cos]` for position, width axis first.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from genjax.errors import InputError

__all__ = ["sincos_1d", "sincos_2d", "sincos_2d_centre_crop", "timestep_embedding"]


def timestep_embedding(
    t: Float[Array, " B"],
    width: int,
    *,
    max_period: float = 1e4,
    frequency_shift: int = 0,
    sines_first: bool = False,
) -> Float[Array, "B width"]:
    """Sinusoids `[cos(t w_i) | sin(t w_i)]`, w_i = max_period^(-i / (width/2 - frequency_shift)), in float32.

    `t` is in the network's units (0 to 1000 in SD3); `width` is even. ADM, DiT and SD3 have these defaults; DDPM (Ho et
    al. 2020) has its sines first and a shift of 1, with which the last period is max_period itself.

    Raises InputError where `width` is odd, and where the shift is negative or leaves no frequencies to divide by.
    """
    if width < 2 or width % 2:
        raise InputError(f"an embedding of time has an even number of channels, not {width}")
    half = width // 2
    if not 0 <= frequency_shift < half:
        raise InputError(
            f"frequency_shift lies in [0, {half}), for {half} frequencies of time, not at {frequency_shift}"
        )
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - frequency_shift))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    halves = [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(halves[::-1] if sines_first else halves, axis=-1)


def sincos_1d(positions: Num[np.ndarray, "*shape"], width: int) -> Float[np.ndarray, "*shape width"]:
    """`[sin(p w_i) | cos(p w_i)]`, w_i = 10000^(-i / (width/2)): shape positions.shape + (width,), float64."""
    frequencies = 1e4 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def sincos_2d(height: int, width: int, channels: int) -> Float[np.ndarray, "tokens channels"]:
    """DiT's position embedding of a `height` x `width` grid of tokens, float32 (height * width, channels), row-major.

    Positions are 0, 1, 2, ...; the first half of the channels encodes the column, the second the row (Peebles and Xie
    2022, after MAE). Raises ValueError when `channels` is not a multiple of 4.
    """
    return _grid(np.arange(height), np.arange(width), channels)


def sincos_2d_centre_crop(
    height: int, width: int, channels: int, *, max_size: int, base_size: int
) -> Float[np.ndarray, "tokens channels"]:
    """SD3's position embedding of a `height` x `width` grid of tokens, float32 (height * width, channels), row-major.

    Positions are those of the centre of a `max_size` x `max_size` grid whose unit is scaled so that `base_size` tokens
    span `base_size` units: p = i * base_size / max_size (SD3 paper, "positional encodings for varying aspect ratios").
    The first half of the channels encodes the column, the second the row.

    Raises ValueError when the grid does not fit into `max_size`, and when `channels` is not a multiple of 4.
    """
    if max(height, width) > max_size:
        raise ValueError(f"a grid of {height} x {width} tokens does not fit into pos_embed_max_size = {max_size}")
    top, left = (max_size - height) // 2, (max_size - width) // 2
    unit = base_size / max_size
    return _grid((top + np.arange(height)) * unit, (left + np.arange(width)) * unit, channels)


def _grid(rows: np.ndarray, columns: np.ndarray, channels: int) -> np.ndarray:
    if channels % 4:
        raise ValueError(f"a position embedding has a multiple of 4 channels, not {channels}")
    shape = (len(rows), len(columns), channels // 2)
    row_embedding = np.broadcast_to(sincos_1d(rows, channels // 2)[:, None], shape)
    column_embedding = np.broadcast_to(sincos_1d(columns, channels // 2)[None], shape)
    grid = np.concatenate([column_embedding, row_embedding], axis=-1)
    return grid.reshape(-1, channels).astype(np.float32)
