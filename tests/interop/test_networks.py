"""Which networks files hold, and that all layouts hold the same, bit for bit."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import networks
from genjax.interop.networks import LAYOUTS, Network
from genjax.interop.weight_files import read_state_dict
from genjax.models.autoencoder import Autoencoder
from genjax.models.clip_text import CLIPText
from genjax.models.mmdit import MMDiT
from genjax.models.t5_encoder import T5Encoder

CLIP = dict(vocabulary=9, positions=6, width=64, depth=2, num_heads=1, mlp_width=8, end=8)
MODELS = {  # of heads of 64 where weights do not show them, and groups of 32
    "transformer": (
        MMDiT(channels=16, num_heads=1, head_dim=64, depth=2, dual_attention_layers=1, pos_embed_max_size=6,
              pos_embed_base_size=4),
        [(1, 4, 4, 16), (1,), (1, 5, 6), (1, 9)],
    ),
    "vae": (Autoencoder(widths=(32, 32), blocks=1, z_channels=16, moments=True), [(1, 4, 4, 3)]),
    "text_encoder": (CLIPText(**CLIP, activation="gelu"), [(1, 6)]),
    "text_encoder_2": (CLIPText(**CLIP, activation="gelu", projection=5), [(1, 6)]),
    "text_encoder_3": (
        T5Encoder(vocabulary=9, width=8, depth=2, num_heads=2, head_dim=3, mlp_width=7, buckets=8),
        [(1, 6)],
    ),
}  # fmt: skip
UNTOLD = {"remat", "attention_implementation"}


def sizes_of(model):
    fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    return {name: value for name, value in fields.items() if name not in UNTOLD | {"parent", "name"}}


@functools.cache
def weights(dtype=np.float32):
    """All parts, of parameters that are all different numbers."""
    found = {}
    rng = np.random.default_rng(0)
    for part, (model, shapes) in MODELS.items():
        kind = np.int32 if part.startswith("text") else np.float32
        abstract = jax.eval_shape(model.init, jax.random.key(0), *(jax.ShapeDtypeStruct(s, kind) for s in shapes))
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), meta.unbox(abstract)["params"])
        found[part] = Network(sizes_of(model), params)
    return found


def target(folder, layout, name="weights"):
    return folder / (name if layout == "diffusers" else f"{name}.safetensors")


def pipeline(folder):
    """What makes folders of parts a folder of diffusers."""
    (folder / "model_index.json").write_text("{}")


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for part, network in expected.items():
        for name, value in found[part].sizes.items():
            assert network.sizes[name] == value, (part, name)
        ours, theirs = (flatten_dict(tree, sep=".") for tree in (found[part].params, network.params))
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            assert ours[name].dtype == leaf.dtype
            np.testing.assert_array_equal(ours[name], leaf, err_msg=f"{part} {name}")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_bit_for_bit(tmp_path, layout, dtype):
    networks.write(target(tmp_path, layout), weights(dtype), layout)
    if layout == "diffusers":
        pipeline(tmp_path / "weights")
    check_equal(networks.read(target(tmp_path, layout)), weights(dtype))


@pytest.mark.parametrize("part", MODELS)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_part_alone_is_known_by_its_names(tmp_path, part, layout):
    alone = {part: weights()[part]}
    networks.write(target(tmp_path, layout), alone, layout)
    path = tmp_path / "weights" / part if layout == "diffusers" else target(tmp_path, layout)
    expected = alone
    if layout == "diffusers" and part == "text_encoder_2":  # of two that differ in size alone, this one is small
        expected = {"text_encoder": weights()[part]}
    check_equal(networks.read(path), expected)


def test_without_their_prefix_parts_of_an_original_file_are_known_too(tmp_path):
    networks.write(tmp_path / "all.safetensors", weights(), "original")
    arrays = read_state_dict(tmp_path / "all.safetensors")
    prefix = networks.PREFIXES["transformer"]
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    networks.write_tree(tmp_path / "own.safetensors", own)
    check_equal(networks.read(tmp_path / "own.safetensors"), {"transformer": weights()["transformer"]})


def test_arrays_of_no_known_network_are_named_and_scales_of_losses_passed_over(tmp_path):
    networks.write(tmp_path / "all.safetensors", {"vae": weights()["vae"]}, "original")
    arrays = dict(read_state_dict(tmp_path / "all.safetensors"))
    scale = {"text_encoders.clip_g.logit_scale": np.float32([1])}
    networks.write_tree(tmp_path / "more.safetensors", arrays | scale)
    assert networks.read(tmp_path / "more.safetensors").keys() == {"vae"}
    networks.write_tree(tmp_path / "odd.safetensors", arrays | {"control.weight": np.zeros(2)})
    with pytest.raises(InputError, match=r"odd\.safetensors holds arrays of no network .* here: control\.weight$"):
        networks.read(tmp_path / "odd.safetensors")
    networks.write_tree(tmp_path / "none.safetensors", scale)
    with pytest.raises(InputError, match=r"none\.safetensors holds no network that is known here"):
        networks.read(tmp_path / "none.safetensors")


def test_a_folder_of_diffusers_with_another_network_in_a_place_is_refused(tmp_path):
    networks.write(tmp_path / "all", {"vae": weights()["vae"]}, "diffusers")
    pipeline(tmp_path / "all")
    (tmp_path / "all/vae").rename(tmp_path / "all/transformer")
    with pytest.raises(InputError, match=r"transformer does not hold the MM-DiT of Stable Diffusion 3, and nothing"):
        networks.read(tmp_path / "all")


def test_a_network_that_is_not_whole_is_not_written(tmp_path):
    network = weights()["text_encoder_3"]
    params = {name: leaf for name, leaf in network.params.items() if name != "norm"}
    with pytest.raises(InputError, match=r"missing norm\.scale"):
        networks.write(tmp_path / "x.safetensors", {"text_encoder_3": network._replace(params=params)}, "original")
    assert not list(tmp_path.iterdir())


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no layout 'ckpt'; there are diffusers, original, genjax"):
        networks.write(tmp_path / "x", {}, "ckpt")
