"""Contrastive objectives: what belongs together is nearer than what does not.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4) in the symmetric form of CLIP (Radford et al. 2021,
arXiv:2103.00020, figure 3): with s_ij = <image_i, text_j> / temperature,

    L = 1/2 mean_i [ log sum_j exp(s_ij) - s_ii ] + 1/2 mean_i [ log sum_j exp(s_ji) - s_ii ]

which is log B where all similarities are equal. The loss couples the rows of a batch: all of them are negatives of one
another, and it must see the whole batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["info_nce"]


def info_nce(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    temperature: Float[Array, ""] | float,
    groups: Int[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """The symmetric InfoNCE loss of a batch of pairs, float32, in nats.

    Args:
        image: features of one side, unit vectors in CLIP.
        text: features of the other; row i belongs to row i of `image`.
        temperature: what similarities are divided by, above 0.
        groups: rows with the same number have the same caption (or are the same in another sense): they are no
            negatives of each other, and are left out of each other's sums. Without it every row is its own group.
    """
    similarities = jnp.matmul(image, text.T, preferred_element_type=jnp.float32) / temperature
    own = jnp.diagonal(similarities)
    if groups is not None:
        duplicates = (groups[:, None] == groups[None, :]) & ~jnp.eye(len(groups), dtype=bool)
        similarities = jnp.where(duplicates, -jnp.inf, similarities)
    to_text, to_image = (jax.nn.logsumexp(similarities, axis=axis) - own for axis in (1, 0))
    return (to_text.mean() + to_image.mean()) / 2
