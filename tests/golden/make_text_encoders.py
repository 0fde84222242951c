"""Golden vectors of CLIP's and T5's text encoders: tiny random weights, outputs and gradients of transformers, fp32.

    python tests/golden/make_text_encoders.py    (made with transformers 5.24.0 and torch 2.13.0 on a CPU)

writes clip_text.safetensors (as OpenAI's: quick_gelu, not projected), clip_text_projected.safetensors (as OpenCLIP's:
gelu, projected) and t5_encoder.safetensors beside this script. Each holds `tokens` (B,T), every output under
`outputs.`, the state dict under `weights.`, and under `gradients.` that of the mean square of all outputs; its
metadata name the reference, its version and its configuration.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

CLIP = dict(
    vocab_size=19,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=11,
    bos_token_id=17,
    eos_token_id=18,
)
T5 = dict(
    vocab_size=19,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_layers=3,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
)
CASES = {
    "clip_text": (transformers.CLIPTextModel, transformers.CLIPTextConfig(hidden_act="quick_gelu", **CLIP)),
    "clip_text_projected": (
        transformers.CLIPTextModelWithProjection,
        transformers.CLIPTextConfig(hidden_act="gelu", projection_dim=12, **CLIP),
    ),
    "t5_encoder": (transformers.T5EncoderModel, transformers.T5Config(**T5)),
}


def outputs(network: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """By the names that genjax has for them."""
    found = network(tokens, output_hidden_states=True)
    if isinstance(network, transformers.T5EncoderModel):
        return {"features": found.last_hidden_state}
    pooled = found.text_embeds if "text_embeds" in found else found.pooler_output
    return {"penultimate": found.hidden_states[-2], "last": found.last_hidden_state, "pooled": pooled}


def make(name: str, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    kind, config = CASES[name]
    network = kind(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            deviation = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.normal_(0, deviation, generator=generator)
    tokens = torch.randint(17, (3, 11), generator=generator)
    tokens[:, 0] = 17
    for row, end in enumerate((10, 6, 3)):
        tokens[row, end] = 18
        tokens[row, end + 1 :] = 0 if row == 1 else 18
    found = outputs(network, tokens)
    sum(output.square().mean() for output in found.values()).backward()
    arrays = {"tokens": tokens.int()}
    arrays |= {f"outputs.{name}": tensor for name, tensor in found.items()}
    arrays |= {f"weights.{name}": tensor for name, tensor in network.named_parameters()}
    arrays |= {f"gradients.{name}": parameter.grad for name, parameter in network.named_parameters()}
    metadata = {
        "reference": f"transformers.{kind.__name__}, float32, CPU",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "config": json.dumps(config.to_dict()),
    }
    return {name: tensor.detach().contiguous().clone() for name, tensor in arrays.items()}, metadata


if __name__ == "__main__":
    for name in CASES:
        arrays, metadata = make(name, torch.Generator().manual_seed(0))
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file(arrays, path, metadata=metadata)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
