"""Vector quantisation: each vector becomes the nearest entry of a codebook.

(van den Oord et al. 2017, arXiv:1711.00937.)

    k = argmin |z - e_k|^2,    z_q = e_k,    loss = w |sg(z) - e_k|^2 + beta |z - sg(e_k)|^2     (equation 3 there)

with squares averaged over the D coordinates, w the codebook's weight and beta that of the commitment. Many programs
have beta on the other term (taming-transformers' `legacy=True`): that is codebook_weight 0.25 and commitment 1 here.

`VQ` learns its codebook by the gradient of the first term. `AverageVQ` has no first term: its entries are running means
of the vectors that chose them (appendix A.1), k-means by small batches. With n_k vectors of sum s_k in a step,

    N_k <- gamma N_k + (1 - gamma) n_k,    m_k <- gamma m_k + (1 - gamma) s_k,    e_k = m_k / N_k

An entry that nobody chooses would stay where it is for ever. Here it is put beside one that many choose, by half a
deviation of that one's vectors, and the two share its vectors from then on: the splitting of Linde, Buzo and Gray
(1980), which is also how the codebook starts: after log2 K steps its entries lie in the data. Unlike a restart at a
random vector of the batch it needs sums alone, so that it is the same for any split of the batch.

With `normalised`, vectors and entries have length 1 (Yu et al. 2021, arXiv:2110.04627, section 3.2): few coordinates
are enough then, and the nearest entry is that of the largest inner product.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.quantisation.quantiser import ESTIMATES, Estimate, Quantised, Vectors, direction, wide

__all__ = ["VQ", "AverageVQ", "moments", "nearest", "split_unused"]

Codebook = Float[Array, "K D"]

LEAST = 1e-6
"""Of vectors that an entry remembers; with fewer it stays where it is, before its sums underflow."""


def nearest(z: Vectors, codebook: Codebook) -> Int[Array, "*N"]:
    """The number of the entry at the smallest distance from each vector, the first of several.

    The product is of full precision on every device: rounded to bfloat16 it moves vectors to entries farther away.
    """
    products = jnp.einsum("...d,kd->...k", z, codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(codebook * codebook, axis=-1) - 2 * products, axis=-1)


def moments(
    z: Vectors, ids: Int[Array, "*N"], size: int
) -> tuple[Float[Array, " K"], Float[Array, "K D"], Float[Array, "K D"]]:
    """Of the vectors that chose each entry: how many, their sum, the sum of their squares; no gradient."""
    rows, ids = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), ids.reshape(-1)
    counts = jnp.zeros(size, z.dtype).at[ids].add(1)
    sums, squares = (jnp.zeros((size, z.shape[-1]), z.dtype).at[ids].add(x) for x in (rows, rows * rows))
    return counts, sums, squares


def split_unused(
    counts: Float[Array, " K"], sums: Float[Array, "K D"], squares: Float[Array, "K D"], *, below: float
) -> tuple[Float[Array, " K"], Float[Array, "K D"], Float[Array, "K D"]]:
    """Moments after entries used less than `below` times the mean have taken half the vectors of the most used ones.

    The i-th of the unused is paired with the i-th of the most used, as long as half of that one's vectors are enough.
    Of the pair one is moved up, one down, by half a standard deviation in each coordinate, with signs that depend on
    the place in the codebook alone. The sums of all three moments over all entries stay as they are, but for what the
    unused had.
    """
    size = len(counts)
    least = below * jnp.mean(counts)
    by_use = jnp.argsort(counts, stable=True)
    poor, rich = by_use, by_use[::-1]  # the i-th poorest takes from the i-th richest
    happens = (counts[poor] < least) & (counts[rich] > 2 * least)
    count = counts[rich] / 2
    mean = sums[rich] / jnp.maximum(counts[rich], 1e-12)[:, None]
    spread = jnp.maximum(squares[rich] / jnp.maximum(counts[rich], 1e-12)[:, None] - mean**2, 0)
    signs = jax.random.rademacher(jax.random.key(0), (size, sums.shape[-1]), sums.dtype)[poor]
    offset = signs * jnp.sqrt(spread) / 2
    # two halves of variance 3/4, apart by half a deviation to either side, have together what the whole had
    means = [mean + side * offset for side in (1, -1)]
    halves = [[count[:, None] * moment for moment in (centre, centre**2 + 0.75 * spread)] for centre in means]
    # entries that do not take part are written to a place beyond the last, which is dropped
    for whom, (first, second) in zip((poor, rich), halves, strict=True):
        at = jnp.where(happens, whom, size)
        counts = counts.at[at].set(count, mode="drop")
        sums = sums.at[at].set(first, mode="drop")
        squares = squares.at[at].set(second, mode="drop")
    return counts, sums, squares


@dataclass(frozen=True)
class VQ:
    """Codes of a codebook that is learned by gradients. Params: {"codebook": (size, width)}."""

    size: int = 1024
    """Entries of the codebook, K."""
    width: int = 256
    """Coordinates of an entry, D."""
    commitment: float = 0.25
    """Weight of what keeps vectors near their codes, beta."""
    codebook_weight: float = 1.0
    """Weight of what keeps codes near their vectors."""
    normalised: bool = False
    """Whether vectors and entries are brought to length 1."""
    estimate: Estimate = "straight_through"
    """The gradient through the choice."""

    def __post_init__(self):
        _check_sizes(self)

    @property
    def ids_per_position(self) -> int:
        """One."""
        return 1

    def init(self, key: Key[Array, ""]) -> tuple[dict[str, Codebook], dict[str, Array]]:
        """Entries uniform in [-1/K, 1/K], as in taming-transformers; normalised ones of random directions."""
        return {"codebook": _first_entries(self, key)}, {}

    def codebook(self, params: PyTree[Array]) -> Codebook:
        """The entries as they are compared, (size, width)."""
        return direction(params["codebook"]) if self.normalised else params["codebook"]

    def __call__(self, z: Vectors, params: PyTree[Array], variables: PyTree[Array]) -> Quantised:
        z = wide(z, self)
        z = direction(z) if self.normalised else z
        codebook = self.codebook(params)
        ids = nearest(jax.lax.stop_gradient(z), jax.lax.stop_gradient(codebook))
        code = codebook[ids]
        losses = {
            "codebook": self.codebook_weight * _mean_square(jax.lax.stop_gradient(z) - code),
            "commitment": self.commitment * _mean_square(z - jax.lax.stop_gradient(code)),
        }
        return Quantised(ESTIMATES[self.estimate](z, code), ids, losses)

    def codes(self, ids: Int[Array, "*N"], params: PyTree[Array], variables: PyTree[Array]) -> Vectors:
        return self.codebook(params)[ids]

    def advance(self, variables: PyTree[Array], statistics: PyTree[Array]) -> PyTree[Array]:
        return variables


@dataclass(frozen=True)
class AverageVQ:
    """Codes of a codebook of running means. Variables: counts (size,), sums and squares (size, width), codebook."""

    size: int = 1024
    """Entries of the codebook, K."""
    width: int = 256
    """Coordinates of an entry, D."""
    commitment: float = 0.25
    """Weight of what keeps vectors near their codes, beta."""
    decay: float = 0.99
    """Memory of the means, gamma."""
    unused: float = 0.05
    """An entry used less than this share of the mean use is split off another one; 0 for never."""
    normalised: bool = False
    """Whether vectors and entries are brought to length 1."""
    estimate: Estimate = "straight_through"
    """The gradient through the choice."""

    def __post_init__(self):
        _check_sizes(self)
        if not 0 <= self.decay < 1:
            raise InputError(f"decay of AverageVQ lies in [0, 1), not at {self.decay}")
        if not 0 <= self.unused < 1:
            raise InputError(f"unused of AverageVQ lies in [0, 1), not at {self.unused}")

    @property
    def ids_per_position(self) -> int:
        """One."""
        return 1

    def init(self, key: Key[Array, ""]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Entries as of VQ, and no memory of vectors yet."""
        codebook = _first_entries(self, key)
        nothing = jnp.zeros((self.size, self.width))
        return {}, {"codebook": codebook, "counts": jnp.zeros(self.size), "sums": nothing, "squares": nothing}

    def __call__(self, z: Vectors, params: PyTree[Array], variables: PyTree[Array]) -> Quantised:
        z = wide(z, self)
        z = direction(z) if self.normalised else z
        ids = nearest(jax.lax.stop_gradient(z), variables["codebook"])
        code = variables["codebook"][ids]
        counts, sums, squares = moments(z, ids, self.size)
        statistics = {"counts": counts, "sums": sums, "squares": squares}
        losses = {"commitment": self.commitment * _mean_square(z - code)}
        return Quantised(ESTIMATES[self.estimate](z, code), ids, losses, statistics)

    def codes(self, ids: Int[Array, "*N"], params: PyTree[Array], variables: PyTree[Array]) -> Vectors:
        return variables["codebook"][ids]

    def advance(self, variables: PyTree[Array], statistics: PyTree[Array]) -> PyTree[Array]:
        names = ("counts", "sums", "squares")
        kept = [self.decay * variables[name] + (1 - self.decay) * statistics[name] for name in names]
        if self.unused > 0:
            kept = split_unused(*kept, below=self.unused)
        counts, sums, squares = kept
        remembered = counts > LEAST
        entries = sums / jnp.where(remembered, counts, 1)[:, None]
        entries = direction(entries) if self.normalised else entries
        codebook = jnp.where(remembered[:, None], entries, variables["codebook"])
        return {"codebook": codebook, "counts": counts, "sums": sums, "squares": squares}


def _check_sizes(quantiser: VQ | AverageVQ) -> None:
    name = type(quantiser).__name__
    if quantiser.size < 2 or quantiser.width < 1:
        raise InputError(f"{name} has at least 2 entries of 1 coordinate, not {quantiser.size} of {quantiser.width}")


def _first_entries(quantiser: VQ | AverageVQ, key: Key[Array, ""]) -> Codebook:
    shape = (quantiser.size, quantiser.width)
    if quantiser.normalised:
        return direction(jax.random.normal(key, shape))
    return jax.random.uniform(key, shape, minval=-1 / quantiser.size, maxval=1 / quantiser.size)


def _mean_square(difference: Vectors) -> Float[Array, "*N"]:
    return jnp.mean(difference * difference, axis=-1)
