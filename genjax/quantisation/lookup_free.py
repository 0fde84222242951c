r"""Lookup-free quantisation: a code is the signs of the coordinates (Yu et al. 2023, arXiv:2310.05737, section 3.1).

    z_q = sign(z),    id = sum over i of 2^i [z_i > 0],    K = 2^D

A softmax over squared distances to all codes at inverse temperature 1 / tau factorises over the bits,

    p(c | z) ~ exp(-|z - c|^2 / tau) = product over i of sigmoid(4 z_i c_i / tau)

and two entropies of it are weighted: each vector is to be sure of its code, and all codes are to be used (equation 5),

    loss = w (E H(p(. | z)) - gamma H(E p(. | z))) + beta |z - sg(z_q)|^2

The mean inside the second entropy couples the positions of a batch. Its gradient is that of - sum over c of
log(pbar_c) E p_c, with pbar = E p held fixed; here pbar is a running mean of past steps, a variable, so that a
position's loss is its own and its gradient the same for any split of the batch. As pbar follows E p, the gradient is
that of the paper. The value of that term is a cross-entropy, never below the entropy.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.quantisation.quantiser import Quantised, Vectors, straight_through, wide

__all__ = ["LFQ"]

MOST_BITS = 14
"""The probabilities of all codes are computed for every position. (2^18 were published, in groups of bits.)"""


@dataclass(frozen=True)
class LFQ:
    """Codes of signs. Variables: {"use": (2^bits,)}, the running mean of the probabilities of codes."""

    bits: int = 10
    """Coordinates, of one bit each."""
    entropy_weight: float = 0.1
    """Weight of both entropies, w."""
    diversity: float = 1.0
    """Weight of the entropy of the mean beside the mean entropy, gamma."""
    temperature: float = 0.01
    """tau, of the softmax whose entropies these are."""
    commitment: float = 0.25
    """Weight of what keeps vectors near their signs, beta."""
    decay: float = 0.9
    """Memory of the mean of the probabilities."""

    def __post_init__(self):
        if not 1 <= self.bits <= MOST_BITS:
            raise InputError(f"bits of LFQ are 1 to {MOST_BITS}, not {self.bits}")
        if not self.temperature > 0:
            raise InputError(f"temperature of LFQ is positive, not {self.temperature}")
        if not 0 <= self.decay < 1:
            raise InputError(f"decay of LFQ lies in [0, 1), not at {self.decay}")

    @property
    def size(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return self.bits

    @property
    def ids_per_position(self) -> int:
        """One."""
        return 1

    def init(self, key: Key[Array, ""]) -> tuple[dict[str, Array], dict[str, Array]]:
        """As if all codes were used alike."""
        return {}, {"use": jnp.full(self.size, 1 / self.size)}

    def __call__(self, z: Vectors, params: PyTree[Array], variables: PyTree[Array]) -> Quantised:
        z = wide(z, self)
        code = jnp.where(z > 0, 1.0, -1.0).astype(z.dtype)
        ids = jnp.sum((z > 0) * self.place_values(), axis=-1)
        log_p = self.log_probabilities(z)
        p = jnp.exp(log_p)
        log_use = jnp.log(jnp.maximum(jax.lax.stop_gradient(variables["use"]), 1e-12))
        unsure = self.entropy(z)
        spread = -jnp.sum(p * log_use, axis=-1)
        losses = {
            "entropy": self.entropy_weight * (unsure - self.diversity * spread),
            "commitment": self.commitment * jnp.mean((z - code) ** 2, axis=-1),
        }
        fixed = jax.lax.stop_gradient(p).reshape(-1, self.size)
        statistics = {"probabilities": jnp.sum(fixed, axis=0), "positions": jnp.float32(len(fixed))}
        return Quantised(straight_through(z, code), ids, losses, statistics)

    def codes(self, ids: Int[Array, "*N"], params: PyTree[Array], variables: PyTree[Array]) -> Float[Array, "*N D"]:
        return 2.0 * (ids[..., None] // self.place_values() % 2) - 1

    def advance(self, variables: PyTree[Array], statistics: PyTree[Array]) -> PyTree[Array]:
        mean = statistics["probabilities"] / jnp.maximum(statistics["positions"], 1)
        return {"use": self.decay * variables["use"] + (1 - self.decay) * mean}

    def log_probabilities(self, z: Vectors) -> Float[Array, "*N K"]:
        """log p(c | z) of every code, in the order of ids."""
        on = self.codes(jnp.arange(self.size), {}, {}) > 0
        logits = 4 * z / self.temperature  # log sigmoid(l) = l + log sigmoid(-l)
        product = jnp.einsum("...d,kd->...k", logits, on.astype(z.dtype), precision=jax.lax.Precision.HIGHEST)
        return product + jnp.sum(jax.nn.log_sigmoid(-logits), axis=-1, keepdims=True)

    def entropy(self, z: Vectors) -> Float[Array, "*N"]:
        """H(p(. | z)) in nats: the sum of those of the bits."""
        logits = 4 * z / self.temperature
        on = jax.nn.sigmoid(logits)
        return jnp.sum(jax.nn.softplus(logits) - on * logits, axis=-1)

    def place_values(self) -> np.ndarray:
        """What each bit counts."""
        return 2 ** np.arange(self.bits, dtype=np.int32)
