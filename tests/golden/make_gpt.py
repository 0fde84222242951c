"""Golden vectors of the GPT: tiny random weights, tokens, outputs and gradients of transformers' GPT2LMHeadModel, fp32.

    python tests/golden/make_gpt.py    (made with transformers 5.24.0 and torch 2.13.0 on a CPU)

writes gpt.safetensors beside this script, of a network with taming's gelu and a head of its own. It holds `tokens`
(B,T), `logits` (B,T,V), the mean `loss` of next tokens, the state dict under `weights.` and the gradients of the loss
under `gradients.`, both with the names and shapes of taming's GPT; its metadata name the reference, its version and its
configuration.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

CONFIG = transformers.GPT2Config(
    vocab_size=19,
    n_positions=12,
    n_embd=16,
    n_layer=2,
    n_head=4,
    activation_function="gelu",
    tie_word_embeddings=False,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
OUTSIDE = {"transformer.wte": "tok_emb", "transformer.ln_f": "ln_f", "lm_head": "head"}
BLOCK = {  # their Conv1D stores (in, out), taming's Linear (out, in); c_attn is query, key and value beside each other
    "ln_1": ["ln1"],
    "attn.c_attn": ["attn.query", "attn.key", "attn.value"],
    "attn.c_proj": ["attn.proj"],
    "ln_2": ["ln2"],
    "mlp.c_fc": ["mlp.0"],
    "mlp.c_proj": ["mlp.2"],
}


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors with the names and shapes of taming's GPT."""
    tensors = dict(tensors)
    found = {"pos_emb": tensors.pop("transformer.wpe.weight")[None]}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer in OUTSIDE:
            found[f"{OUTSIDE[layer]}.{kind}"] = tensor
            continue
        _, _, number, inside = layer.split(".", 3)
        pieces = tensor.T.chunk(len(BLOCK[inside])) if tensor.ndim == 2 else tensor.chunk(len(BLOCK[inside]))
        for theirs, piece in zip(BLOCK[inside], pieces, strict=True):
            found[f"blocks.{number}.{theirs}.{kind}"] = piece
    return found


def make(generator: torch.Generator) -> dict[str, torch.Tensor]:
    network = transformers.GPT2LMHeadModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            deviation = parameter.shape[0] ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.normal_(0, deviation, generator=generator)
    tokens = torch.randint(CONFIG.vocab_size, (2, 10), generator=generator)
    output = network(tokens, labels=tokens)
    output.loss.backward()
    weights = renamed(dict(network.named_parameters()))
    gradients = renamed({name: parameter.grad for name, parameter in network.named_parameters()})
    found = {"tokens": tokens.int(), "logits": output.logits, "loss": output.loss}
    found |= {f"weights.{name}": tensor for name, tensor in weights.items()}
    found |= {f"gradients.{name}": tensor for name, tensor in gradients.items()}
    return {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}


if __name__ == "__main__":
    metadata = {
        "reference": "transformers.GPT2LMHeadModel, float32, CPU",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "config": json.dumps(CONFIG.to_dict()),
    }
    path = Path(__file__).with_name("gpt.safetensors")
    save_file(make(torch.Generator().manual_seed(0)), path, metadata=metadata)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
