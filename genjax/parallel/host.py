"""Copies on the host of arrays that may lie anywhere."""

import jax


def whole(tree):
    """numpy arrays, whole, on every process."""
    return jax.device_get(tree)


def own_copy(tree):
    """For this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
