"""Laws of mean velocities, on a Gaussian whose flow is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import Velocity
from genjax.diffusion.process import RectifiedFlow, like, noised, velocity
from genjax.diffusion.processes import Trigonometric
from genjax.diffusion.targets import Gaussian
from genjax.diffusion.times import LogitNormal, Uniform
from genjax.diffusion.weightings import MinSNR, on_output
from genjax.errors import InputError
from genjax.keys import row_keys

TARGET = Gaussian((0.2, -0.4), (0.5, 0.8))
T = np.linspace(0.1, 0.9, 7)


def network_of(flow, process):
    """What a perfect network says, of what MeanVelocity shows it: how far a flow carries x from t, by the time."""

    def network(x, t):
        t, length = t[:, 0], t[:, 1]
        away = jnp.where(length == 0, 1e-4, length)  # a short way instead of none
        return (x - flow(process, x, t, t - away)) / like(away, x)

    return network


def rows(count):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, count, 2)), row_keys(0, jnp.arange(count))


@pytest.mark.parametrize("process", [RectifiedFlow(), Trigonometric()], ids=lambda p: type(p).__name__)
def test_the_target_is_unbiased_so_the_mean_velocity_of_a_flow_has_no_gradient(process, x64):
    """Of the loss over many pairs, with respect to a scale of the network's word, at the truth: none within error."""
    count = 40_000
    (z, eps), keys = rows(count)
    x_0 = np.asarray(TARGET.mean()) + np.sqrt(np.diag(TARGET.covariance())) * z
    t = np.random.default_rng(1).uniform(0.05, 0.95, count)
    exact = network_of(TARGET.carried, process)
    prediction = MeanVelocity(ends=Uniform(), instantaneous=0.0, power=0.0)

    @jax.jit
    def slopes(x_0, eps, t):
        def loss(scale):
            def network(x, t):
                return exact(x, t) * scale[:, None]

            return denoising_loss(network, process, prediction, x_0, eps, t, keys=keys)

        return jax.jvp(loss, (jnp.ones(count),), (jnp.ones(count),))[1]

    slope = np.asarray(slopes(x_0, eps, t))
    assert abs(slope.mean()) < 4 * slope.std() / count**0.5
    assert slope.std() / count**0.5 < 0.02


@pytest.mark.slow
def test_of_one_point_of_data_the_exact_mean_velocity_has_no_loss(x64):
    """There is one path to it from each noise, so that the target is the truth itself, row by row."""
    point = jnp.broadcast_to(jnp.array([0.3, -0.7]), (7, 2))
    eps, keys = rows(7)[0][1], rows(7)[1]

    def network(x, t):
        return (x - point) / t[:, :1]  # straight, so that every mean is the velocity

    loss = denoising_loss(network, RectifiedFlow(), MeanVelocity(), point, eps, jnp.asarray(T), keys=keys)
    np.testing.assert_allclose(loss, np.zeros(7), atol=1e-25)

    def on_a_circle(x, t):
        """x = cos(pi t / 2) point + sin(pi t / 2) eps, at t and at t - length."""
        angle, before = jnp.pi / 2 * t[:, :1], jnp.pi / 2 * (t[:, :1] - t[:, 1:])
        noise = (x - jnp.cos(angle) * point) / jnp.sin(angle)
        way = (jnp.cos(angle) - jnp.cos(before)) * point + (jnp.sin(angle) - jnp.sin(before)) * noise
        return way / t[:, 1:]

    prediction = MeanVelocity(instantaneous=0.0)
    loss = denoising_loss(on_a_circle, Trigonometric(), prediction, point, eps, jnp.asarray(T), keys=keys)
    np.testing.assert_allclose(loss, np.zeros(7), atol=1e-20)


@pytest.mark.slow
def test_without_intervals_and_normalisation_it_is_flow_matching(x_0_and_eps):
    x_0, eps = x_0_and_eps
    t, keys = jnp.asarray(T, jnp.float32), row_keys(0, jnp.arange(7))

    def network(x, t):
        return jnp.sin(x) * like(t.reshape(7, -1)[:, 0], x)

    prediction = MeanVelocity(instantaneous=1.0, power=0.0)
    later, _ = prediction.interval(RectifiedFlow(), t, keys)
    loss = denoising_loss(network, RectifiedFlow(), prediction, x_0, eps, t, keys=keys)
    plain = denoising_loss(network, RectifiedFlow(), Velocity(), x_0, eps, later)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)


