"""One tiny system, compiled once."""

import jax
import numpy as np
import pytest

from genjax.diffusion.grids import ShiftedTimes
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.mmdit import MMDiT
from genjax.parallel.rules import unbox
from genjax.tasks.conditions import Text
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.task import Train


@pytest.fixture(scope="session")
def task():
    return Denoising(
        model=MMDiT(channels=1, depth=1, num_heads=2, head_dim=8, pos_embed_max_size=8, pos_embed_base_size=4),
        condition=Text(ByteEncoder(max_length=24, width=16, pooled_width=16)),
        sampler=Sampler(steps=3, guidance=2.0, grid=ShiftedTimes(1.0)),
        train=Train(batch_size=4),
    )


@pytest.fixture(scope="session")
def params(parts):
    return parts.trained


@pytest.fixture(scope="session")
def parts(task):
    """Random everywhere: zero-initialised gates would hide the blocks."""
    shapes = unbox(jax.eval_shape(task.init, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
