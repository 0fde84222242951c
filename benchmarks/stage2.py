"""Ids of pictures by a second stage, genjax against torch, and MaskGIT's eight steps against one id after the other.

    python benchmarks/stage2.py                     --batch-sizes 1 8 --ids 256 --rounds 5

The torch side is transformers' GPT-2 with its key and value cache in a loop of one id at a time, which is how
taming-transformers samples, in inference mode and with --threads threads; genjax runs the same network with the same
weights in a compiled loop. Greedy ids are checked to be equal before any time is taken. MaskGIT runs a network of the
same size that sees every place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import side_by_side as sbs
import torch
import transformers
import tyro
from flax.linen import meta

from genjax.interop import gpt
from genjax.keys import row_keys
from genjax.language.decoding import TokenSampler, generate
from genjax.language.masked_decoding import MASKED, reveal
from genjax.models.gpt import GPT
from genjax.parallel.host_memory import keep_freed_memory

GREEDY = TokenSampler(temperature=0)


@dataclass(frozen=True)
class Stage2:
    """What is drawn, and how often."""

    batch_sizes: tuple[int, ...] = (1, 8)
    ids: int = 256
    """Of a picture, after one token of its class."""
    codes: int = 1024
    depth: int = 4
    width: int = 256
    num_heads: int = 4
    steps: int = 8
    """Of MaskGIT."""
    threads: int = 2
    """Of torch."""
    rounds: int = 5
    """Turns that each side takes, of one batch each."""


def networks(config: Stage2) -> tuple[GPT, dict, torch.nn.Module]:
    """(network, its parameters, GPT-2 of transformers with the same weights); logits are of order one."""
    model = GPT(
        vocabulary=config.codes,
        positions=config.ids + 1,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
    )
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]
    rng = np.random.default_rng(0)

    def random_weights(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    params = jax.tree.map(random_weights, abstract)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=model.vocabulary,
            n_positions=model.positions,
            n_embd=model.width,
            n_layer=model.depth,
            n_head=model.num_heads,
            activation_function="gelu",
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    ).eval()
    theirs.load_state_dict(_renamed(gpt.to_taming(params), model.depth), strict=True)
    return model, jax.device_put(params), theirs


def _renamed(taming: dict[str, np.ndarray], depth: int) -> dict[str, torch.Tensor]:
    """taming's names as those of transformers' GPT-2, whose layers multiply from the other side, q, k and v as one."""
    weights = {name: torch.from_numpy(np.array(array)) for name, array in taming.items()}
    found = {
        "transformer.wte.weight": weights["tok_emb.weight"],
        "transformer.wpe.weight": weights["pos_emb"][0],
        "lm_head.weight": weights["head.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"transformer.ln_f.{kind}"] = weights[f"ln_f.{kind}"]
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for kind in ("weight", "bias"):
            found[f"{theirs}.ln_1.{kind}"] = weights[f"{ours}.ln1.{kind}"]
            found[f"{theirs}.ln_2.{kind}"] = weights[f"{ours}.ln2.{kind}"]
            qkv = torch.cat([weights[f"{ours}.attn.{name}.{kind}"] for name in ("query", "key", "value")])
            layers = {"attn.c_attn": qkv, "attn.c_proj": weights[f"{ours}.attn.proj.{kind}"]}
            layers |= {"mlp.c_fc": weights[f"{ours}.mlp.0.{kind}"], "mlp.c_proj": weights[f"{ours}.mlp.2.{kind}"]}
            for name, layer in layers.items():
                found[f"{theirs}.{name}.{kind}"] = layer.t().contiguous()
    return found


def our_drawer(model: GPT, params: dict, classes: np.ndarray, config: Stage2) -> Callable[[], np.ndarray]:
    network, keys, ones = model.reader(params), row_keys(0, np.arange(len(classes))), np.ones(len(classes), int)

    def draw():
        cache = model.empty_cache(len(classes), config.ids + 1)
        (ids,) = generate(
            network, GREEDY, cache, classes[:, None], ones, keys, tokens=config.ids, chunk=config.ids
        )  # fmt: skip
        return ids

    return draw


def their_drawer(network: torch.nn.Module, classes: np.ndarray, config: Stage2) -> Callable[[], np.ndarray]:
    prefix = torch.from_numpy(classes[:, None]).long()

    @torch.inference_mode()
    def draw():
        token, cache, drawn = prefix, transformers.DynamicCache(), []
        for _ in range(config.ids):
            token = network(token, cache=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)
            drawn.append(token)
        return torch.cat(drawn, dim=1).numpy()

    return draw


def masked_drawer(model: GPT, params: dict, classes: np.ndarray, config: Stage2) -> Callable[[], np.ndarray]:
    """Eight steps of a network of the same size and weights; the last id stands for a masked place."""
    seeing, keys = replace(model, causal=False), row_keys(0, np.arange(len(classes)))

    @jax.jit
    def draw(params, classes, keys):
        def network(known):
            row = jnp.concatenate([classes[:, None], jnp.where(known == MASKED, config.codes - 1, known)], axis=1)
            return seeing.apply({"params": params}, row)[:, 1:]

        return reveal(network, TokenSampler(), keys, config.ids, steps=config.steps)

    return lambda: np.asarray(draw(params, classes, keys))


def main(config: Stage2) -> None:
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    model, params, reference = networks(config)
    figures, rows = {}, []
    for size in config.batch_sizes:
        classes = np.random.default_rng(1).integers(0, config.codes, size).astype(np.int32)
        ours, theirs = our_drawer(model, params, classes, config), their_drawer(reference, classes, config)
        np.testing.assert_array_equal(ours(), theirs())
        masked = masked_drawer(model, params, classes, config)
        seconds = sbs.medians(config.rounds, 1, ours=ours, torch=theirs, masked=masked)
        ratio, faster = seconds["torch"] / seconds["ours"], seconds["ours"] / seconds["masked"]
        rows.append([str(size), *(1e3 * seconds[side] for side in ("ours", "torch", "masked")), ratio, faster])
        figures[size] = {"ratio": round(ratio, 3), "one_by_one_over_masked": round(faster, 3)}
    columns = ["batch", "ours", "torch", f"MaskGIT-{config.steps}", "torch / ours", "ours / MaskGIT"]
    sbs.print_table(f"{config.ids} ids of {config.codes}: milliseconds for a batch", columns, rows)
    sbs.print_result(
        benchmark="stage2",
        ratio=min(figure["ratio"] for figure in figures.values()),
        by_batch_size=figures,
        ids=config.ids,
        codes=config.codes,
        depth=config.depth,
        width=config.width,
        steps=config.steps,
        torch_threads=config.threads,
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main(tyro.cli(Stage2))
