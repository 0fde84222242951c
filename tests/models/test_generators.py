"""Laws of generators: shapes and ranges, rows that do not see one another, classes that matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.errors import InputError
from genjax.models.generators import DCGANGenerator, MLPGenerator, ResNetGenerator

KINDS = {
    "mlp": MLPGenerator(width=16, depth=2, num_classes=3),
    "dcgan": DCGANGenerator(image_shape=(8, 8, 1), width=8, groups=4, num_classes=3),
    "resnet": ResNetGenerator(image_shape=(16, 8, 3), width=8, num_classes=3),
}
SHAPES = {"mlp": (2,), "dcgan": (8, 8, 1), "resnet": (16, 8, 3)}
Z = jax.random.normal(jax.random.key(0), (4, 5))
LABEL = jnp.array([0, 1, 2, 1])


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    """Its examples, and the function (z, label) -> examples, with parameters moved off their zeros."""
    model = KINDS[request.param]
    params = meta.unbox(jax.jit(model.init)(jax.random.key(1), Z, LABEL))["params"]
    params = jax.tree.map(lambda p: p + 0.05 * np.random.default_rng(p.size).normal(size=p.shape), params)
    apply = jax.jit(lambda z, label: model.apply({"params": params}, z, label))
    return request.param, apply, apply(Z, LABEL)


def test_a_latent_becomes_an_example_of_the_shape_asked_for_and_images_lie_in_their_range(made):
    name, _, examples = made
    assert examples.shape == (4, *SHAPES[name])
    assert np.isfinite(examples).all() and np.std(examples) > 1e-3
    if name != "mlp":
        assert np.abs(examples).max() <= 1


def test_no_row_sees_another(made):
    _, apply, examples = made
    others = apply(Z.at[1:].set(7.0), LABEL.at[1:].set(0))
    np.testing.assert_allclose(others[0], examples[0], atol=1e-6)
    assert np.abs(others[1] - examples[1]).max() > 1e-3


def test_the_latent_and_the_class_both_matter(made):
    _, apply, examples = made
    same = apply(jnp.broadcast_to(Z[0], Z.shape), LABEL)
    assert np.abs(same[1] - same[0]).max() > 1e-3
    np.testing.assert_allclose(same[1], same[3], atol=1e-6)
    assert np.abs(same[1] - examples[1]).max() > 1e-3


def test_every_parameter_of_a_dcgan_moves_its_images():
    model = DCGANGenerator(image_shape=(8, 8, 1), width=8, groups=4)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), Z))["params"]
    target = jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    gradients = jax.jit(jax.grad(lambda p: jnp.vdot(target, model.apply({"params": p}, Z))))(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("side, levels", [(8, 1), (28, 2), (64, 4)])
@pytest.mark.parametrize("kind", [DCGANGenerator, ResNetGenerator])
def test_larger_images_have_more_levels(kind, side, levels):
    model = kind(image_shape=(side, side, 3), width=8)
    params = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), Z))["params"]
    assert sum(name.startswith("up_") for name in params) == levels
    assert jax.eval_shape(model.apply, {"params": params}, Z).shape == (4, side, side, 3)


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_taken_where_there_are_classes_and_only_there(name):
    with pytest.raises(InputError, match="3 classes needs a label"):
        jax.eval_shape(KINDS[name].init, jax.random.key(0), Z)
    with pytest.raises(InputError, match="takes no label"):
        jax.eval_shape(KINDS[name].clone(num_classes=0).init, jax.random.key(0), Z, LABEL)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="9 x 8 pixels"):
        jax.eval_shape(DCGANGenerator(image_shape=(9, 8, 1)).init, jax.random.key(0), Z)
    with pytest.raises(InputError, match="12 channels cannot be divided into 8 groups"):
        jax.eval_shape(DCGANGenerator(width=12).init, jax.random.key(0), Z)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (MLPGenerator(width=0), "width of MLPGenerator is at least 1, not 0"),
        (MLPGenerator(features=0), "features of MLPGenerator is at least 1, not 0"),
        (MLPGenerator(depth=-1), "depth of MLPGenerator is at least 0, not -1"),
        (DCGANGenerator(groups=0), "groups of DCGANGenerator is at least 1, not 0"),
        (ResNetGenerator(blocks_per_level=0), "blocks_per_level of ResNetGenerator is at least 1, not 0"),
        (ResNetGenerator(max_width=0), "max_width of ResNetGenerator is at least 1, not 0"),
    ],
)
def test_sizes_that_are_none_are_refused(model, sentence):
    with pytest.raises(InputError, match=sentence):
        jax.eval_shape(model.init, jax.random.key(0), Z)
