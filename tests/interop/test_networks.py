"""Which networks files hold, and that all layouts hold the same, bit for bit."""

import functools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import clip, networks
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
    check_equal(networks.read(target(tmp_path, layout)), weights(dtype))


@pytest.mark.parametrize("part", MODELS)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_part_alone_is_known_by_its_names(tmp_path, part, layout):
    alone = {part: weights()[part]}
    networks.write(target(tmp_path, layout), alone, layout)
    check_equal(networks.read(target(tmp_path, layout)), alone)


def test_a_text_encoder_of_clip_that_stands_alone_is_bigg_where_it_is_wider(tmp_path):
    for width, part in ((768, "text_encoder"), (1280, "text_encoder_2")):
        model = CLIPText(**CLIP | {"width": width, "num_heads": width // 64, "depth": 1})
        abstract = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 6), np.int32))
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float16), meta.unbox(abstract)["params"])
        networks.write_tree(tmp_path / f"{width}.safetensors", clip.to_transformers(params))
        ((found, sizes),) = (
            (part, own.sizes) for part, own in networks.read(tmp_path / f"{width}.safetensors").items()
        )
        assert found == part
        assert (sizes["activation"], sizes["num_heads"]) == ("quick_gelu" if width == 768 else "gelu", width // 64)


def test_an_original_file_has_the_names_that_are_released(tmp_path):
    """Of sd3_medium_incl_clips_t5xxl, by what diffusers' and ComfyUI's loaders look for."""
    networks.write(tmp_path / "all.safetensors", weights(), "original")
    assert read_state_dict(tmp_path / "all.safetensors").keys() >= {
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        "model.diffusion_model.pos_embed",
        "first_stage_model.decoder.conv_in.weight",
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
        "text_encoders.clip_g.transformer.text_projection.weight",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
    }


def test_the_identity_that_diffusers_asks_of_clip_l_comes_and_goes(tmp_path):
    networks.write(tmp_path / "all", {"text_encoder": weights(np.float16)["text_encoder"]}, "diffusers")
    projection = read_state_dict(tmp_path / "all/text_encoder")["text_projection.weight"]
    np.testing.assert_array_equal(projection, np.eye(64))
    assert projection.dtype == np.float16
    check_equal(networks.read(tmp_path / "all"), {"text_encoder": weights(np.float16)["text_encoder"]})


def test_how_latents_are_scaled_goes_with_an_autoencoder(tmp_path):
    networks.write(tmp_path / "first", {"vae": weights()["vae"]}, "diffusers")
    config = tmp_path / "first/vae/config.json"
    told = json.loads(config.read_text())
    assert (told["scaling_factor"], told["shift_factor"]) == (1.5305, 0.0609)
    config.write_text(json.dumps(told | {"scaling_factor": 0.3611, "shift_factor": 0.1159}))
    networks.write(tmp_path / "own.safetensors", networks.read(tmp_path / "first"), "genjax")
    networks.write(tmp_path / "second", networks.read(tmp_path / "own.safetensors"), "diffusers")
    assert json.loads((tmp_path / "second/vae/config.json").read_text()) == json.loads(config.read_text())


def test_four_channels_are_scaled_as_those_of_stable_diffusion_1(tmp_path):
    network = weights()["vae"]
    sizes = network.sizes | {"z_channels": 4}
    _, config = networks.PARTS["vae"].diffusers(network._replace(sizes=sizes))
    assert (config["scaling_factor"], config["shift_factor"]) == (0.18215, None)


def test_a_folder_that_an_index_names_is_missed_and_null_is_without(tmp_path):
    networks.write(tmp_path / "all", weights(), "diffusers")
    shutil.rmtree(tmp_path / "all/text_encoder_3")
    with pytest.raises(InputError, match=r"model_index\.json names text_encoder_3, and there is no such folder"):
        networks.read(tmp_path / "all")
    index = tmp_path / "all/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder_3": [None, None]}))
    assert networks.read(tmp_path / "all").keys() == weights().keys() - {"text_encoder_3"}


def test_a_file_of_ours_is_looked_at_too(tmp_path):
    network = weights()["text_encoder_3"]
    broken = network._replace(params=network.params | {"norm": {"scale": np.full(8, np.nan, np.float32)}})
    networks.write(tmp_path / "x.safetensors", {"text_encoder_3": broken}, "genjax")
    with pytest.raises(InputError, match=r"^text_encoder_3\.norm\.scale has 8 numbers that are not finite, of 8$"):
        networks.read(tmp_path / "x.safetensors")


def test_a_config_that_lacks_what_weights_do_not_show_is_refused(tmp_path):
    networks.write(tmp_path / "all", {"transformer": weights()["transformer"]}, "diffusers")
    config = tmp_path / "all/transformer/config.json"
    told = json.loads(config.read_text())
    del told["attention_head_dim"]
    config.write_text(json.dumps(told))
    with pytest.raises(InputError, match="the config of a SD3Transformer2DModel has no attention_head_dim"):
        networks.read(tmp_path / "all")


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
    (tmp_path / "all/vae").rename(tmp_path / "all/transformer")
    (tmp_path / "all/model_index.json").unlink()
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
