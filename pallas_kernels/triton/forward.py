"""Attention forward: by the flash kernel, cut for training (flash.py) or for few queries over many keys (decode.py)."""

from collections.abc import Mapping

import jax

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings, mask_of
from pallas_kernels.dot_product_attention.schedule import Tiling
from pallas_kernels.triton import decode
from pallas_kernels.triton.config import Config, choose
from pallas_kernels.triton.flash import launch_forward, tiling
from pallas_kernels.triton.problem import needs_schedule, refuse


def forward(
    operands: Arrays, settings: Settings, configs: Mapping[str, Config] | None = None
) -> tuple[jax.Array, jax.Array]:
    """(out (B,T,N,V), lse (B,T,N)). Raises NotImplementedError for what the kernel cannot do."""
    refuse(operands)
    if decode.suits(operands):
        return decode.decode(operands, settings, configs)
    out, lse = launch_forward(operands, settings, choose("forward", operands, configs)).run()
    return out, lse


def tilings(operands: Arrays, settings: Settings) -> set[Tiling]:
    """Whose schedules the forward, backward and tangent kernels ask for."""
    if not needs_schedule(mask_of(operands, settings)):
        return set()
    queries = operands["query"].shape[1]
    if decode.suits(operands):
        config, _ = decode.plan(operands)
        found = {tiling(config, queries, decode.pack(operands))}
    else:
        found = {tiling(choose("forward", operands), queries)}
    kinds = {"tangent": "queries", "dq": "queries", "dkv": "keys"} | (
        {"dbias": "queries"} if "bias" in operands else {}
    )
    for kind, at_rest in kinds.items():
        config = choose(kind, operands)
        found.add(Tiling(at_rest, config.block_q, config.block_k))
    return found
