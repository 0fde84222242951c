"""Laws of critics: one score per row, rows that do not see one another, and the projection of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.errors import InputError
from genjax.models.critics import DCGANCritic, MLPCritic, ResNetCritic

KINDS = {
    "mlp": MLPCritic(width=16, depth=2, num_classes=3),
    "dcgan": DCGANCritic(width=8, num_classes=3),
    "resnet": ResNetCritic(width=8, num_classes=3),
}
X = jax.random.normal(jax.random.key(0), (4, 8, 16, 2))
LABEL = jnp.array([0, 1, 2, 1])


@pytest.fixture(scope="module", params=KINDS)
def scored(request):
    """The model, its parameters moved off their zeros, and the function (params, x, label) -> scores."""
    model = KINDS[request.param]
    params = meta.unbox(jax.jit(model.init)(jax.random.key(1), X, LABEL))["params"]
    params = jax.tree.map(lambda p: p + 0.05 * np.random.default_rng(p.size).normal(size=p.shape), params)
    return model, params, jax.jit(lambda params, x, label: model.apply({"params": params}, x, label))


def test_a_critic_gives_one_float32_score_per_row(scored):
    _, params, apply = scored
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    for scores in (apply(params, X, LABEL), jax.eval_shape(apply, half, X.astype(jnp.bfloat16), LABEL)):
        assert scores.shape == (4,) and scores.dtype == jnp.float32


def test_no_row_sees_another(scored):
    _, params, apply = scored
    scores, others = apply(params, X, LABEL), apply(params, X.at[1:].set(0.3), LABEL.at[1:].set(0))
    np.testing.assert_allclose(others[0], scores[0], atol=1e-5)
    assert np.abs(others[1:] - scores[1:]).min() > 1e-4


def test_scores_depend_on_every_pixel(scored):
    _, params, apply = scored
    slopes = jax.jit(jax.grad(lambda x: apply(params, x, LABEL).sum()))(X)
    assert (slopes != 0).all()


def test_classes_add_the_inner_product_of_their_embedding_with_the_features(scored):
    """Equal embeddings leave no difference between classes, and the difference is linear in them."""
    _, params, apply = scored
    table = params["score"]["classes"]["embedding"]

    def with_table(embedding, label):
        changed = {**params, "score": {**params["score"], "classes": {"embedding": embedding}}}
        return apply(changed, X, label)

    other = (LABEL + 1) % 3
    equal = jnp.broadcast_to(table[0], table.shape)
    np.testing.assert_allclose(with_table(equal, LABEL), with_table(equal, other), atol=1e-5)
    psi = with_table(0 * table, LABEL)
    once, twice = with_table(table, LABEL) - psi, with_table(2 * table, LABEL) - psi
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3, atol=1e-5)
    assert np.abs(with_table(table, other) - with_table(table, LABEL)).min() > 1e-4


@pytest.mark.parametrize("side, levels", [(8, 1), (28, 2), (64, 4)])
@pytest.mark.parametrize("kind", [DCGANCritic, ResNetCritic])
def test_larger_images_have_more_levels(kind, side, levels):
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    params = meta.unbox(jax.eval_shape(kind(width=8).init, jax.random.key(0), x))["params"]
    assert sum(name.startswith("down_") for name in params) == levels


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_taken_where_there_are_classes_and_only_there(name):
    with pytest.raises(InputError, match="3 classes needs a label"):
        jax.eval_shape(KINDS[name].init, jax.random.key(0), X)
    with pytest.raises(InputError, match="takes no label"):
        jax.eval_shape(KINDS[name].clone(num_classes=0).init, jax.random.key(0), X, LABEL)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(InputError, match="9 x 9 pixels"):
        jax.eval_shape(DCGANCritic().init, jax.random.key(0), jnp.zeros((1, 9, 9, 1)))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (MLPCritic(depth=-1), "depth of MLPCritic is at least 0, not -1"),
        (DCGANCritic(width=0), "width of DCGANCritic is at least 1, not 0"),
        (ResNetCritic(blocks_per_level=0), "blocks_per_level of ResNetCritic is at least 1, not 0"),
    ],
)
def test_sizes_that_are_none_are_refused(model, sentence):
    with pytest.raises(InputError, match=sentence):
        jax.eval_shape(model.init, jax.random.key(0), X)
