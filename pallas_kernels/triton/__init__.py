"""Attention as Triton kernels: every mask, bias, soft cap and sink; every derivative; decoding and token trees.

    tile        what the kernels share: the mask of a tile, its logits, loads
    flash       the forward kernel         decode      its launch for few queries and many keys
    forward     one of those two           backward    dq, dk and dv, dbias: deterministic
    tangent     forward mode
    problem     what is compiled in        config      tile sizes
    launch      the door to jax-triton     interpret   the same kernels in numpy, for tests without a GPU
    resources   registers, spills and shared memory of every kernel, without a GPU

`rules.RULES` is the implementation named `triton`. Triton is imported when that is first called.
"""
