"""How second stages draw codes: what the config and the command line say of it."""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

from genjax.diffusion.grids import Grid, ShiftedTimes
from genjax.diffusion.solvers import Euler, Solver
from genjax.errors import InputError
from genjax.language.decoding import Filters, TokenSampler

__all__ = ["AutoregressiveSampler", "CodeSampler", "MaskedSampler", "MaskedVectorSampler"]


@runtime_checkable
class CodeSampler(Protocol):
    """A kind of sampler."""

    guidance: float
    """Scale of classifier-free guidance; 1 is none."""
    size: tuple[int, int] | None
    """Rows and columns of codes that are drawn; None for as many as those trained on."""

    def program(self) -> Self:
        """The same for all samplers that one compiled program serves: with their `numbers`."""

    def numbers(self) -> dict[str, float]:
        """What a program is given anew each time."""

    def told(self, task: Any) -> str:
        """How samples were drawn, in words."""


@dataclass(frozen=True)
class _CodeSampler(Filters):
    """Which ids may come, and how strongly a condition leads."""

    guidance: float = 1.0
    """Scale of classifier-free guidance of the logits; 1 is none, and costs half."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.guidance < float("inf"):
            raise InputError(f"guidance is a number from 0, not {self.guidance}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of ids that are drawn; None for as many as those trained on."""
        return None

    @property
    def leads(self) -> bool:
        """Whether there is guidance."""
        return self.guidance != 1

    def program(self) -> Self:
        """The same for all samplers that one compiled program serves: with their `numbers`."""
        return replace(self, guidance=2.0 if self.leads else 1.0)

    def numbers(self) -> dict[str, float]:
        """What a program is given anew each time."""
        return {"guidance": self.guidance}

    def choose(self) -> TokenSampler:
        """How an id is drawn from logits."""
        return TokenSampler(**{each.name: getattr(self, each.name) for each in fields(Filters)})

    def filters_told(self) -> str:
        """Which filters there are, and the guidance, in words."""
        given = [(each.name, getattr(self, each.name), each.default) for each in fields(Filters)]
        words = [f"{name} {value:g}" for name, value, default in given if value != default]
        return ", ".join([*words, f"guidance {self.guidance:g}"])


@dataclass(frozen=True)
class AutoregressiveSampler(_CodeSampler):
    """One id after the other."""

    grid: tuple[int, int] | None = None
    """Rows and columns of ids to draw, where a picture is to be larger than those trained: through a window."""

    @property
    def size(self) -> tuple[int, int] | None:
        return self.grid

    def told(self, task: Any) -> str:
        """How samples were drawn, in words."""
        if self.grid is None:
            return f"{task.ids} ids one after the other, {self.filters_told()}"
        rows, columns = self.grid
        return f"{rows}x{columns} ids one after the other through a window, {self.filters_told()}"


@dataclass(frozen=True)
class MaskedSampler(_CodeSampler):
    """All ids at once, the surest of which stay."""

    steps: int = 8
    """Evaluations of the network, twice as many with guidance."""
    choice_temperature: float = 4.5
    """Size of the noise in the choice of what stays, at the first step; it falls to none."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise InputError(f"steps is a number of steps, at least 1, not {self.steps}")
        if not 0 <= self.choice_temperature < float("inf"):
            raise InputError(f"choice_temperature is a number from 0, not {self.choice_temperature}")

    def program(self) -> Self:
        return replace(super().program(), choice_temperature=0.0)

    def numbers(self) -> dict[str, float]:
        return super().numbers() | {"choice_temperature": self.choice_temperature}

    def told(self, task: Any) -> str:
        """How samples were drawn, in words."""
        return f"{task.ids} ids in {self.steps} steps, {self.filters_told()}"


@dataclass(frozen=True)
class MaskedVectorSampler:
    """Several vectors at once, each by denoising, in an order of chance."""

    steps: int = 8
    """Evaluations of the transformer, twice as many with guidance."""
    guidance: float = 1.0
    """Scale of classifier-free guidance of the head for the last vectors: it grows from 1 with the share that is known;
    1 is none, and costs half."""
    solver: Solver = Euler()
    """Solver that denoises a vector."""
    denoising_steps: int = 20
    """Number of its steps."""
    grid: Grid = ShiftedTimes(1.0)
    """At which times it stops on the way from noise to data."""
    temperature: float = 1.0
    """Size of the noise that a vector begins at; 1 is that of training, smaller is less varied."""

    def __post_init__(self):
        if min(self.steps, self.denoising_steps) < 1:
            raise InputError(
                f"steps and denoising_steps are numbers of steps, at least 1, not {self.steps} and"
                f" {self.denoising_steps}"
            )
        for name in ("guidance", "temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is a number from 0, not {getattr(self, name)}")

    @property
    def size(self) -> None:
        """As many vectors as those trained on."""

    @property
    def leads(self) -> bool:
        """Whether there is guidance."""
        return self.guidance != 1

    def program(self) -> Self:
        """The same for all samplers that one compiled program serves: with their `numbers`."""
        return replace(self, guidance=2.0 if self.leads else 1.0, temperature=1.0)

    def numbers(self) -> dict[str, float]:
        """What a program is given anew each time."""
        return {"guidance": self.guidance, "temperature": self.temperature}

    def told(self, task: Any) -> str:
        """How samples were drawn, in words."""
        how = f"{task.places} vectors in {self.steps} steps, each by {self.denoising_steps} of"
        told = f"{how} {type(self.solver).__name__}, guidance {self.guidance:g}"
        return told if self.temperature == 1 else f"{told}, temperature {self.temperature:g}"
