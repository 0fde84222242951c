"""Optimisers as configs: optax's, with warm-up, decay and clipping by global norm.

update = clip -> rule (Adam, momentum, sign, orthogonalised momentum, ...) -> decay of matrices -> - learning rate
"""

import abc
from dataclasses import dataclass
from typing import Literal, Protocol

import jax
import optax

from genjax.errors import InputError

__all__ = ["SGD", "Adafactor", "Adam", "AdamW", "Lion", "Muon", "Optimizer", "Scheduled"]


class Optimizer(Protocol):
    """What a player moves by."""

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate by update, for a run of `steps` updates."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The gradient transformation of a run of `steps` updates."""


@dataclass(frozen=True, kw_only=True)
class Scheduled(abc.ABC):
    """What every optimiser here has: a peak learning rate, its course, and clipping."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 1000
    """Steps of linear warm-up from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    final_fraction: float = 0.0
    """Learning rate at the last step, as a fraction of the peak."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None for no clipping."""

    def __post_init__(self):
        kind = type(self).__name__
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate of {kind} is positive, not {self.learning_rate}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm of {kind} is positive or None, not {self.clip_norm}")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps of {kind} is 0 or more, not {self.warmup_steps}")

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate by update, for a run of `steps` updates."""
        warmup = min(self.warmup_steps, steps)
        rest = max(steps - warmup, 1)
        end = self.final_fraction * self.learning_rate
        after = {
            "constant": optax.constant_schedule(self.learning_rate),
            "linear": optax.linear_schedule(self.learning_rate, end, rest),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, rest, alpha=self.final_fraction),
        }[self.decay]
        # The first update is one warm-up step up, not one at a learning rate of 0.
        ramp = optax.linear_schedule(self.learning_rate / max(warmup, 1), self.learning_rate, max(warmup - 1, 1))
        return optax.join_schedules([ramp, after], [warmup])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The gradient transformation of a run of `steps` updates."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        return optax.chain(*clip, self.rule(self.schedule(steps)))

    @abc.abstractmethod
    def rule(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """optax's transformation, learning rate and sign included."""


@dataclass(frozen=True, kw_only=True)
class Adam(Scheduled):
    """Adam (Kingma and Ba 2015)."""

    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def rule(self, learning_rate):
        return optax.adam(learning_rate, self.b1, self.b2, self.eps)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: float = 0.0
    """Decoupled weight decay, times the learning rate; not applied to vectors (biases, norm scales)."""

    def rule(self, learning_rate):
        return optax.adamw(learning_rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_matrices)


@dataclass(frozen=True, kw_only=True)
class SGD(Scheduled):
    """Stochastic gradient descent with momentum (Polyak 1964; Sutskever et al. 2013)."""

    momentum: float = 0.0
    """Decay of the running gradient; 0 for none."""
    nesterov: bool = False
    """Nesterov's form of it."""

    def rule(self, learning_rate):
        return optax.sgd(learning_rate, self.momentum or None, self.nesterov)


@dataclass(frozen=True, kw_only=True)
class Lion(Scheduled):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675); wants a third of AdamW's rate."""

    b1: float = 0.9
    """Weight of the momentum in what is signed."""
    b2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the learning rate; not applied to vectors."""

    def rule(self, learning_rate):
        return optax.lion(learning_rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=_matrices)


@dataclass(frozen=True, kw_only=True)
class Muon(Scheduled):
    """Orthogonalised momentum for matrices (Jordan et al. 2024), AdamW with Nesterov's momentum for everything else.

    Stacks of matrices, as scanned layers have them, are orthogonalised one by one; embeddings go to AdamW.
    """

    momentum: float = 0.95
    """Decay of the running gradient of matrices."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, times the learning rate."""
    adam_b1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_b2: float = 0.999
    """Decay of AdamW's second moment."""

    def rule(self, learning_rate):
        return optax.contrib.muon(
            learning_rate,
            beta=self.momentum,
            weight_decay=self.weight_decay,
            adam_b1=self.adam_b1,
            adam_b2=self.adam_b2,
            muon_weight_dimension_numbers=_orthogonalised,
        )


@dataclass(frozen=True, kw_only=True)
class Adafactor(Scheduled):
    """Second moments kept as rows and columns (Shazeer and Stern 2018): memory below one copy of the parameters."""

    weight_decay: float = 0.0
    """Weight decay of an update, not times the learning rate (as optax has it); not applied to vectors."""

    def rule(self, learning_rate):
        return optax.adafactor(
            learning_rate,
            multiply_by_parameter_scale=False,
            clipping_threshold=None,
            weight_decay_rate=self.weight_decay or None,
            weight_decay_mask=_matrices,
        )


def _matrices(params):
    """True for the leaves that decay: by name, as the scan over layers gives every leaf one more axis."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)


def _orthogonalised(params):
    """Which axes of a leaf make its matrix: the last two of a kernel; None where AdamW moves it."""

    def matrix(path, leaf):
        if path[-1].key != "kernel" or leaf.ndim < 2:
            return None
        # The kernel of a convolution (height, width, in, out) is one matrix of all its inputs.
        inputs = tuple(range(leaf.ndim - 4, leaf.ndim - 1)) if leaf.ndim >= 4 else leaf.ndim - 2
        return optax.contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)
