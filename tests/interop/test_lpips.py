"""Laws of LPIPS' weights: every leaf of the network from one array of the file, under any of its names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.errors import InputError
from genjax.interop.lpips import from_torch
from genjax.models.lpips import LPIPS

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Numbers of VGG16's convolutions in torchvision's `features`."""
SLICES = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
"""To which slice of lpips' trunk each belongs."""
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def torchvision():
    rng, arrays = np.random.default_rng(0), {}
    for number, into, out in zip(CONVOLUTIONS, WIDTHS[:-1], WIDTHS[1:], strict=True):
        arrays[f"features.{number}.weight"] = rng.random((out, into, 3, 3), np.float32)
        arrays[f"features.{number}.bias"] = rng.random(out, np.float32)
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        arrays[f"lin{stage}.model.1.weight"] = rng.random((1, width, 1, 1), np.float32)
    return arrays


def renamed(arrays, prefix=""):
    for number, piece in zip(CONVOLUTIONS, SLICES, strict=True):
        arrays = {
            name.replace(f"features.{number}.", f"net.slice{piece}.{number}."): array for name, array in arrays.items()
        }
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def test_every_leaf_of_the_network_is_filled(torchvision):
    image = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(lambda: meta.unbox(LPIPS().init(jax.random.key(0), image, image))["params"])
    params = from_torch(torchvision | {"classifier.0.weight": np.zeros(3)})
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_array_equal(
        params["trunk"]["conv3_1"]["kernel"][2, 0, 5, 7], torchvision["features.10.weight"][7, 5, 2, 0]
    )


def test_all_names_that_are_around_give_the_same(torchvision):
    plain = from_torch(torchvision)
    package = renamed(torchvision) | {"lins.0.model.1.weight": np.zeros(1), "scaling_layer.shift": np.zeros(3)}
    taming = renamed(torchvision, "loss.perceptual_loss.") | {"encoder.conv_in.weight": np.zeros(1)}
    for other in (package, taming):
        jax.tree.map(np.testing.assert_array_equal, from_torch(other), plain)


def test_what_does_not_fit_is_refused_by_name(torchvision):
    lacking = {name: array for name, array in torchvision.items() if name != "lin3.model.1.weight"}
    with pytest.raises(InputError, match="lin3.model.1.weight"):
        from_torch(lacking)
    with pytest.raises(InputError, match="features.99.weight"):
        from_torch(torchvision | {"features.99.weight": np.zeros(1)})
    with pytest.raises(InputError, match="features.0.bias"):
        from_torch(torchvision | {"features.0.bias": np.zeros(3, np.float32)})
