"""The nano SD3 network of this repository and diffusers' with the same weights, for the benchmarks that time both."""

from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
from flax.core import meta

from genjax import config
from genjax.interop import sd3
from genjax.models.mmdit import MMDiT
from genjax.parallel.host_memory import keep_freed_memory

SYSTEM, _ = config.load(str(Path(__file__).parents[1] / "configs" / "sd3.py"))
"""The nano system as people train it."""

ENCODER = SYSTEM.condition.encoder
IMAGE, TEXT_TOKENS = SYSTEM.data.image_shape, ENCODER.max_length
TEXT_WIDTH, POOLED_WIDTH = ENCODER.width, ENCODER.pooled_width


def random_weights(abstract: dict, seed: int = 0) -> dict:
    """Random weights everywhere, with outputs of order one: zero-initialised gates would hide the blocks."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
        return rng.normal(0, 0.7 * fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, abstract)


def networks() -> tuple[MMDiT, dict, torch.nn.Module]:
    """(network, its parameters, the diffusers network with the same weights), checked to give the same outputs."""
    model = SYSTEM.model
    keep_freed_memory()  # as training does; torch has its part of it
    batch = random_batch(2)
    params = random_weights(meta.unbox(jax.eval_shape(model.init, jax.random.key(0), **batch))["params"])

    reference = diffusers.SD3Transformer2DModel(
        sample_size=model.pos_embed_base_size * model.patch_size,
        patch_size=model.patch_size,
        in_channels=model.channels,
        out_channels=model.channels,
        num_layers=model.depth,
        attention_head_dim=model.head_dim,
        num_attention_heads=model.num_heads,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=model.num_heads * model.head_dim,
        pooled_projection_dim=POOLED_WIDTH,
        pos_embed_max_size=model.pos_embed_max_size,
        dual_attention_layers=tuple(range(model.dual_attention_layers)),
        qk_norm="rms_norm" if model.qk_norm else None,
    )
    untold = {name: getattr(model, name) for name in ("patch_size", "pos_embed_max_size", "pos_embed_base_size")}
    weights = sd3.to_diffusers(params, **untold)
    reference.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=True)

    ours = jax.jit(model.apply)({"params": params}, **batch)
    with torch.no_grad():
        theirs = run_reference(reference, **as_torch(batch)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)
    return model, params, reference


class TorchByteEncoder(torch.nn.Module):
    """`genjax.models.byte_encoder.ByteEncoder` of one block in torch, with its weights."""

    def __init__(self, params: dict):
        super().__init__()
        block = params["block_0"]
        layers = {name: block[name] for name in ("qkv", "proj")}
        layers |= {name: block["mlp"][name] for name in ("fc1", "fc2")} | {"pool": params["pool"]}
        for name, layer in layers.items():
            setattr(self, name, torch.nn.Linear(*layer["kernel"].shape))
            getattr(self, name).load_state_dict(
                {"weight": torch.from_numpy(layer["kernel"].T.copy()), "bias": torch.from_numpy(layer["bias"])}
            )
        self.embed = torch.nn.Embedding.from_pretrained(torch.from_numpy(params["embed"]["embedding"]), freeze=False)
        self.positions = torch.nn.Parameter(torch.from_numpy(params["positions"]))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(context (B,T,D), pooled (B,P)) of tokens (B,T)."""
        x = self.embed(tokens) + self.positions
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, ENCODER.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = torch.nn.functional.scaled_dot_product_attention(*heads)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        x = x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x)), approximate="tanh"))
        x = self.norm(x)
        return x, self.pool(x.mean(dim=1))

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def text_encoders() -> tuple[dict, torch.nn.Module]:
    """(parameters of the text encoder, the same in torch), checked to give the same outputs."""
    if ENCODER.depth != 1:
        raise ValueError(f"the text encoder in torch has one block, and that of the config {ENCODER.depth}")
    tokens = np.stack([ENCODER.tokenize(text) for text in ("a handwritten seven", "")])
    params = random_weights(meta.unbox(jax.eval_shape(ENCODER.init, jax.random.key(0), tokens))["params"], seed=3)
    reference = TorchByteEncoder(params)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens))
    for ours, output in zip(ENCODER.apply({"params": params}, tokens), theirs, strict=True):
        np.testing.assert_allclose(ours, output.numpy(), rtol=0, atol=1e-5)
    return params, reference


def random_batch(size: int) -> dict[str, np.ndarray]:
    """Inputs of the network, in genjax's layout."""
    rng = np.random.default_rng(1)
    return {
        "x_t": rng.normal(size=(size, *IMAGE)).astype(np.float32),
        "t": rng.uniform(size=size).astype(np.float32),
        "context": rng.normal(size=(size, TEXT_TOKENS, TEXT_WIDTH)).astype(np.float32),
        "pooled": rng.normal(size=(size, POOLED_WIDTH)).astype(np.float32),
    }


def as_torch(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same inputs in torch's layout: images (B,C,H,W)."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {**tensors, "x_t": tensors["x_t"].permute(0, 3, 1, 2).contiguous()}


def run_reference(
    reference: torch.nn.Module, x_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Output of the diffusers network, (B,C,H,W); t in [0, 1]."""
    return reference(
        hidden_states=x_t,
        timestep=1000 * t,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
