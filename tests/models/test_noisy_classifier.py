"""Laws of the classifier of noised images: it has no preference at first, and no image sees another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.parallel.rules import unbox

MODEL = NoisyClassifier(num_classes=5, widths=(8, 16), groups=4)
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 2)), jnp.float32)
T = jnp.array([0.1, 0.5, 0.9])


@pytest.fixture(scope="module")
def logits():
    """Of random weights, a function of (x, t), and of fresh ones at (X, T)."""
    fresh = unbox(jax.jit(MODEL.init)(jax.random.key(0), X, T))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    apply = jax.jit(MODEL.apply)
    return lambda x, t: apply(jax.tree.unflatten(tree, drawn), x, t), apply(fresh, X, T)


def test_a_fresh_network_has_no_preference(logits):
    np.testing.assert_array_equal(logits[1], np.zeros((3, 5)))


def test_the_class_of_an_image_depends_on_it_and_its_time_alone(logits):
    apply, _ = logits
    together = apply(X, T)
    np.testing.assert_allclose(apply(X[::-1], T[::-1]), together[::-1], rtol=1e-5, atol=1e-6)
    moved = apply(X, T.at[0].set(0.6))
    np.testing.assert_allclose(moved[1:], together[1:], rtol=1e-5, atol=1e-6)
    assert np.abs(moved[0] - together[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_classes": 0}, "num_classes of NoisyClassifier is at least 1, not 0"),
        ({"widths": ()}, "widths of NoisyClassifier are positive"),
        ({"groups": 3}, "8 channels cannot be divided into 3 groups"),
        ({"widths": (8, 8, 8, 8, 8)}, "cannot be halved"),
    ],
)
def test_impossible_sizes_are_refused(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        jax.eval_shape(MODEL.clone(**wrong).init, jax.random.key(0), X, T)