def test_the_value_is_the_mean_square_and_the_gradient_that_of_the_normalised_one(x_0_and_eps):
    """Geng et al. 2025, equation 22: the gradient of e / (e + c)^p with the denominator held still."""
    (x_0, eps), t, keys = x_0_and_eps, jnp.asarray(T, jnp.float32), row_keys(0, jnp.arange(7))

    def losses(scale, power, offset=0.01):
        def network(x, t):
            return scale[:, None, None] * x

        prediction = MeanVelocity(power=power, instantaneous=1.0, offset=offset)
        return denoising_loss(network, RectifiedFlow(), prediction, x_0, eps, t, keys=keys)

    ones = jnp.ones(7)
    plain, slope = jax.jvp(functools.partial(losses, power=0.0), (ones,), (ones,))
    later, _ = MeanVelocity(instantaneous=1.0).interval(RectifiedFlow(), t, keys)
    x_t = noised(RectifiedFlow(), x_0, eps, later)
    np.testing.assert_allclose(slope, (2 * x_t * (x_t - eps + x_0)).sum(axis=(1, 2)), rtol=1e-4)
    for power, offset in ((0.5, 0.01), (1.0, 0.01), (1.0, 2.0)):
        value, moved = jax.jvp(functools.partial(losses, power=power, offset=offset), (ones,), (ones,))
        np.testing.assert_allclose(value, plain, rtol=1e-6)
        np.testing.assert_allclose(moved, slope / (6 * plain + offset) ** power, rtol=1e-5)


@pytest.mark.slow
def test_an_interval_is_of_two_times_in_their_order_and_of_one_in_a_share_of_rows(x64):
    """Of two independent draws the later has the square of their distribution function."""
    count, keys = 20_000, row_keys(0, jnp.arange(20_000))
    density = LogitNormal(-0.4, 1.0)
    u = np.random.default_rng(0).uniform(size=count)
    t, end = MeanVelocity().interval(RectifiedFlow(), density.quantile(jnp.asarray(u)), keys)
    assert (end <= t).all() and (end > 0).all() and (t < 1).all()
    assert np.mean(t == end) == pytest.approx(0.75, abs=0.01)
    for share in (0.1, 0.5, 0.9):
        assert np.mean(t < density.quantile(jnp.float64(share))) == pytest.approx(share**2, abs=0.015)
    apart = t != end
    assert np.mean(end[apart] < density.quantile(jnp.float64(0.5))) == pytest.approx(0.75, abs=0.02)
    _, end = MeanVelocity(ends=Uniform(), instantaneous=0.0).interval(RectifiedFlow(), jnp.ones(count), keys)
    assert np.mean(end < 0.2) == pytest.approx(0.2, abs=0.015)


def test_a_network_sees_the_time_and_the_length_of_the_way(x_0_and_eps):
    x_t = x_0_and_eps[0]
    t, end = jnp.asarray(T, jnp.float32), jnp.asarray(T / 2, jnp.float32)
    seen = MeanVelocity().inputs(RectifiedFlow(), x_t, t, end)
    np.testing.assert_allclose(seen.t, np.stack([T, T / 2], axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(MeanVelocity().inputs(RectifiedFlow(), x_t, t).t[:, 1], np.zeros(7))


def test_the_pair_it_stands_for_has_its_velocity(process, x64, x_0_and_eps):
    x_t, u = (jnp.float64(x) for x in x_0_and_eps)
    x_0, eps, _ = MeanVelocity().denoised(process, u, x_t, T)
    np.testing.assert_allclose(velocity(process, x_0, eps, T), u, rtol=1e-9)
    np.testing.assert_allclose(noised(process, x_0, eps, T), x_t, rtol=1e-9)


def test_without_keys_the_loss_is_that_of_the_velocity_at_the_given_times(x_0_and_eps):
    (x_0, eps), t = x_0_and_eps, jnp.asarray(T, jnp.float32)

    def network(x, t):
        return jnp.sin(x) * like(t.reshape(7, -1)[:, 0], x)

    losses = [denoising_loss(network, RectifiedFlow(), p, x_0, eps, t) for p in (MeanVelocity(), Velocity())]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_weighting_multiplies_the_value_and_the_gradient_at_the_time_of_the_loss(x_0_and_eps, power):
    (x_0, eps), t, keys = x_0_and_eps, jnp.asarray(T, jnp.float32), row_keys(0, jnp.arange(7))
    prediction = MeanVelocity(power=power, instantaneous=0.0)
    later, _ = prediction.interval(RectifiedFlow(), t, keys)
    assert (later != t).any()
    weight = on_output(MinSNR(0.5), RectifiedFlow(), prediction, later)

    def losses(scale, *weighting):
        def network(x, t):
            return scale[:, None, None] * x * like(t.sum(axis=1), x)

        return denoising_loss(network, RectifiedFlow(), prediction, x_0, eps, t, *weighting, keys=keys)

    ones = jnp.ones(7)
    plain = jax.jvp(losses, (ones,), (ones,))
    weighted = jax.jvp(lambda scale: losses(scale, MinSNR(0.5)), (ones,), (ones,))
    for one, other in zip(weighted, plain, strict=True):
        np.testing.assert_allclose(one, weight * other, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"instantaneous": 1.5}, "instantaneous of MeanVelocity is a share, from 0 to 1, not 1.5"),
        ({"power": -1.0}, "power of MeanVelocity is 0 or more, not -1.0"),
        ({"offset": 0.0}, "offset of MeanVelocity is positive, not 0.0"),
    ],
)
def test_what_is_no_mean_velocity_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        MeanVelocity(**fields)
