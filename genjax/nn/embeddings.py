"""Fixed embeddings: sinusoids of time, and sines and cosines of 2-D position.

Both are the transformer's sinusoids (Vaswani et al. 2017, section 3.5), with the orders of halves that the diffusion
transformers were trained with: `[cos | sin]` for time, `[sin | cos]` for position, width axis first.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

__all__ = ["sincos_1d", "sincos_2d_centre_crop", "timestep_embedding"]


def timestep_embedding(t: Float[Array, " B"], width: int, *, max_period: float = 1e4) -> Float[Array, "B width"]:
    """Sinusoids `[cos(t w_i) | sin(t w_i)]`, w_i = max_period^(-i / (width/2)), in float32 (DDPM; SD3 feeds 1000 t).

    `t` is in the network's units (0 to 1000 in SD3); `width` is even.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_1d(positions: Num[np.ndarray, "*shape"], width: int) -> Float[np.ndarray, "*shape width"]:
    """`[sin(p w_i) | cos(p w_i)]`, w_i = 10000^(-i / (width/2)): shape positions.shape + (width,), float64."""
    frequencies = 1e4 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def sincos_2d_centre_crop(
    height: int, width: int, channels: int, *, max_size: int, base_size: int
) -> Float[np.ndarray, "tokens channels"]:
    """SD3's position embedding of a `height` x `width` grid of tokens, float32 (height * width, channels), row-major.

    Positions are those of the centre of a `max_size` x `max_size` grid whose unit is scaled so that `base_size` tokens
    span `base_size` units: p = i * base_size / max_size (SD3 paper, "positional encodings for varying aspect ratios").
    The first half of the channels encodes the column, the second the row.

    Raises ValueError when the grid does not fit into `max_size`, and when `channels` is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"a position embedding has a multiple of 4 channels, not {channels}")
    if max(height, width) > max_size:
        raise ValueError(f"a grid of {height} x {width} tokens does not fit into pos_embed_max_size = {max_size}")
    top, left = (max_size - height) // 2, (max_size - width) // 2
    rows = (top + np.arange(height)) * (base_size / max_size)
    columns = (left + np.arange(width)) * (base_size / max_size)
    row_embedding = np.broadcast_to(sincos_1d(rows, channels // 2)[:, None], (height, width, channels // 2))
    column_embedding = np.broadcast_to(sincos_1d(columns, channels // 2)[None], (height, width, channels // 2))
    grid = np.concatenate([column_embedding, row_embedding], axis=-1)
    return grid.reshape(height * width, channels).astype(np.float32)
