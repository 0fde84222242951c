"""Golden vectors of DiT and U-Nets: tiny random weights, inputs and outputs of diffusers' networks, fp32.

    python tests/golden/make_networks.py        (made with diffusers 0.42.1 and torch 2.13.0 on a CPU)

writes dit, unet_ddpm and unet_adm.safetensors beside this script. Each holds `x` (B,C,H,W), `timestep` (B,) in 0 to
1000, perhaps `label` (B,), `output` (B,C',H,W) and the state dict under `weights.`; its metadata name the reference,
its version and its configuration.
"""

import json
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

NETWORKS = {
    "dit": (
        diffusers.DiTTransformer2DModel,
        dict(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            out_channels=6,
            num_layers=2,
            num_embeds_ada_norm=4,
            sample_size=8,
        ),
    ),
    "unet_ddpm": (
        diffusers.UNet2DModel,
        dict(
            block_out_channels=(8, 12),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            norm_num_groups=4,
        ),
    ),
    "unet_adm": (
        diffusers.UNet2DModel,
        dict(
            block_out_channels=(8, 12),
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            layers_per_block=1,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=4,
            attn_norm_num_groups=4,
            norm_num_groups=4,
            num_class_embeds=4,
            out_channels=6,
        ),
    ),
}


@torch.no_grad()
def make(kind: type, sizes: dict, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict]:
    network = kind(**sizes).eval()  # in training DiT drops labels
    for name, parameter in network.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        is_scale = parameter.ndim == 1 and name.endswith(".weight")
        parameter.normal_(float(is_scale), 0.7 * fan_in**-0.5, generator=generator)
    if kind is diffusers.DiTTransformer2DModel:  # released files hold copies of one embedding
        embedding = network.transformer_blocks[0].norm1.emb.state_dict()
        for block in network.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(embedding)
    inputs = {"x": torch.randn(2, 3, 8, 8, generator=generator), "timestep": torch.tensor([875.0, 250.0])}
    if sizes.get("num_class_embeds") or sizes.get("num_embeds_ada_norm"):
        inputs["label"] = torch.tensor([3, 1])
    output = network(inputs["x"], inputs["timestep"], inputs.get("label")).sample
    weights = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    arrays = {name: tensor.contiguous().clone() for name, tensor in {**inputs, "output": output, **weights}.items()}
    return arrays, {name: value for name, value in network.config.items() if not name.startswith("_")}


if __name__ == "__main__":
    for name, (kind, sizes) in NETWORKS.items():
        arrays, config = make(kind, sizes, torch.Generator().manual_seed(0))
        metadata = {
            "reference": f"diffusers.{kind.__name__}, float32, CPU",
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
            "config": json.dumps(config),
        }
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file(arrays, path, metadata=metadata)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, output {arrays['output'].std():.2f}")
