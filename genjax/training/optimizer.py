"""Optimisers as configs: AdamW with warm-up, decay and clipping by global norm."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from genjax.errors import InputError


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 1000
    """Steps of linear warm-up from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    final_fraction: float = 0.0
    """Learning rate at the last step, as a fraction of the peak."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the learning rate; not applied to vectors (biases, norm scales)."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None for no clipping."""

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise InputError(f"optimizer.learning_rate is positive, not {self.learning_rate}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"optimizer.clip_norm is positive or None, not {self.clip_norm}")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps is 0 or more, not {self.warmup_steps}")

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
        adamw = optax.adamw(
            self.schedule(steps), self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_matrices
        )
        return optax.chain(*clip, adamw)


def _matrices(params):
    """True for the leaves that decay: by name, as the scan over layers gives every leaf one more axis."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
