"""Layers whose parameters say what their axes are: Linen's linear layer, embedding and convolution, with logical names.

A network does not know on how many devices it runs, but it knows best what an axis of a parameter is. It says so once,
by a logical name, where the parameter is made:

    embed     the width of the tokens, which every layer reads and writes
    mlp       a width inside a layer: of a hidden layer, of modulations
    heads     the attention heads, with their widths
    vocab     the entries of a table of embeddings
    layers    the blocks of a stack that a scan runs: nn.scan(..., metadata_params=STACKED) adds it
    None      nothing of these: pixels of a patch, places of a kernel, a foreign width

(GSPMD's annotations, Xu et al. 2021, arXiv:2105.04663, as Linen's logical partitioning has them.) `init` returns the
parameters in boxes that carry the names, and `apply` takes them without; a table of rules outside of the network maps
names to the axes of a mesh. What is computed, the names of the parameters and their first values are Linen's.
"""

from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from flax.core import meta
from jaxtyping import Array, Float

__all__ = ["STACKED", "Axes", "Conv", "ConvTranspose", "Embedding", "Linear", "rows_dot_general", "with_axes"]

Axes = tuple[str | None, ...]
"""A logical name, or None, for every axis of an array."""

STACKED = {meta.PARTITION_NAME: "layers"}
"""The `metadata_params` of every `nn.scan` over blocks."""


def with_axes(init: Callable, axes: Axes) -> Callable[..., nn.LogicallyPartitioned]:
    """An initialiser of a parameter whose axes have these names: `self.param(name, with_axes(init, axes), shape)`.

    It raises ValueError where there are not as many names as axes.
    """

    def initialise(*arguments, **options):
        value = init(*arguments, **options)
        if value.ndim != len(axes):
            raise ValueError(f"a parameter of shape {value.shape} has {value.ndim} axes, and {len(axes)} names: {axes}")
        return nn.LogicallyPartitioned(value, axes)

    return initialise


def rows_dot_general(
    x: Float[Array, "*rows D"], kernel: Float[Array, "D F"], dimensions: tuple, **options
) -> Float[Array, "*rows F"]:
    """`jax.lax.dot_general` of a linear layer, over all rows of x as one axis; `dimensions` are those of x and kernel.

    The values are the same, and so are the derivatives. But the gradient of the kernel, a sum over rows, is then a
    plain product of two matrices. Over two axes of rows XLA's CPU backend first writes one operand down transposed,
    and multiplies in a way that takes three times as long.
    """
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or kernel.ndim != 2:
        raise ValueError(f"a linear layer multiplies the last axis of x by the first of a matrix, not {dimensions}")
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def Linear(
    features: int,
    axes: Axes = ("embed", "mlp"),
    *,
    kernel_init: Callable = nn.linear.default_kernel_init,
    bias_init: Callable = nn.initializers.zeros,
    use_bias: bool = True,
    name: str | None = None,
) -> nn.Dense:
    """x W + b over the last axis, W (in, features) with these axes; b (features,) has the last of them."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=with_axes(kernel_init, axes),
        bias_init=with_axes(bias_init, axes[-1:]),
        dot_general=rows_dot_general,
        name=name,
    )


def Embedding(
    num: int,
    features: int,
    axes: Axes = ("vocab", "embed"),
    *,
    embedding_init: Callable = nn.linear.default_embed_init,
    name: str | None = None,
) -> nn.Embed:
    """Row i of a table (num, features) for each index i; `attend` multiplies by its transpose."""
    return nn.Embed(num, features, embedding_init=with_axes(embedding_init, axes), name=name)


def Conv(
    features: int, kernel_size: Sequence[int], axes: Axes = ("embed", "mlp"), *, name: str | None = None, **options
) -> nn.Conv:
    """A convolution of images (B, H, W, C) or sequences; `axes` name the channels in and out, places have no name.

    The options are Linen's: use_bias, kernel_init, bias_init, strides, padding, kernel_dilation, ...
    """
    return _convolution(nn.Conv, features, kernel_size, axes, name=name, **options)


def ConvTranspose(
    features: int, kernel_size: Sequence[int], axes: Axes = ("embed", "mlp"), *, name: str | None = None, **options
) -> nn.ConvTranspose:
    """A transposed convolution; `axes` name the channels in and out. The options are Linen's, as those of `Conv`."""
    return _convolution(nn.ConvTranspose, features, kernel_size, axes, name=name, **options)


def _convolution(
    kind: type[nn.Module],
    features: int,
    kernel_size: Sequence[int],
    axes: Axes,
    *,
    kernel_init: Callable = nn.linear.default_kernel_init,
    bias_init: Callable = nn.initializers.zeros,
    **options,
) -> nn.Module:
    return kind(
        features,
        tuple(kernel_size),
        kernel_init=with_axes(kernel_init, (*[None] * len(kernel_size), *axes)),
        bias_init=with_axes(bias_init, axes[-1:]),
        **options,
    )
