"""A task: a network, a piece of mathematics and data, as the training loop and the doors see them.

A task is a frozen dataclass whose fields are its config. It says how its parts begin, what a row of a batch is, and
what is minimised:

    parts              = Parts(trained, fixed, variables)
    totals             = sums over all rows of the batch that depend on the batch alone (rows, tokens, pixels)
    losses             = sums over all rows of each player's loss / totals
    trained[player]   -= optimiser(d losses[player] / d trained[player])
    variables          = advance(parts, statistics summed over all rows)

Sums are what devices and micro-batches add up, never means; totals are there before the first micro-batch, so that a
cross-entropy per text token and a squared error per image token can stand in one loss.
"""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from genjax.data import Dataset, readable
from genjax.data.examples import Split
from genjax.errors import InputError
from genjax.keys import check_seed
from genjax.parallel.mesh import Mesh
from genjax.runs.checkpoints import Checkpoint
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.training.optimizer import AdamW, Optimizer
from genjax.training.players import LONE, Player
from genjax.training.precision import Precision

__all__ = ["FREE", "Batch", "Sums", "Task", "Train"]

Batch = dict[str, Array]

FREE = {"may_change": True}
"""Metadata of a field that leaves the arithmetic of a run as it is, so that it may differ when the run goes on."""


@dataclass(frozen=True)
class Train:
    """How long, on how much at a time, and what is looked at meanwhile."""

    steps: int = 100_000
    """Number of batches to train on."""
    batch_size: int = 256
    """Samples in a batch, over all devices and micro-batches."""
    accumulate: int = field(default=1, metadata=FREE)
    """Micro-batches into which each device splits its share, to save memory."""
    seed: int = 0
    """Seed of the parameters, of the order of the data and of all noise."""
    precision: Precision = "fp32"
    """What the network computes in; parameters and sums stay in float32."""
    ema_decay: float | None = 0.9999
    """Longest memory of the average of the parameters that samples are drawn with; None for no average."""
    start: Source = Source()
    """Weights to begin with, instead of fresh ones."""
    max_skipped: int = field(default=10, metadata=FREE)
    """Steps in a row whose loss or gradient may be nan or inf before the run gives up; each is skipped."""
    data_threads: int = field(default=4, metadata=FREE)
    """Threads that read data ahead; 0 is fastest for small data that lies in memory."""
    log_every: int = field(default=50, metadata=FREE)
    """Steps between lines in metrics.jsonl and the log."""
    validate_every: int = field(default=500, metadata=FREE)
    """Steps between losses on the fixed validation set."""
    sample_every: int = field(default=500, metadata=FREE)
    """Steps between previews of samples."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "validate_every", "sample_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay lies in [0, 1) or is None, not at {self.ema_decay}")
        check_seed("seed", self.seed)


class Sums(NamedTuple):
    """What a loss returns of the rows it was given: what adds up over micro-batches and devices."""

    losses: dict[str, Float[Array, ""]]
    """Each player's loss, its sum over these rows divided by the totals of the whole batch."""
    metrics: dict[str, tuple[Array, Array]] = {}
    """Further numbers to tell, as (sum, weight)."""
    statistics: PyTree[Array] = {}
    """What `advance` needs of the rows, as sums."""


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A system that trains; what is not said here has the default of a system with one loss and no state of its own."""

    data: Dataset
    optimizer: Optimizer = AdamW()
    train: Train = Train()
    checkpoint: Checkpoint = field(default=Checkpoint(), metadata=FREE)
    mesh: Mesh = field(default=Mesh(), metadata=FREE)

    couples_rows: ClassVar[bool] = False
    """Whether the loss of a row depends on other rows of its batch; such a loss sees the global batch on any mesh."""

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        try:
            parts = jax.eval_shape(self.init, jax.random.key(0))
        except ValueError as error:  # What the networks say of sizes that do not fit each other.
            raise InputError(f"the networks cannot be built: {str(error).splitlines()[0]}") from None
        names = set(self.players())
        if names != {LONE} and names != set(parts.trained):
            raise TypeError(f"the players {sorted(names)} are not the parts that are trained, {sorted(parts.trained)}")

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; float32, pure."""

    def sources(self) -> Mapping[str, Source]:
        """Parts that hold still and come from elsewhere, by their names in `fixed`; copied into the run directory.

        Where `init` gives fresh ones of the same name, what comes must have their names, shapes and kinds of numbers.
        """
        return {}

    @abc.abstractmethod
    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of one row of a batch, on the host."""

    def fixed_rows(self, split: Split) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a split in its order, but for what cannot be read; prepared alike every time."""
        rng = np.random.default_rng(0)
        return (self.prepare(example, rng) for example in readable(self.data.source(split)))

    def totals(self, batch: Batch) -> PyTree[Array]:
        """Sums over these rows of what the batch alone decides; the number of rows by default."""
        return {"rows": jnp.float32(jax.tree.leaves(batch)[0].shape[0])}

    @abc.abstractmethod
    def loss(self, parts: Parts, batch: Batch, keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The losses of some rows; pure. `keys` are one typed key per row, `totals` those of the whole batch."""

    def advance(self, parts: Parts, statistics: PyTree[Array]) -> PyTree[Array]:
        """The variables after a step: of those before it, the parameters after it, and the batch's statistics."""
        return parts.variables

    def players(self) -> Mapping[str, Player]:
        """Who moves, by the names of the losses."""
        return {LONE: Player(self.optimizer)}

    @abc.abstractmethod
    def validate(self, parts: Parts) -> dict[str, float]:
        """Numbers on a fixed set; `parts.trained` is the average where there is one."""

    @abc.abstractmethod
    def request(self, door: Door) -> Request:
        """What can be asked for at a door, with the defaults of this run."""
