"""A small system with every kind of field that a config may have."""

import dataclasses
from typing import Any, Generic, Literal, Protocol, TypeVar

import flax.linen as nn

from genjax.errors import InputError

T = TypeVar("T")


class Net(nn.Module):
    """A network."""

    depth: int
    """Number of layers."""
    width: int = 8
    """Channels of a layer."""
    kernel: tuple[int, int] = (3, 3)
    """Height and width of the kernels."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


@dataclasses.dataclass(frozen=True)
class Base:
    seed: int = 0
    """Seed of the random numbers."""


class Density(Protocol):
    """A distribution over times."""

    def log_prob(self, t): ...


class Curve(Protocol):
    def __call__(self, step): ...


class Records(Protocol, Generic[T]):
    size: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> T: ...


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(n), n normal."""

    mean: float = 0
    """Mean of n."""
    std: float = 1.0
    """Standard deviation of n."""

    def __post_init__(self):
        if self.std <= 0:
            raise InputError(f"LogitNormal takes a positive std, not {self.std}")

    def log_prob(self, t):
        return t


@dataclasses.dataclass(frozen=True)
class Player:
    rate: float = 1e-3
    """Learning rate of the player."""


@dataclasses.dataclass(frozen=True)
class Digits:
    path: str = "digits"
    """Where the pictures lie."""
    mixture: dict[str, float] = dataclasses.field(default_factory=lambda: {"train": 1.0, "extra-set": 0.5})
    """Weight of each part."""


@dataclasses.dataclass(frozen=True)
class Folder:
    root: str
    """Where the folder lies."""


@dataclasses.dataclass(frozen=True)
class Train(Base):
    steps: int = 3
    """Number of updates."""
    batch_size: int = 4
    """Rows of a batch."""
    clip: float | None = None
    """Largest norm of the gradient."""
    warm: bool = False
    """Whether the rate rises
    at the start."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay rates of the moments."""


@dataclasses.dataclass(frozen=True)
class System:
    """A small system."""

    model: nn.Module = Net(depth=2)
    """The network."""
    times: Density = LogitNormal()
    """Density of the times."""
    curve: float | Curve = 1.0
    """A number, or a curve."""
    last: Density = LogitNormal()
    data: Digits | Folder = dataclasses.field(default_factory=Digits)
    """What it learns from."""
    players: tuple[Player, ...] = (Player(), Player(2e-3))
    """Who plays."""
    rival: Player | None = None
    """Another player."""
    train: Train = Train()
    """How it learns."""
    anything: Any = 1
    """Anything."""
    sealed: Any = None
    """Not for the command line."""
