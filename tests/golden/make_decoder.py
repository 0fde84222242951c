"""Golden vectors of the decoder: tiny random weights, tokens and outputs of transformers' LlamaForCausalLM, fp32.

    python tests/golden/make_decoder.py    (made with transformers 5.24.0 and torch 2.13.0 on a CPU)

writes decoder_grouped and decoder_tied.safetensors beside this script. Each holds `tokens` (B,T), `logits` (B,T,V), the
mean `loss` of next tokens, `greedy` (B,n), the tokens that follow greedily, and the state dict under `weights.`; its
metadata name the reference, its version and its configuration.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

COMMON = dict(
    vocab_size=29,
    hidden_size=16,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=4,
    head_dim=6,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
NETWORKS = {
    "grouped": dict(num_key_value_heads=2, tie_word_embeddings=False),
    "tied": dict(
        num_key_value_heads=4,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
}


@torch.no_grad()
def make(config: transformers.LlamaConfig, generator: torch.Generator) -> dict[str, torch.Tensor]:
    network = transformers.LlamaForCausalLM(config).eval()
    for parameter in network.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
        parameter.normal_(0, fan_in**-0.5, generator=generator)
    tokens = torch.randint(config.vocab_size, (2, 12), generator=generator)
    output = network(tokens, labels=tokens)
    greedy = network.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=16, do_sample=False, pad_token_id=0
    )
    weights = {f"weights.{name}": parameter for name, parameter in network.named_parameters()}  # a tied head once
    found = {"tokens": tokens.int(), "logits": output.logits, "loss": output.loss, "greedy": greedy[:, 12:].int()}
    return {name: tensor.detach().contiguous() for name, tensor in {**found, **weights}.items()}


if __name__ == "__main__":
    for name, sizes in NETWORKS.items():
        config = transformers.LlamaConfig(**COMMON, **sizes)
        metadata = {
            "reference": "transformers.LlamaForCausalLM, float32, CPU",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "config": json.dumps(config.to_dict()),
        }
        path = Path(__file__).with_name(f"decoder_{name}.safetensors")
        save_file(make(config, torch.Generator().manual_seed(0)), path, metadata=metadata)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
