"""Named rematerialisation policies: what a block keeps for its backward pass."""

from typing import Literal

import jax
from flax import linen as nn

__all__ = ["RematPolicy", "rematerialise"]

RematPolicy = Literal["none", "dots", "attention", "full"]

_SAVEABLE = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention_outputs"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialise(block: type[nn.Module], policy: RematPolicy, *, scanned: bool = True) -> type[nn.Module]:
    """`block`, keeping for its backward pass everything (`none`), the outputs of linear layers (`dots`), the outputs of
    attention (`attention`, so that its forward kernel runs once), or nothing but its inputs (`full`).

    `scanned` says that a scan runs the block. Where none does, XLA would find the same work twice in one program, and
    merge it: it is kept from that.
    """
    if policy == "none":
        return block
    return nn.remat(block, policy=_SAVEABLE[policy], prevent_cse=not scanned)
