"""Adapters go both ways between this project and diffusers with peft, and act the same there."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from genjax.adapters.lora import LoRA
from genjax.interop import lora, sd3
from genjax.interop.weight_files import read_metadata, read_state_dict
from genjax.models.mmdit import MMDiT

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

RNG = np.random.default_rng(0)
INPUTS = (
    RNG.normal(size=(2, 6, 4, 4)).astype(np.float32),
    np.float32([0.3, 0.8]),
    RNG.normal(size=(2, 5, 10)).astype(np.float32),
    RNG.normal(size=(2, 12)).astype(np.float32),
)
KINDS = {
    "lora": (LoRA(rank=2, alpha=3.0, targets=("*attn*",)), {}),
    "rank-stabilised": (LoRA(rank=4, alpha=3.0, rank_stabilised=True, targets=("*",)), dict(use_rslora=True)),
    "dora": (LoRA(rank=2, alpha=2.0, decomposed=True, targets=("*mlp*", "*attn.qkv")), dict(use_dora=True)),
}


@pytest.fixture
def reference():
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=8, qk_norm="rms_norm",
        joint_attention_dim=10, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0,),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    return network.eval()


def said_there(network):
    x, t, context, pooled = INPUTS
    with torch.no_grad():
        found = network(
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
            encoder_hidden_states=torch.from_numpy(context),
            pooled_projections=torch.from_numpy(pooled),
            timestep=torch.from_numpy(1000 * t),
        ).sample
    return found.numpy().transpose(0, 2, 3, 1)


def said_here(params, sizes):
    with jax.default_matmul_precision("highest"):
        return jax.jit(MMDiT(**sizes).apply)({"params": params}, *INPUTS)


def weights(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def check(ours, theirs, before):
    size = np.abs(theirs).max()
    assert np.abs(theirs - before).max() > 0.05 * size  # it acts
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_made_here_acts_the_same_there(reference, kind, tmp_path):
    own, options = KINDS[kind]
    params, sizes = sd3.from_diffusers(weights(reference)), sd3.sizes_from_diffusers(weights(reference))
    targets = tuple(name for name in own.layers(params) if name != "x_embedder")  # a convolution there
    own = LoRA(**{**vars(own), "targets": targets})
    rng = np.random.default_rng(1)
    adapter = jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        own.init(jax.random.key(0), params),
    )
    table = sd3.table_for_diffusers(params, patch_size=2)
    state_dict = lora.to_state_dict(table, adapter)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    metadata = lora.metadata_for_diffusers(state_dict, own.rank, own.alpha, **options)
    safetensors.numpy.save_file(state_dict, path, metadata=metadata)

    before = said_there(reference)
    reference.load_lora_adapter(tmp_path, prefix="transformer", weight_name=path.name)
    check(said_here(own.adapted(params, adapter), sizes), said_there(reference), before)


@pytest.mark.parametrize("kind", ["lora", "rank-stabilised"])
def test_one_that_is_made_there_acts_the_same_here(reference, kind, tmp_path):
    own, options = KINDS[kind]
    params, sizes = sd3.from_diffusers(weights(reference)), sd3.sizes_from_diffusers(weights(reference))
    before = said_there(reference)
    targets = ["to_q", "to_v", "to_out.0", "proj_out"]
    config = peft.LoraConfig(
        r=own.rank, lora_alpha=own.alpha, init_lora_weights=False, target_modules=targets, **options
    )
    reference.add_adapter(config)
    reference.save_lora_adapter(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    state_dict, metadata = read_state_dict(path), read_metadata(path)
    table = sd3.table_for_diffusers(params, patch_size=2)
    adapter = lora.from_state_dict(table, state_dict, prefix="")
    assert {name.rpartition(".")[2] for name in flatten_dict(adapter, sep=".")} == {"a", "b"}
    told = LoRA(**lora.scale_from_metadata(metadata, own.rank))
    assert (told.alpha, told.rank_stabilised) == (own.alpha, own.rank_stabilised)
    check(said_here(told.adapted(params, adapter), sizes), said_there(reference), before)
