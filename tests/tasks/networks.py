"""Networks of a line, for laws of systems that no network decides."""

import jax.numpy as jnp
from flax import linen as nn


class Silent(nn.Module):
    """Says `says` times what it sees, 0 when fresh, whatever it is told."""

    channels: int = 1

    @nn.compact
    def __call__(self, x_t, t, *condition):
        return self.param("says", nn.initializers.zeros, ()) * x_t


class Sided(nn.Module):
    """A classifier: log-odds of the first class, beside any other, are `slope` times the sum of all pixels."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x_t, t):
        slope = self.param("slope", nn.initializers.constant(0.1), ())
        odds = slope * x_t.sum(axis=(1, 2, 3))
        return jnp.pad(odds[:, None], ((0, 0), (0, self.num_classes - 1)))
