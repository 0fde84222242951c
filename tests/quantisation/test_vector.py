"""Laws of codebooks: nearest entries, k-means, the optimum of a Gaussian, gradients that go where they should."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.vector import VQ, AverageVQ, moments, nearest, split_unused

RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32)
KEY = jax.random.key(0)
LLOYD_MAX = {2: 0.3634, 4: 0.1175, 8: 0.03454}
"""Mean square errors of the best quantisers of N(0, 1) with K entries (Max 1960, table I)."""


def distortion(z, codebook) -> float:
    return float(jnp.mean(jnp.sum((z - codebook[nearest(z, codebook)]) ** 2, axis=-1)))


def test_no_entry_is_nearer_than_the_nearest():
    codebook = jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32)
    distances = np.linalg.norm(np.float64(Z)[:, None] - np.float64(codebook), axis=-1)
    np.testing.assert_array_equal(nearest(Z, codebook), distances.argmin(axis=1))


def test_the_first_of_equally_near_entries_is_chosen():
    assert nearest(jnp.zeros((1, 2)), jnp.array([[3.0, 0], [0, 1], [1, 0], [0, 1]]))[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", LLOYD_MAX)
def test_running_means_reach_the_best_distortion_of_a_gaussian(size):
    """From a codebook that is small beside the data: splitting spreads it."""
    quantiser = AverageVQ(size=size, width=1, decay=0.9)
    _, variables = quantiser.init(KEY)

    def step(variables, key):
        said = quantiser(jax.random.normal(key, (4096, 1)), {}, variables)
        return quantiser.advance(variables, said.statistics), None

    variables, _ = jax.jit(lambda variables, keys: jax.lax.scan(step, variables, keys))(
        variables, jax.random.split(KEY, 1000)
    )
    reached = distortion(jax.random.normal(jax.random.key(1), (400_000, 1)), variables["codebook"])
    assert abs(reached / LLOYD_MAX[size] - 1) < 0.02


def test_a_codebook_learned_by_gradients_reaches_it_too():
    quantiser = VQ(size=4, width=1)
    params = {"codebook": jnp.array([[-0.2], [-0.1], [0.1], [0.2]])}

    def step(params, key):
        z = jax.random.normal(key, (4096, 1))
        gradient = jax.grad(lambda params: jnp.mean(quantiser(z, params, {}).losses["codebook"]))(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), None

    params, _ = jax.jit(lambda params, keys: jax.lax.scan(step, params, keys))(params, jax.random.split(KEY, 600))
    reached = distortion(jax.random.normal(jax.random.key(1), (400_000, 1)), params["codebook"])
    assert abs(reached / LLOYD_MAX[4] - 1) < 0.02


def test_without_memory_a_step_is_one_of_k_means():
    """Lloyd 1957: entries move to the means of what chose them, and no step raises the distortion."""
    quantiser = AverageVQ(size=6, width=3, decay=0.0, unused=0.0)
    far = jnp.full((1, 3), 50.0)
    variables = quantiser.init(KEY)[1] | {"codebook": jnp.concatenate([Z[:5], far])}
    figures = []
    for _ in range(5):
        codebook = np.asarray(variables["codebook"])
        chosen = np.asarray(nearest(Z, codebook))
        figures.append(distortion(Z, codebook))
        variables = quantiser.advance(variables, quantiser(Z, {}, variables).statistics)
        means = [np.asarray(Z)[chosen == k].mean(axis=0) for k in range(5)]
        np.testing.assert_allclose(variables["codebook"][:5], means, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(variables["codebook"][5], far[0])  # nobody came
    assert (
        all(after <= before for before, after in zip(figures, figures[1:], strict=False)) and figures[-1] < figures[0]
    )


def test_an_entry_is_the_mean_of_what_chose_it_weighted_by_age():
    quantiser = AverageVQ(size=2, width=1, decay=0.75, unused=0.0)
    variables = quantiser.init(KEY)[1] | {"codebook": jnp.array([[-1.0], [1.0]])}
    for z in ([[2.0], [4.0]], [[1.5]]):
        variables = quantiser.advance(variables, quantiser(jnp.array(z), {}, variables).statistics)
    np.testing.assert_allclose(variables["codebook"][1], (0.75 * 6 + 1.5) / (0.75 * 2 + 1), rtol=1e-6)
    np.testing.assert_array_equal(variables["codebook"][0], -1)  # nobody came


@pytest.mark.parametrize(("width", "mean"), [(3, 5.0), (1, 20.0)])
def test_the_number_of_entries_in_use_doubles_at_least_with_every_step(width, mean):
    quantiser = AverageVQ(size=16, width=width)
    _, variables = quantiser.init(KEY)
    z = mean + jnp.asarray(RNG.normal(size=(4000, width)), jnp.float32)  # far from where the codebook starts
    for used in (2, 4, 8, 16):
        variables = quantiser.advance(variables, quantiser(z, {}, variables).statistics)
        assert len(np.unique(quantiser(z, {}, variables).ids)) >= used


def test_splitting_halves_what_a_used_entry_has_and_moves_apart_by_its_deviation():
    counts, sums, squares = moments(Z, jnp.where(jnp.arange(64) < 63, 2, 1), 4)
    split_counts, split_sums, split_squares = split_unused(counts, sums, squares, below=0.05)
    np.testing.assert_array_equal(split_counts, [31.5, 1, 31.5, 0])  # two are unused, and one alone can be split
    np.testing.assert_allclose(split_sums[0] + split_sums[2], sums[2], rtol=1e-5)
    apart = np.abs(split_sums[0] - split_sums[2]) / 31.5
    np.testing.assert_allclose(apart, np.std(Z[:63], axis=0), rtol=1e-5)
    np.testing.assert_allclose(split_squares[0] + split_squares[2], squares[2], rtol=1e-5)
    for entry in (0, 2):
        variance = split_squares[entry] / 31.5 - (split_sums[entry] / 31.5) ** 2
        np.testing.assert_allclose(variance, 0.75 * np.var(Z[:63], axis=0), rtol=1e-4)
    np.testing.assert_array_equal(split_sums[1], sums[1])


def test_a_codebook_that_is_used_is_left_alone():
    given = moments(Z, jnp.arange(64) % 4, 4)
    for before, after in zip(given, split_unused(*given, below=0.05), strict=True):
        np.testing.assert_array_equal(before, after)


def test_statistics_of_micro_batches_add_up_to_those_of_the_batch():
    quantiser = AverageVQ(size=8, width=3)
    variables = quantiser.init(KEY)[1] | {"codebook": Z[:8]}
    whole = quantiser(Z, {}, variables).statistics
    parts = [quantiser(z, {}, variables).statistics for z in jnp.split(Z, [10, 11, 40])]
    summed = jax.tree.map(lambda *sums: sum(sums), *parts)
    np.testing.assert_array_equal(summed["counts"], whole["counts"])
    for name in ("sums", "squares"):
        np.testing.assert_allclose(summed[name], whole[name], rtol=1e-5, atol=1e-5)


def test_the_codebook_loss_moves_entries_to_the_mean_of_their_vectors_and_nothing_else():
    quantiser = VQ(size=5, width=3, codebook_weight=0.7, commitment=0.3)
    params = {"codebook": Z[:5]}
    ids = np.asarray(quantiser(Z, params, {}).ids)

    def loss(params, z):
        return {name: jnp.sum(loss) for name, loss in quantiser(z, params, {}).losses.items()}

    by_params, by_z = (jax.jacrev(loss, argnums)(params, Z) for argnums in (0, 1))
    members = [np.float64(Z)[ids == k] for k in range(5)]
    expected = [2 * 0.7 / 3 * (len(z) * np.float64(Z[k]) - z.sum(0)) for k, z in enumerate(members)]
    np.testing.assert_allclose(by_params["codebook"]["codebook"], expected, atol=1e-5)
    assert not np.any(by_z["codebook"]) and not np.any(by_params["commitment"]["codebook"])
    np.testing.assert_allclose(by_z["commitment"], 2 * 0.3 / 3 * (Z - Z[ids]), atol=1e-6)


def test_the_commitment_of_running_means_is_the_mean_square_of_what_is_left():
    quantiser = AverageVQ(size=5, width=3, commitment=0.4)
    variables = quantiser.init(KEY)[1] | {"codebook": Z[:5]}
    left = Z - Z[nearest(Z, Z[:5])]
    commitment = quantiser(Z, {}, variables).losses["commitment"]
    np.testing.assert_allclose(commitment, 0.4 * jnp.mean(left**2, axis=-1), rtol=1e-5)


def test_an_entry_that_nobody_chooses_stays_for_ever():
    quantiser = AverageVQ(size=2, width=1, decay=0.1, unused=0.0)
    variables = quantiser.init(KEY)[1] | {"codebook": jnp.array([[-1.0], [1.0]])}
    variables = quantiser.advance(variables, quantiser(jnp.array([[-2.0], [1.0]]), {}, variables).statistics)
    for _ in range(60):
        variables = quantiser.advance(variables, quantiser(jnp.array([[1.0]]), {}, variables).statistics)
    np.testing.assert_allclose(variables["codebook"], [[-2.0], [1.0]], rtol=1e-4)


@pytest.mark.parametrize("quantiser", [VQ(size=6, width=3), AverageVQ(size=6, width=3)])
@pytest.mark.parametrize("normalised", [False, True])
def test_codes_of_ids_are_the_quantised_vectors_and_their_own_codes(quantiser, normalised):
    quantiser = replace(quantiser, normalised=normalised)
    params, variables = quantiser.init(KEY)
    said = quantiser(Z, params, variables)
    codes = quantiser.codes(said.ids, params, variables)
    np.testing.assert_array_equal(said.z_q, codes)
    np.testing.assert_array_equal(quantiser(codes, params, variables).ids, said.ids)


@pytest.mark.parametrize("kind", [VQ, AverageVQ])
def test_a_normalised_quantiser_sees_directions_alone(kind):
    quantiser = kind(size=6, width=3, normalised=True)
    params, variables = quantiser.init(KEY)
    said = quantiser(Z, params, variables)
    longer = quantiser(7 * Z, params, variables)
    np.testing.assert_array_equal(said.ids, longer.ids)
    np.testing.assert_allclose(jnp.linalg.norm(said.z_q, axis=-1), 1, rtol=1e-6)
    after = quantiser.advance(variables, said.statistics)
    if after:
        np.testing.assert_allclose(jnp.linalg.norm(after["codebook"], axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: VQ(size=1),
        lambda: AverageVQ(width=0),
        lambda: AverageVQ(decay=1.0),
        lambda: AverageVQ(unused=-0.1),
    ],
)
def test_what_no_codebook_has_is_refused(wrong):
    with pytest.raises(InputError, match=r"VQ"):
        wrong()


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [True, False])
def test_codes_losses_and_gradients_are_those_of_diffusers(legacy):
    torch = pytest.importorskip("torch")
    from diffusers.models.autoencoders.vae import VectorQuantizer

    theirs = VectorQuantizer(8, 3, beta=0.25, remap=None, legacy=legacy, sane_index_shape=True)
    weights = (0.25, 1.0) if legacy else (1.0, 0.25)
    ours = VQ(size=8, width=3, codebook_weight=weights[0], commitment=weights[1])
    image = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    target = RNG.normal(size=image.shape).astype(np.float32)
    z = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
    with torch.no_grad():
        theirs.embedding.weight.copy_(torch.tensor(np.array(Z[:8])))
    z_q, loss, (_, _, ids) = theirs(z)
    (loss + ((z_q - torch.tensor(target.transpose(0, 3, 1, 2))) ** 2).mean()).backward()

    def total(params, z):
        said = ours(z, params, {})
        return sum(jnp.mean(loss) for loss in said.losses.values()) + jnp.mean((said.z_q - target) ** 2), said

    (_, said), (by_params, by_z) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)({"codebook": Z[:8]}, image)
    np.testing.assert_array_equal(said.ids, ids.numpy().reshape(said.ids.shape))
    np.testing.assert_allclose(said.z_q, z_q.detach().numpy().transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(by_params["codebook"], theirs.embedding.weight.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(by_z, z.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6)
