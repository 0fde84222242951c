"""Laws of spaces: a sample comes back to what the data holds."""

import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.errors import InputError
from genjax.tasks.spaces import Latents, Pixels, Space

X = np.random.default_rng(0).normal(size=(2, 3, 4, 1)).astype(np.float32)


def test_latents_come_back_and_have_the_moments_that_were_asked_for():
    space = Latents(scale=1 / X.std(), shift=X.mean())
    np.testing.assert_allclose(space.to_image(space.to_x_0(X)), X, atol=1e-6)
    assert space.to_x_0(X).mean() == pytest.approx(0, abs=1e-6)
    assert space.to_x_0(X).std() == pytest.approx(1, rel=1e-6)


def test_latents_are_as_they_are_by_default_and_are_not_clipped():
    np.testing.assert_array_equal(Latents().to_image(Latents().to_x_0(X)), X)
    assert np.abs(X).max() > 1


def test_pixels_are_noised_as_they_are_and_samples_of_them_clipped():
    np.testing.assert_array_equal(Pixels().to_x_0(X), X)
    np.testing.assert_array_equal(Pixels().to_image(X), np.clip(X, -1, 1))


def test_a_scale_is_positive():
    with pytest.raises(InputError, match="scale of Latents is positive, not 0"):
        Latents(scale=0.0)


def test_the_kinds_of_spaces_are_these():
    assert {"Pixels", "Latents"} <= kinds(Space).keys()
