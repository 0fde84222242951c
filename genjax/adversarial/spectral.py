"""Spectral normalisation: every kernel divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

A linear map x W is |W|_2-Lipschitz, and a chain of maps is at most the product of its links; divided by their norms,
with 1-Lipschitz activations between, the chain is 1-Lipschitz. The norm is followed by power iteration, one step per
update (algorithm 1 there): with W of shape (in, out),

    v <- W u / |W u|,    u <- W^T v / |W^T v|,    sigma = v^T W u

and sigma is differentiated with u and v held fixed: d sigma / dW = v u^T.

Here it is a transform of a tree of parameters, so that no network needs to know of it. Kernels are the leaves named
`kernel` or `embedding` of at least two axes, reshaped to (the product of all but the last, last): for a convolution
(h * w * in, out). What it does not do:

- The norm of that matrix is not the Lipschitz constant of the convolution: that lies between it (one patch alone) and
  sqrt(h * w) times it (each pixel is in h * w patches).
- Sums like x + f(x) are not bounded: a residual block whose branch is 1-Lipschitz is 2-Lipschitz.
- A kernel of zeros has no direction to follow. It is left alone until it moves, and is then blown up to norm 1: do not
  combine this with layers that begin as zero.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

__all__ = [
    "Singular",
    "advance",
    "as_matrix",
    "direction",
    "initial_vectors",
    "is_kernel",
    "normalise",
    "power_iterate",
    "spectral_norm",
]

KERNELS = ("kernel", "embedding")
"""Names of the leaves that are normalised; biases and gains are not."""

FIRST_ITERATIONS = 16
"""Power iterations at the start, so that a critic's first scores are already those of nearly normalised kernels."""


class Singular(NamedTuple):
    """Estimates of the singular vectors and the value that belong to a kernel's largest singular value."""

    u: Float[Array, " out"]
    v: Float[Array, " rest"]
    sigma: Float[Array, ""]


def power_iterate(kernel: Float[Array, "*rest out"], u: Float[Array, " out"]) -> Singular:
    """One step of power iteration from `u`. Only sigma has a derivative, v u^T by the kernel.

    A kernel of zeros keeps its u, so that it can be followed once it has moved.
    """
    fixed = jax.lax.stop_gradient(as_matrix(kernel))
    v = direction(fixed @ u, otherwise=jnp.zeros(len(fixed), u.dtype))
    u = direction(fixed.T @ v, otherwise=u)
    return Singular(u, v, spectral_norm(kernel, u, v))


def spectral_norm(
    kernel: Float[Array, "*rest out"], u: Float[Array, " out"], v: Float[Array, " rest"]
) -> Float[Array, ""]:
    """v^T W u: the largest singular value, where u and v belong to it; never more than that."""
    return v @ as_matrix(kernel) @ u


def initial_vectors(params: Mapping[str, PyTree], key: Key[Array, ""]) -> dict[str, PyTree]:
    """{"u": (out,), "v": (rest,)} in the place of every kernel of `params`; other leaves have none.

    They begin as random directions and are led some iterations towards those of the largest singular value.
    """
    vectors = {}
    for i, (name, value) in enumerate(sorted(params.items())):
        own = jax.random.fold_in(key, i)
        if isinstance(value, Mapping):
            vectors[name] = initial_vectors(value, own)
        elif is_kernel(name, value):
            width = value.shape[-1]
            u = direction(jax.random.normal(own, (width,)), otherwise=jnp.ones(width))
            u = jax.lax.fori_loop(0, FIRST_ITERATIONS, lambda _, u, kernel=value: power_iterate(kernel, u).u, u)
            u, v, _ = power_iterate(value, u)
            vectors[name] = {"u": u, "v": v}
    return vectors


def advance(params: Mapping[str, PyTree], vectors: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The vectors after one more power iteration: call it once per update of `params`."""
    following = {}
    for name, value in vectors.items():
        if is_kernel(name, params[name]):
            u, v, _ = power_iterate(params[name], value["u"])
            following[name] = {"u": u, "v": v}
        else:
            following[name] = advance(params[name], value)
    return following


def normalise(params: Mapping[str, PyTree], vectors: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """`params` with every kernel that has vectors divided by its spectral norm; the rest as it is."""
    normalised = {}
    for name, value in params.items():
        if name not in vectors:
            normalised[name] = value
        elif is_kernel(name, value):
            sigma = spectral_norm(value, vectors[name]["u"], vectors[name]["v"])
            normalised[name] = value / jnp.where(sigma > 0, sigma, 1)
        else:
            normalised[name] = normalise(value, vectors[name])
    return normalised


def is_kernel(name: str, value: PyTree) -> bool:
    """Whether a parameter of this name is a matrix of a layer, or a stack of places of one."""
    return name in KERNELS and not isinstance(value, Mapping) and jnp.ndim(value) >= 2


def as_matrix(kernel: Float[Array, "*rest out"]) -> Float[Array, "inputs out"]:
    """The matrix of a kernel whose last axis is that of the outputs."""
    return kernel.reshape(-1, kernel.shape[-1])


def direction(x: Float[Array, " D"], *, otherwise: Float[Array, " D"]) -> Float[Array, " D"]:
    """x / |x|, or `otherwise` where x is zero."""
    norm = jnp.linalg.norm(x)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), otherwise)
