"""Laws of the Gaussian posterior: moments of what is drawn, the divergence against an integral, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from genjax.errors import InputError
from genjax.quantisation.posterior import Posterior

MEAN, LOG_VARIANCE = np.array([0.7, -1.2]), np.array([-0.5, 0.8])
MOMENTS = jnp.asarray(np.concatenate([MEAN, LOG_VARIANCE]), jnp.float32)


def test_codes_have_the_moments_that_the_encoder_names():
    keys = jax.random.split(jax.random.key(0), 40_000)
    codes = np.asarray(Posterior().draw(jnp.broadcast_to(MOMENTS, (40_000, 4)), keys))
    deviation = np.exp(LOG_VARIANCE / 2)
    assert (np.abs(codes.mean(axis=0) - MEAN) < 4 * deviation / 200).all()
    np.testing.assert_allclose(codes.std(axis=0), deviation, rtol=4 / np.sqrt(80_000))
    np.testing.assert_array_equal(Posterior().mean(MOMENTS), MEAN.astype(np.float32))


def test_the_divergence_is_the_integral_of_the_log_ratio_of_densities():
    own = [stats.norm(m, np.exp(v / 2)) for m, v in zip(MEAN, LOG_VARIANCE, strict=True)]
    exact = sum(integrate.quad(lambda x, p=p: p.pdf(x) * (p.logpdf(x) - stats.norm.logpdf(x)), -12, 12)[0] for p in own)
    np.testing.assert_allclose(Posterior().divergence(MOMENTS), exact, rtol=1e-6)
    assert Posterior().divergence(jnp.zeros(4)) == 0


def test_a_code_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(1), 3)
    moments = jnp.broadcast_to(MOMENTS, (3, 2, 4))
    codes = Posterior().draw(moments, keys)
    np.testing.assert_array_equal(Posterior().draw(moments[1:], keys[1:]), codes[1:])
    assert len(np.unique(codes)) == codes.size


def test_log_variances_stay_within_thirty_below_and_twenty_above():
    far = jnp.array([0.0, 0.0, -1000.0, 1000.0])
    np.testing.assert_array_equal(Posterior().log_variance(far), [-30, 20])
    assert np.isfinite(Posterior().divergence(far))


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match="weight of Posterior"):
        Posterior(weight=-1e-6)
