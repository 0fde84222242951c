"""Golden vectors of autoencoders: tiny random weights, images and latents of diffusers' networks, fp32.

    python tests/golden/make_autoencoder.py        (made with diffusers 0.42.1 and torch 2.13.0 on a CPU)

writes autoencoder_kl and autoencoder_vq.safetensors beside this script. Each holds `image` (B,C,H,W), `encoded` and
`code` (B,C,h,w), `decoded` (B,C,H,W) of that code, and the state dict under `weights.`; of the VQModel the decoder sees
the code as it is. Their metadata name the reference and its version.
"""

from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

COMMON = dict(block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4)
NETWORKS = {
    "autoencoder_kl": (
        diffusers.AutoencoderKL,
        dict(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        ),
    ),
    "autoencoder_vq": (
        diffusers.VQModel,
        dict(
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=5,
            vq_embed_dim=3,
            num_vq_embeddings=7,
        ),
    ),
}


@torch.no_grad()
def make(kind: type, sizes: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    network = kind(**COMMON, **sizes).eval()
    for name, parameter in network.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        is_scale = parameter.ndim == 1 and name.endswith(".weight")
        parameter.normal_(float(is_scale), 0.7 * fan_in**-0.5, generator=generator)
    image = torch.randn(2, 3, 8, 12, generator=generator)
    if kind is diffusers.VQModel:
        encoded = network.encode(image).latents
        code = torch.randn(encoded.shape, generator=generator)
        decoded = network.decode(code, force_not_quantize=True).sample
    else:
        encoded = network.encode(image).latent_dist.parameters
        code = torch.randn(encoded[:, :4].shape, generator=generator)
        decoded = network.decode(code).sample
    weights = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    arrays = {"image": image, "encoded": encoded, "code": code, "decoded": decoded, **weights}
    return {name: tensor.contiguous().clone() for name, tensor in arrays.items()}


if __name__ == "__main__":
    for name, (kind, sizes) in NETWORKS.items():
        arrays = make(kind, sizes, torch.Generator().manual_seed(0))
        metadata = {
            "reference": f"diffusers.{kind.__name__}, float32, CPU",
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        }
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file(arrays, path, metadata=metadata)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, decoded {arrays['decoded'].std():.2f}")
