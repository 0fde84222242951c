"""Second stages: systems that draw the codes of a tokeniser that holds still, and so pictures.

    code = first stage's code of a picture, h x w places in the order of reading
    row  = prefix of the condition, and then the code

Data may be pictures, whose codes are found anew at each step, or `Codes`, which are on disk. Codes are ids
(discrete_second_stage.py) or vectors (masked_autoregressive.py); a latent that is denoised as a whole is no row, and
has a system of its own (latent_denoising.py).

(Esser et al. 2021, arXiv:2012.09841, section 3.2.)
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from genjax.data import Codes, LabelledImages, in_blocks, real, stacked
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.parallel.rules import by_rows
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.second_stage_requests import request
from genjax.tasks.token_conditions import ClassToken, TokenCondition
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.task import Sums, Task

__all__ = ["SecondStage"]

VALIDATED = 512
"""Held-out pictures at most that are looked at while a run trains."""


@dataclass(frozen=True, kw_only=True)
class SecondStage(Task):
    """A system that draws codes; a subclass has the network `model` and the `sampler`, and says what is minimised."""

    first_stage: FirstStage
    condition: TokenCondition = ClassToken()
    data: LabelledImages | Codes

    # ------------------------------------------------------------------ what it is

    @cached_property
    def tokeniser(self) -> Tokeniser:
        """The system of the first stage."""
        return self.first_stage.tokeniser(self.data)

    @property
    def pictures(self) -> LabelledImages:
        """The pictures that codes are of."""
        return real(self.data)

    @property
    def prefix_length(self) -> int:
        """C: tokens of the condition."""
        return len(self.condition.null(self.pictures))

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        self.first_stage.check(self.data)
        self.check_model()
        self.condition.asked([words for wish in self.condition.wishes(self.pictures) for words in wish], self.pictures)
        self.check_sampler(self.sampler)
        self.sources()
        super().check()

    @abc.abstractmethod
    def check_model(self) -> None:
        """Raise InputError where the network does not fit the codes and the condition."""

    @abc.abstractmethod
    def check_sampler(self, sampler: Any) -> None:
        """Raise InputError where samples cannot be drawn so."""

    # ------------------------------------------------------------------ training

    def sources(self) -> Mapping[str, Source]:
        return {"first_stage": self.first_stage.source(self.data)}

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"model"}, `fixed` {"first_stage"}."""
        model_key, first_key = jax.random.split(key)
        fixed = {"first_stage": self.first_stage.init(first_key, self.data)}
        return Parts({"model": self.init_model(model_key)}, fixed)

    @abc.abstractmethod
    def init_model(self, key: Key[Array, ""]) -> PyTree[Array]:
        """Fresh parameters of the network."""

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture or its code, and the prefix."""
        name = "codes" if isinstance(self.data, Codes) else "image"
        return {name: example[name], "prefix": self.condition.prefix(example, rng, self.pictures)}

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The mean loss of a picture, for each of its places."""
        drop_keys, loss_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        dropped = jax.vmap(partial(jax.random.bernoulli, p=self.condition.dropout))(drop_keys)
        prefix = jnp.where(dropped[:, None], self.condition.null(self.pictures), batch["prefix"])
        losses = self.losses(parts, prefix, self.codes_of(parts, batch), loss_keys)
        return Sums({"loss": losses.sum() / totals["rows"]})

    @abc.abstractmethod
    def codes_of(self, parts: Parts, batch: dict[str, Array]) -> Num[Array, "B N *D"]:
        """The code of each picture, its places in their order."""

    @abc.abstractmethod
    def losses(
        self, parts: Parts, prefix: Int[Array, "B C"], codes: Num[Array, "B N *D"], keys: Key[Array, " B"],
        *, training: bool = True,
    ) -> Float[Array, " B"]:  # fmt: skip
        """The loss of each row, for each place that is scored, of ids in nats.

        What is only for training's good is left out where it is not.
        """

    # ------------------------------------------------------------------ sampling

    def sample(
        self, parts: Parts, words: Sequence[str], *, seed: int, sampler: Any = None, batch_size: int = 64
    ) -> Float[np.ndarray, "N H W C"]:
        """One picture for each of the words; sample i depends on (seed, i, words i) alone, not on the batch.

        Raises InputError for words that stand for nothing, and for a sampler that does not fit.
        """
        return self.drawn_from(parts, self.draw(parts, words, seed=seed, sampler=sampler, batch_size=batch_size))

    def draw(
        self, parts: Parts, words: Sequence[str], *, seed: int, sampler: Any = None, batch_size: int = 64
    ) -> Num[np.ndarray, "N h w *D"]:
        """The codes of such samples."""
        sampler = sampler or self.sampler
        self.check_sampler(sampler)
        prefix = self.condition.asked(words, self.pictures)
        drawn = partial(_drawn, self, sampler.program(), seed=seed, numbers=sampler.numbers())
        rows = np.arange(len(words)), prefix
        return in_blocks(partial(by_rows, drawn, parts.trained), *rows, size=min(batch_size, len(words)))

    @abc.abstractmethod
    def drawn_from(self, parts: Parts, codes: Num[np.ndarray, "N h w *D"]) -> Float[np.ndarray, "N H W C"]:
        """The pictures of codes."""

    @abc.abstractmethod
    def draw_rows(
        self,
        trained: PyTree[Array],
        prefix: Int[Array, "B C"],
        keys: Key[Array, " B"],
        sampler: Any,
        numbers: dict[str, Float[Array, ""]],
    ) -> Num[Array, "B ..."]:
        """Codes; of ids (B,N), or (B,H,W) where the sampler asks for another size; pure.

        `sampler` is a `program()`, and `numbers` are those of the sampler that is meant.
        """

    def check_guidance(self, guidance: float) -> None:
        """Raise InputError where there can be no guidance of this scale."""
        if guidance != 1 and not self.condition.dropout:
            kind = type(self.condition).__name__
            raise InputError(
                f"guidance is {guidance:g}, and a condition of {kind} is never dropped in training here: only 1 is"
                " accepted"
            )

    # ------------------------------------------------------------------ what people look at

    def validate(self, parts: Parts) -> dict[str, float]:
        """The loss of 512 held-out pictures at most, for each place that is scored."""
        rows = stacked(islice(self.fixed_rows("test"), VALIDATED))
        count = len(rows["prefix"])

        def losses(index, *arrays):
            return by_rows(partial(_losses, self), parts, dict(zip(rows, arrays, strict=True)), index)

        found = in_blocks(losses, np.arange(count), *rows.values(), size=min(64, count))
        return {"validation_loss": float(found.mean())}

    def request(self, door: Door) -> Request:
        """Samples, figures of samples, or a grid of four rows with a column for each of up to ten wishes."""
        return request(self, door)


@partial(jax.jit, static_argnums=0)
def _losses(task: SecondStage, parts, rows, index):
    return task.losses(parts, rows["prefix"], task.codes_of(parts, rows), row_keys(0, index), training=False)


@partial(jax.jit, static_argnums=(0, 1))
def _drawn(task: SecondStage, sampler, trained, index, prefix, *, seed, numbers):
    return task.draw_rows(trained, prefix, row_keys(seed, index), sampler, numbers)
