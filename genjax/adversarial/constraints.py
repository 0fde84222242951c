"""Constraints: what keeps a critic's parameters where its slope is bounded.

A penalty asks the critic to be nearly 1-Lipschitz where it is looked at; a constraint makes it K-Lipschitz by its
parameters, in one of two ways: they are moved back after each update (`project`), or the critic runs with a transform
of them (`applied`), which may need a state that follows them (`initial`, `advance`). A task takes all four, keeps the
state among its `variables`, and hands `project` to the critic's optimiser through `projected_updates`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from genjax.adversarial import spectral
from genjax.errors import InputError

__all__ = ["Constraint", "SpectralNorm", "Unconstrained", "WeightClipping", "projected_updates"]


@runtime_checkable
class Constraint(Protocol):
    """What keeps a critic's slope bounded; all methods are pure."""

    def initial(self, params: Mapping[str, PyTree], key: Key[Array, ""]) -> dict[str, PyTree]:
        """The state that follows the parameters; {} where there is none."""

    def applied(self, params: Mapping[str, PyTree], state: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        """The parameters that the critic runs with, differentiable by `params`."""

    def advance(self, params: Mapping[str, PyTree], state: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The state after an update of the parameters."""

    def project(self, params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        """The parameters, moved back to where they are allowed; doing it twice is doing it once."""


@dataclass(frozen=True)
class Unconstrained:
    """Parameters as they are."""

    def initial(self, params: Mapping[str, PyTree], key: Key[Array, ""]) -> dict[str, PyTree]:
        return {}

    def applied(self, params: Mapping[str, PyTree], state: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        return params

    def advance(self, params: Mapping[str, PyTree], state: Mapping[str, PyTree]) -> dict[str, PyTree]:
        return {}

    def project(self, params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        return params


@dataclass(frozen=True)
class WeightClipping(Unconstrained):
    """Every parameter clipped to [-limit, limit] after each update (WGAN, Arjovsky et al. 2017, algorithm 1)."""

    limit: float = 0.01
    """Largest absolute value of a parameter."""

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise InputError(f"limit of clipped weights is above 0, not {self.limit}")

    def project(self, params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        return jax.tree.map(lambda p: jnp.clip(p, -self.limit, self.limit), params)


@dataclass(frozen=True)
class SpectralNorm:
    """The critic runs with kernels of spectral norm 1 (Miyato et al. 2018); its state are the singular vectors.

    See `genjax.adversarial.spectral`, also for what it does not bound.
    """

    def initial(self, params: Mapping[str, PyTree], key: Key[Array, ""]) -> dict[str, PyTree]:
        return spectral.initial_vectors(params, key)

    def applied(self, params: Mapping[str, PyTree], state: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        return spectral.normalise(params, state)

    def advance(self, params: Mapping[str, PyTree], state: Mapping[str, PyTree]) -> dict[str, PyTree]:
        return spectral.advance(params, state)

    def project(self, params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        return params


def projected_updates(project: Callable[[PyTree], PyTree]) -> optax.GradientTransformation:
    """The last link of an optax chain: changes updates so that `params + updates` is projected, up to rounding."""

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree) -> tuple[PyTree, optax.EmptyState]:
        moved = project(optax.apply_updates(params, updates))
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
