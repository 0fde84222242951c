"""Golden vectors of the SD3 network: tiny random weights, inputs and outputs of diffusers' SD3Transformer2DModel, fp32.

    python tests/golden/make_sd3.py        (made with diffusers 0.42.1 and torch 2.13.0 on a CPU)

writes sd3_plain, sd3_rms and sd3_dual.safetensors beside this script. Each holds `x` (B,C,H,W), `timestep` (B,) in 0 to
1000, `context` (B,L,D), `pooled` (B,D), `output` (B,C,H,W) and the state dict under `weights.`; its metadata name the
reference, its version and its configuration.
"""

import json
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

COMMON = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=20,
    caption_projection_dim=16,
    pooled_projection_dim=12,
    pos_embed_max_size=6,
)
NETWORKS = {
    "plain": dict(num_layers=3, qk_norm=None, dual_attention_layers=()),
    "rms": dict(num_layers=3, qk_norm="rms_norm", dual_attention_layers=()),
    "dual": dict(
        num_layers=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
        attention_head_dim=6,
        caption_projection_dim=12,
    ),
}


@torch.no_grad()
def make(sizes: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    network = diffusers.SD3Transformer2DModel(**sizes)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.normal_(0, 0.7 * fan_in**-0.5, generator=generator)
    inputs = {
        "x": torch.randn(2, 4, 8, 12, generator=generator),
        "timestep": torch.tensor([875.0, 250.0]),
        "context": torch.randn(2, 5, 20, generator=generator),
        "pooled": torch.randn(2, 12, generator=generator),
    }
    output = network(
        hidden_states=inputs["x"],
        timestep=inputs["timestep"],
        encoder_hidden_states=inputs["context"],
        pooled_projections=inputs["pooled"],
    ).sample
    weights = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in {**inputs, "output": output, **weights}.items()}


if __name__ == "__main__":
    for name, sizes in NETWORKS.items():
        sizes = {**COMMON, **sizes}
        metadata = {
            "reference": "diffusers.SD3Transformer2DModel, float32, CPU",
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
            "config": json.dumps(sizes),
        }
        path = Path(__file__).with_name(f"sd3_{name}.safetensors")
        save_file(make(sizes, torch.Generator().manual_seed(0)), path, metadata=metadata)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
