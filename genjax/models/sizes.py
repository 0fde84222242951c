"""What every network asks of its sizes before it makes a parameter of them."""

from flax import linen as nn

from genjax.errors import InputError

__all__ = ["check_sizes"]


def check_sizes(network: nn.Module, **least: int) -> None:
    """Raises InputError where a size of a network is below the least that is possible."""
    for name, smallest in least.items():
        if getattr(network, name) < smallest:
            kind = type(network).__name__
            raise InputError(f"{name} of {kind} is at least {smallest}, not {getattr(network, name)}")
