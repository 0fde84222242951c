"""Named rematerialisation policies: what a scanned block keeps for its backward pass."""

from typing import Literal

import jax
from flax import linen as nn

RematPolicy = Literal["none", "dots", "full"]

_SAVEABLE = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialise(block: type[nn.Module], policy: RematPolicy) -> type[nn.Module]:
    """`block`, keeping everything (`none`), only the outputs of linear layers (`dots`), or only its inputs (`full`)."""
    if policy == "none":
        return block
    return nn.remat(block, policy=_SAVEABLE[policy], prevent_cse=False)
