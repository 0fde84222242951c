"""Second stages: systems that draw the codes of a tokeniser that holds still, and so pictures.

    ids = first stage's codes of a picture,  h x w of Q each, in the order of reading, the Q of a place in turn
    row = prefix of the condition, and then the ids

A network sees both as tokens of one table: id i of level q is token i + q K, and the tokens of the condition come after
all of those. Data may be pictures, whose codes are found anew at each step, or `Codes`, which are on disk.

(Esser et al. 2021, arXiv:2012.09841, section 3.2.)
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.data import Codes, LabelledImages, in_blocks, real, stacked
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.language.logits_guidance import guided_logits
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
    """A system that draws ids; a subclass has the network `model` and the `sampler`, and says what is minimised."""

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
    def levels(self) -> int:
        """Ids of a place."""
        return self.tokeniser.levels

    @property
    def size(self) -> int:
        """K: ids are in [0, K)."""
        return self.first_stage.bottleneck.size

    @property
    def ids(self) -> int:
        """Ids of a picture."""
        return int(np.prod(self.tokeniser.id_shape))

    @property
    def prefix_length(self) -> int:
        """C: tokens of the condition."""
        return len(self.condition.null(self.pictures))

    @property
    def row_length(self) -> int:
        """Tokens that the network sees of a picture."""
        return self.prefix_length + self.ids

    @property
    def vocabulary(self) -> int:
        """Tokens of codes and of the condition."""
        return self.levels * self.size + self.condition.vocabulary(self.pictures)

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        self.first_stage.check(self.data)
        if not self.tokeniser.is_discrete:
            kind = type(self.first_stage.bottleneck).__name__
            raise InputError(f"{type(self).__name__} draws ids, and a first stage of {kind} has none")
        needed = self.vocabulary + self.further_tokens
        if self.model.vocabulary != needed:
            raise InputError(
                f"model.vocabulary is {self.model.vocabulary}, and {needed} tokens are there: {self.levels * self.size}"
                f" of codes, {self.condition.vocabulary(self.pictures)} of the condition"
                + (f", {self.further_tokens} of a masked place" if self.further_tokens else "")
            )
        self.condition.asked([words for wish in self.condition.wishes(self.pictures) for words in wish], self.pictures)
        self.check_sampler(self.sampler)
        self.sources()
        super().check()

    further_tokens = 0
    """Tokens beside those of codes and of the condition."""

    @abc.abstractmethod
    def check_sampler(self, sampler: Any) -> None:
        """Raise InputError where samples cannot be drawn so."""

    # ------------------------------------------------------------------ training

    def sources(self) -> Mapping[str, Source]:
        return {"first_stage": self.first_stage.source(self.data)}

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"model"}, `fixed` {"first_stage"}."""
        model_key, first_key = jax.random.split(key)
        tokens = jnp.zeros((1, self.row_length), jnp.int32)
        model = self.model.init(model_key, tokens)["params"]
        return Parts({"model": model}, {"first_stage": self.first_stage.init(first_key, self.data)})

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture or its code, and the prefix."""
        name = "codes" if isinstance(self.data, Codes) else "image"
        return {name: example[name], "prefix": self.condition.prefix(example, rng, self.pictures)}

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The mean loss of a picture, in nats for each of its ids."""
        drop_keys, loss_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        dropped = jax.vmap(partial(jax.random.bernoulli, p=self.condition.dropout))(drop_keys)
        prefix = jnp.where(dropped[:, None], self.condition.null(self.pictures), batch["prefix"])
        losses = self.losses(parts, prefix, self.ids_of(parts, batch), loss_keys)
        return Sums({"loss": losses.sum() / totals["rows"]})

    def ids_of(self, parts: Parts, batch: dict[str, Array]) -> Int[Array, "B N"]:
        """The ids of each picture in their order."""
        if "codes" in batch:
            ids = batch["codes"]
        else:
            first = self.first_stage.parts(parts.fixed["first_stage"])
            ids = self.tokeniser.code(first, self.tokeniser.encode(first, batch["image"])).ids
        return ids.reshape(len(ids), -1).astype(jnp.int32)

    @abc.abstractmethod
    def losses(
        self, parts: Parts, prefix: Int[Array, "B C"], ids: Int[Array, "B N"], keys: Key[Array, " B"], *,
        training: bool = True,
    ) -> Float[Array, " B"]:  # fmt: skip
        """The loss of each row, in nats for each id; what is only for training's good is left out where it is not."""

    # ------------------------------------------------------------------ tokens of one table

    def tokens(self, ids: Int[Array, "*B N"], first: Int[Array, "*B"] | int = 0) -> Int[Array, "*B N"]:
        """The tokens of ids, of which the first is number `first` of its picture."""
        number = jnp.arange(ids.shape[-1]) + jnp.asarray(first)[..., None]
        return ids + self.size * (number % self.levels)

    def prefix_tokens(self, prefix: Int[Array, "*B C"]) -> Int[Array, "*B C"]:
        """The tokens of a prefix."""
        return prefix + self.levels * self.size

    def logits_of_ids(
        self, logits: Float[Array, "*B N V"], first: Int[Array, "*B"] | int = 0
    ) -> Float[Array, "*B N K"]:
        """The logits of the ids of each place, of those of all tokens; `first` as of `tokens`."""
        number = jnp.arange(logits.shape[-2]) + jnp.asarray(first)[..., None]
        by_level = logits[..., : self.levels * self.size].reshape(*logits.shape[:-1], self.levels, self.size)
        level = jnp.broadcast_to(number % self.levels, logits.shape[:-1])
        return jnp.take_along_axis(by_level, level[..., None, None], axis=-2)[..., 0, :]

    # ------------------------------------------------------------------ sampling

    def sample(
        self, parts: Parts, words: Sequence[str], *, seed: int, sampler: Any = None, batch_size: int = 64
    ) -> Float[np.ndarray, "N H W C"]:
        """One picture for each of the words; sample i depends on (seed, i, words i) alone, not on the batch.

        Raises InputError for words that stand for nothing, and for a sampler that does not fit.
        """
        ids = self.draw(parts, words, seed=seed, sampler=sampler, batch_size=batch_size)
        return self.tokeniser.drawn_from_ids(self.first_stage.parts(parts.fixed["first_stage"]), ids)

    def draw(
        self, parts: Parts, words: Sequence[str], *, seed: int, sampler: Any = None, batch_size: int = 64
    ) -> Int[np.ndarray, "N h w *Q"]:
        """The ids of such samples."""
        sampler = sampler or self.sampler
        self.check_sampler(sampler)
        prefix = self.condition.asked(words, self.pictures)
        drawn = partial(_drawn, self, sampler.program(), seed=seed, numbers=sampler.numbers())
        rows = np.arange(len(words)), prefix
        ids = in_blocks(partial(by_rows, drawn, parts.trained), *rows, size=min(batch_size, len(words)))
        shape = self.tokeniser.id_shape
        return ids.reshape(len(ids), *(ids.shape[1:3] if ids.ndim > 2 else shape[:2]), *shape[2:])

    @abc.abstractmethod
    def draw_rows(
        self,
        trained: PyTree[Array],
        prefix: Int[Array, "B C"],
        keys: Key[Array, " B"],
        sampler: Any,
        numbers: dict[str, Float[Array, ""]],
    ) -> Int[Array, "B ..."]:
        """Ids (B,N), or (B,H,W) where the sampler asks for another size; pure.

        `sampler` is a `program()`, and `numbers` are those of the sampler that is meant.
        """

    def led(
        self,
        logits: Callable[[Int[Array, "BB C"], Int[Array, "BB N"]], Float[Array, "BB N K"]],
        prefix: Int[Array, "B C"],
        ids: Int[Array, "B N"],
        guidance: Float[Array, ""] | None,
    ) -> Float[Array, "B N K"]:
        """The logits of prefixes and ids, led away from those of the null; None for no guidance."""
        if guidance is None:
            return logits(prefix, ids)
        null = jnp.broadcast_to(jnp.asarray(self.condition.null(self.pictures)), prefix.shape)
        return guided_logits(logits(jnp.concatenate([prefix, null]), jnp.concatenate([ids, ids])), guidance)

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
        """The loss of 512 held-out pictures at most, in nats for each id that is scored."""
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
    return task.losses(parts, rows["prefix"], task.ids_of(parts, rows), row_keys(0, index), training=False)


@partial(jax.jit, static_argnums=(0, 1))
def _drawn(task: SecondStage, sampler, trained, index, prefix, *, seed, numbers):
    return task.draw_rows(trained, prefix, row_keys(seed, index), sampler, numbers)
