"""Laws of LeCam's regularisation: who pays, how much, and where the anchors go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial.lecam import LeCam
from genjax.errors import InputError

ANCHORS = {"real": jnp.float32(0.5), "fake": jnp.float32(-0.25)}


def test_only_scores_on_the_far_side_of_the_others_anchor_pay():
    """Rows: a real score above the drawn ones' mean by 1 pays 1; a drawn one below the real ones' by 2 pays 4."""
    real, fake = jnp.array([0.75, -0.5, -0.25]), jnp.array([0.6, -1.5, 0.5])
    np.testing.assert_allclose(LeCam(weight=3.0)(real, fake, ANCHORS), [3.0, 12.0, 0.0], rtol=1e-6)


def test_patches_are_averaged_after_the_square():
    real = jnp.array([[[0.75, 1.75]]])  # 1 and 2 above the anchor: (1 + 4) / 2
    np.testing.assert_allclose(LeCam(weight=1.0)(real, jnp.full((1, 1, 2), 9.0), ANCHORS), [2.5], rtol=1e-6)


def test_anchors_are_running_means_and_constants_to_gradients():
    lecam = LeCam(decay=0.75)
    anchors = lecam.initial()
    for mean in (4.0, 8.0):
        anchors = lecam.advance(anchors, {"real": jnp.float32(mean), "fake": jnp.float32(-mean)})
    assert float(anchors["real"]) == 0.75 * 1.0 + 0.25 * 8.0 == -float(anchors["fake"])
    slope = jax.grad(lambda anchors: LeCam(weight=1.0)(jnp.ones(2), -jnp.ones(2), anchors).sum())(ANCHORS)
    assert all(value == 0 for value in jax.tree.leaves(slope))


@pytest.mark.parametrize(("options", "said"), [({"weight": -1.0}, "weight"), ({"decay": 1.0}, "decay")])
def test_prices_and_memories_out_of_range_are_refused(options, said):
    with pytest.raises(InputError, match=f"{said} of LeCam"):
        LeCam(**options)
