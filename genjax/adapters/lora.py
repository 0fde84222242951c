"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv:2106.09685): a few numbers that change a network held still.

    W' = W + s A B                       A (in, r) random, B (r, out) zero: at first nothing changes     equation 3
    s  = alpha / r,  or  alpha / sqrt(r)                      rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732)
    W' = m (W + s A B) / |W + s A B|     each column by its own norm, m its first one: DoRA (Liu et al. 2024,
                                         arXiv:2402.09353, equation 5; the norm counts as constant: section 4.3)

An adapter is a tree of its own beside the tree of a network's parameters, and `adapted` gives parameters of the same
names and shapes. So any network is adapted without knowing it, what is trained is the adapter alone, and merging for
good is the same function. W' is computed in float32 and has the type of W.
"""

import fnmatch
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key, PyTree

from genjax.errors import InputError

__all__ = ["LoRA"]

KERNEL = ".kernel"


@dataclass(frozen=True)
class LoRA:
    """Which matrices are adapted, and how.

    Kernels are (in, out), or (layers, in, out) where a network stacks its layers. Raises InputError for a rank or alpha
    that is not positive.
    """

    rank: int = 8
    """r, of each adapted matrix."""
    alpha: float | None = None
    """Of the scale; None: as the rank, which makes the scale 1."""
    targets: tuple[str, ...] = ("*",)
    """Patterns of the dotted names of adapted layers, with * for anything: *.attn.qkv, blocks.*."""
    fused: tuple[str, ...] = ("*qkv",)
    """Patterns of layers that hold three matrices side by side: each of the three is adapted for itself."""
    rank_stabilised: bool = False
    """Whether the scale is alpha / sqrt(r)."""
    decomposed: bool = False
    """Whether the norm of each column is learned for itself (DoRA)."""
    start: Literal["uniform", "gaussian"] = "uniform"
    """A's first values: of variance 1 / (3 in), as loralib and peft have them, or 1 / r^2, as diffusers' scripts."""

    def __post_init__(self):
        if self.rank < 1 or not (self.alpha is None or self.alpha > 0):
            raise InputError(f"rank and alpha of LoRA are positive, not {self.rank} and {self.alpha}")

    @property
    def scale(self) -> float:
        """s."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def layers(self, params: Mapping) -> list[str]:
        """The dotted names of the adapted layers. Raises InputError where a pattern fits none."""
        names = [name.removesuffix(KERNEL) for name in flatten_dict(params, sep=".") if name.endswith(KERNEL)]
        for pattern in self.targets:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise InputError(f"no layer is called {pattern!r}; there are {', '.join(sorted(names)[:12])}, ...")
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.targets)]

    def init(self, key: Key[Array, ""], params: Mapping) -> dict[str, PyTree[Array]]:
        """A fresh adapter: nested as the parameters, a layer's being {"a", "b"}, and "magnitude" where decomposed.

        A layer's first values depend on its name alone, not on which others are adapted. Of parameters in boxes that
        name their axes its leaves are in such boxes too. Raises InputError where a pattern fits no layer, a kernel is
        a convolution's, or a fused one cannot be divided by three.
        """
        flat = flatten_dict(params, sep=".")
        adapter = {}
        for name in self.layers(params):
            leaf = flat[name + KERNEL]
            kernel, axes = meta.unbox(leaf), getattr(leaf, "names", None)
            self._check(name, kernel, axes)
            for part, (value, own) in self._fresh(
                jax.random.fold_in(key, zlib.crc32(name.encode())), name, kernel, axes
            ).items():
                adapter[f"{name}.{part}"] = leaf.replace(value=value, names=own) if axes else value
        return unflatten_dict(adapter, sep=".")

    def adapted(self, params: Mapping, adapter: Mapping) -> dict[str, PyTree[Array]]:
        """The parameters with W' for W, of the same types; those that are not adapted are the same arrays.

        Raises InputError where the adapter has a layer that the parameters lack, or another rank.
        """
        flat = flatten_dict(params, sep=".")
        parts = flatten_dict(adapter, sep=".")
        for name in {name.rpartition(".")[0] for name in parts}:
            if name + KERNEL not in flat:
                raise InputError(f"the adapter has a layer {name}, and the parameters have none")
            if parts[f"{name}.a"].shape[-1] != self.rank:
                raise InputError(
                    f"the adapter of {name} has rank {parts[f'{name}.a'].shape[-1]}, and rank is {self.rank}"
                )
            kernel = flat[name + KERNEL]
            changed = kernel.astype(jnp.float32) + self.scale * self._product(
                name, parts[f"{name}.a"], parts[f"{name}.b"]
            )
            if f"{name}.magnitude" in parts:
                norm = jax.lax.stop_gradient(_norm(changed))
                changed = changed * (parts[f"{name}.magnitude"] / norm)[..., None, :]
            flat[name + KERNEL] = changed.astype(kernel.dtype)
        return unflatten_dict(flat, sep=".")

    def _fresh(self, key: Array, name: str, kernel: Array, axes: tuple | None) -> dict[str, tuple[Array, tuple]]:
        """(Values, names of the axes) by part."""
        *stack, into, out = kernel.shape
        *outer, in_axis, out_axis = axes or (None,) * kernel.ndim
        pieces = (3,) if self._is_fused(name) else ()
        shape = (*stack, *pieces, into, self.rank)
        if self.start == "uniform":
            bound = into**-0.5
            a = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        else:
            a = jax.random.normal(key, shape) / self.rank
        outer_axes = (*outer, *(None for _ in pieces))
        b = jnp.zeros((*stack, *pieces, self.rank, out // 3 if pieces else out))
        fresh = {"a": (a, (*outer_axes, in_axis, None)), "b": (b, (*outer_axes, None, out_axis))}
        if self.decomposed:
            fresh["magnitude"] = _norm(kernel.astype(jnp.float32)), (*outer, out_axis)
        return fresh

    def _product(self, name: str, a: Array, b: Array) -> Array:
        """A B in float32, of three matrices side by side where they are fused."""
        product = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32))
        if not self._is_fused(name):
            return product
        return jnp.moveaxis(product, -3, -2).reshape(*product.shape[:-3], product.shape[-2], -1)

    def _is_fused(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.fused)

    def _check(self, name: str, kernel: Array, axes: tuple | None) -> None:
        stacked = kernel.ndim - (axes is not None and axes[0] == "layers")
        if stacked != 2 and not (axes is None and kernel.ndim == 3):
            raise InputError(f"{name} is no linear layer: its kernel has shape {kernel.shape}; targets leave it out")
        if self._is_fused(name) and kernel.shape[-1] % 3:
            raise InputError(f"{name} is to be three matrices side by side, and gives {kernel.shape[-1]} numbers")


def _norm(kernel: Array) -> Array:
    """Of each column."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=-2))
