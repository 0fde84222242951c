"""More kinds of densities and curves, and what is none."""

import abc
import dataclasses

import flax.linen as nn

from tests.config.room.system import Density, LogitNormal, Player  # noqa: F401  (they are not of this module)


@dataclasses.dataclass(frozen=True)
class Beta2P:
    """t ~ Beta(a, b)."""

    a: float = 1.0
    """Its first parameter."""
    inner: Density = LogitNormal()
    """A density inside of it."""

    def log_prob(self, t):
        return t


@dataclasses.dataclass(frozen=True)
class Tabulated(Density):
    """Inherits from the protocol, and needs a value."""

    path: str
    """File of the table."""
    log_prob: str = "a field of this name"


class Learnt(nn.Module):
    """A network as a density."""

    width: int = 4

    def log_prob(self, t):
        return t


@dataclasses.dataclass(frozen=True)
class Cosine:
    """A curve."""

    period: int = 10

    def __call__(self, step):
        return step


@dataclasses.dataclass(frozen=True)
class Nothing:
    prob: float = 0.0


@dataclasses.dataclass
class Mutable:
    def log_prob(self, t):
        return t


@dataclasses.dataclass(frozen=True)
class Abstract(abc.ABC):
    @abc.abstractmethod
    def log_prob(self, t): ...


class Plain:
    def log_prob(self, t):
        return t


@dataclasses.dataclass(frozen=True)
class _Private:
    def log_prob(self, t):
        return t
