"""An adaptive solver on the device: Dormand and Prince's method of order 5(4), each sample with steps of its own.

Seven slopes give two solutions, of orders 5 and 4, whose difference estimates the error of a step:

    error = root mean square over a sample's numbers of |x_5 - x_4| / (atol + rtol max(|x|, |x+|))

A step is taken where error <= 1, and the next one is 0.9 error^(-1/5) times as long, between 0.2 and 10 times. The
seventh slope is the first of the next step (Dormand and Prince 1980; Hairer, Norsett and Wanner 1993, section II.4,
which is also where the first step is from). A batch goes on until its last sample has arrived; those that have, stay.
No sample's steps depend on another, as they do where one error is computed for a whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from genjax.diffusion.process import Process, velocity
from genjax.diffusion.solvers.integrate import Denoiser
from genjax.errors import InputError

__all__ = ["DormandPrince", "Solution"]

STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Row i: what slopes 1 to i + 1 give to the point where slope i + 2 is taken; the last is the solution of order 5."""

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
"""At which share of the step each is taken."""

ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""The solution of order 5 less that of order 4, from all seven slopes."""


class Solution(NamedTuple):
    """Where an adaptive solver arrived, and what it took, for each sample."""

    x: PyTree[Float[Array, "B ..."]]
    t: Float[Array, " B"]
    """Where the sample is: the end, where it has arrived."""
    evaluations: Int[Array, " B"]
    """Evaluations of the slope that this sample needed (NFE); a batch costs those of its slowest."""
    arrived: Bool[Array, " B"]
    """Whether max_steps were enough."""


class _State(NamedTuple):
    x: PyTree
    t: Array
    h: Array
    slope: PyTree
    steps: Array


@dataclass(frozen=True)
class DormandPrince:
    """Dormand-Prince 5(4) with error control for each sample."""

    rtol: float = 1e-5
    """Error of a step that is allowed, relative to the sample."""
    atol: float = 1e-5
    """Error of a step that is allowed, absolute."""
    max_steps: int = 1000
    """Steps, refused ones counted, after which a sample is left where it is."""

    def __post_init__(self):
        if not (self.rtol >= 0 and self.atol > 0):
            raise InputError(
                f"rtol of DormandPrince is at least 0 and atol of it positive, not {self.rtol} and {self.atol}"
            )
        if self.max_steps < 1:
            raise InputError(f"max_steps of DormandPrince is at least 1, not {self.max_steps}")

    def sample(
        self,
        process: Process,
        denoiser: Denoiser,
        x: Float[Array, "B *shape"],
        *,
        first: float = 1.0,
        last: float = 0.0,
    ) -> Solution:
        """x carried from time `first` to `last` along the probability-flow ODE; either may be the later one.

        A process whose velocity is infinite at the data, as that of VP, has to end at a small time.
        """

        def slope(x, t):
            denoised = denoiser(x, t)
            return velocity(process, denoised.x_0, denoised.eps, t)

        return self.solve(slope, x, first, last)

    def solve(
        self,
        slope: Callable[[PyTree[Array], Array], PyTree[Array]],
        x: PyTree[Float[Array, "B ..."]],
        first: float | Float[Array, ""],
        last: float | Float[Array, ""],
    ) -> Solution:
        """x(last) of dx/dt = slope(x, t (B,)), x(first) = x; x is an array or a tree of arrays with rows of samples."""
        leaves = jax.tree.leaves(x)
        real = jnp.result_type(*leaves, jnp.float32)
        t = jnp.full(len(leaves[0]), first, real)
        last = jnp.asarray(last, real)
        start = slope(x, t)
        h = self._first_step(slope, x, start, t, last)

        def going(state):
            return (state.t != last) & (state.steps < self.max_steps)

        def step(state):
            active = going(state)
            final = jnp.abs(last - state.t) <= jnp.abs(state.h)
            h = jnp.where(final, last - state.t, state.h)
            slopes = [state.slope]
            for row, node in zip(STAGES, NODES, strict=True):
                point = _moved(state.x, h, slopes, row)
                slopes.append(slope(point, jnp.where(active, state.t + h * node, state.t)))
            error = self._size(_moved(None, h, slopes, ERROR), state.x, point)
            error = jnp.where(jnp.isfinite(error), error, jnp.inf)
            accepted = active & (error <= 1)
            t = jnp.where(final, last, state.t + h)
            return _State(
                x=_where(accepted, point, state.x),
                t=jnp.where(accepted, t, state.t),
                h=jnp.where(active, h * jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.2, 10.0), state.h),
                slope=_where(accepted, slopes[-1], state.slope),
                steps=state.steps + active,
            )

        state = _State(x, t, h, start, jnp.zeros(len(t), jnp.int32))
        state = jax.lax.while_loop(lambda state: going(state).any(), step, state)
        return Solution(state.x, state.t, 2 + 6 * state.steps, state.t == last)

    def _first_step(self, slope, x, start, t, last):
        """Hairer's: such that an Euler step would change the sample by 1 %, and a fifth-order error would be 1 %."""
        way = last - t
        size, steepness = self._size(x, x, x), self._size(start, x, x)
        small = jnp.where(jnp.minimum(size, steepness) < 1e-5, 1e-6, 0.01 * size / jnp.maximum(steepness, 1e-30))
        small = jnp.minimum(small, jnp.abs(way))
        moved = slope(_moved(x, small * jnp.sign(way), [start], (1.0,)), t + small * jnp.sign(way))
        change = self._size(jax.tree.map(jnp.subtract, moved, start), x, x) / small
        steepest = jnp.maximum(steepness, change)
        long = jnp.where(
            steepest <= 1e-15, jnp.maximum(1e-6, small * 1e-3), (0.01 / jnp.maximum(steepest, 1e-30)) ** 0.2
        )
        return jnp.minimum(jnp.minimum(100 * small, long), jnp.abs(way)) * jnp.sign(way)

    def _size(self, change, before, after):
        """Root mean square over a sample's numbers of the change in units of what is allowed, (B,)."""

        def squares(change, before, after):
            allowed = self.atol + self.rtol * jnp.maximum(jnp.abs(before), jnp.abs(after))
            return jnp.sum((change / allowed).reshape(len(change), -1) ** 2, axis=1)

        leaves = jax.tree.leaves(jax.tree.map(squares, change, before, after))
        numbers = sum(np.prod(leaf.shape[1:], dtype=int) for leaf in jax.tree.leaves(before))
        return jnp.sqrt(sum(leaves) / numbers)


def _moved(x, h, slopes, row):
    """x + h times the sum of the slopes in the proportions of `row`; without x, the sum alone."""

    def one(*leaves):
        total = sum(c * slope for c, slope in zip(row, leaves[-len(row) :], strict=True) if c)
        return _rows(h, total) * total + (leaves[0] if len(leaves) > len(row) else 0)

    used = slopes[: len(row)]
    return jax.tree.map(one, *([x] if x is not None else []), *used)


def _rows(number, leaf):
    """A number per sample, with the axes that make it broadcast against a leaf."""
    return number.reshape(number.shape + (1,) * (leaf.ndim - 1))


def _where(rows, new, old):
    return jax.tree.map(lambda new, old: jnp.where(_rows(rows, new), new, old), new, old)
