"""Greedy decoding of a small language model, genjax against transformers: tokens per second.

    python benchmarks/decode.py                     --batch-sizes 1 8 --tokens 256 --rounds 5
    python benchmarks/decode.py --clock cpu --threads 1             on a machine that is busy with other things

transformers runs `LlamaForCausalLM.generate` with its own cache, in inference mode and with --threads threads; genjax
runs the same network with the same weights in a compiled loop. Tokens are checked to be equal before any time is taken.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
import side_by_side as sbs
import torch
import transformers
import tyro
from flax.linen import meta

from genjax.interop import llama
from genjax.keys import row_keys
from genjax.language.decoding import TokenSampler, generate
from genjax.models.decoder import Decoder
from genjax.parallel.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Decode:
    """What is written, and how often."""

    batch_sizes: tuple[int, ...] = (1, 8)
    prompt: int = 16
    tokens: int = 256
    depth: int = 4
    width: int = 256
    num_heads: int = 4
    num_kv_heads: int = 4
    mlp_width: int = 688
    chunk: int = 64
    """Tokens that a compiled call of ours makes."""
    threads: int = 2
    """Of torch."""
    rounds: int = 5
    """Turns that each side takes, of one generation each."""
    clock: Literal["wall", "cpu"] = "wall"
    """What is compared: seconds that pass, or seconds of all cores together that each side uses."""


def networks(config: Decode) -> tuple[Decoder, dict, transformers.LlamaForCausalLM]:
    """(network, its parameters, the network of transformers with the same weights); logits are of order one."""
    model = Decoder(
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.width // config.num_heads,
        mlp_width=config.mlp_width,
    )
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]
    rng = np.random.default_rng(0)

    def random_weights(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    params = jax.tree.map(random_weights, abstract)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{theirs: getattr(model, ours) for ours, theirs in llama.FIELDS},
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    weights = {name: torch.from_numpy(array) for name, array in llama.to_transformers(params).items()}
    reference.load_state_dict(weights, strict=True)
    return model, jax.device_put(params), reference


def our_decoder(model: Decoder, params: dict, prompts: np.ndarray, config: Decode) -> Callable[[], np.ndarray]:
    batch, length = prompts.shape
    network = model.reader(params)
    keys = row_keys(jax.random.key(0), np.arange(batch))

    def decode():
        cache = model.empty_cache(batch, length + config.tokens)
        pieces = generate(
            network,
            TokenSampler(temperature=0),
            cache,
            prompts,
            np.full(batch, length),
            keys,
            tokens=config.tokens,
            chunk=config.chunk,
        )
        return np.concatenate(list(pieces), axis=1)

    return decode


def their_decoder(reference, prompts: np.ndarray, config: Decode) -> Callable[[], np.ndarray]:
    prompts = torch.from_numpy(prompts).long()
    mask = torch.ones_like(prompts)

    @torch.inference_mode()
    def decode():
        found = reference.generate(
            prompts, attention_mask=mask, max_new_tokens=config.tokens, do_sample=False, pad_token_id=0
        )
        return found[:, prompts.shape[1] :].numpy()

    return decode


def cpu_medians(rounds: int, **functions: Callable[[], np.ndarray]) -> dict[str, float]:
    """Median seconds of the processor, over all of its cores, that a call of each function takes; they take turns."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            time.sleep(0.05)  # idle threads of the other framework spin for a while before they sleep
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(config: Decode) -> None:
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    model, params, reference = networks(config)
    figures, rows = {}, []
    for size in config.batch_sizes:
        prompts = np.random.default_rng(1).integers(0, 256, (size, config.prompt)).astype(np.int32)
        ours, theirs = our_decoder(model, params, prompts, config), their_decoder(reference, prompts, config)
        np.testing.assert_array_equal(ours(), theirs())
        sides = {"ours": ours, "torch": theirs}
        wall = config.clock == "wall"
        seconds = sbs.medians(config.rounds, 1, **sides) if wall else cpu_medians(config.rounds, **sides)
        rate = {side: size * config.tokens / value for side, value in seconds.items()}
        ratio = rate["ours"] / rate["torch"]
        rows.append([str(size), rate["ours"], rate["torch"], ratio])
        figures[size] = {"ratio": round(ratio, 3), **{f"{side}_tokens_per_s": round(x, 1) for side, x in rate.items()}}
    title = f"{config.tokens} greedy tokens after a prompt of {config.prompt}: tokens per {config.clock} second"
    sbs.print_table(title, ["batch", "ours", "transformers", "ours / transformers"], rows)
    sbs.print_result(
        benchmark="decode",
        ratio=min(figure["ratio"] for figure in figures.values()),
        by_batch_size=figures,
        clock=config.clock,
        tokens=config.tokens,
        prompt=config.prompt,
        depth=config.depth,
        width=config.width,
        torch_threads=config.threads,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main(tyro.cli(Decode))
