"""Second stages whose codes are ids.

    ids = h x w of Q each, in the order of reading, the Q of a place in turn

A network sees them and the condition as tokens of one table: id i of level q is token i + q K, and the tokens of the
condition come after all of those.

(Esser et al. 2021, arXiv:2012.09841, section 3.2.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.language.logits_guidance import guided_logits
from genjax.runs.parts import Parts
from genjax.tasks.second_stage import SecondStage

__all__ = ["DiscreteSecondStage"]


@dataclass(frozen=True, kw_only=True)
class DiscreteSecondStage(SecondStage):
    """A system that draws ids; a subclass has the network `model` and the `sampler`, and says what is minimised."""

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
    def row_length(self) -> int:
        """Tokens that the network sees of a picture."""
        return self.prefix_length + self.ids

    @property
    def vocabulary(self) -> int:
        """Tokens of codes and of the condition."""
        return self.levels * self.size + self.condition.vocabulary(self.pictures)

    further_tokens = 0
    """Tokens beside those of codes and of the condition."""

    def check_model(self) -> None:
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

    def init_model(self, key: Key[Array, ""]) -> PyTree[Array]:
        return self.model.init(key, jnp.zeros((1, self.row_length), jnp.int32))["params"]

    def codes_of(self, parts: Parts, batch: dict[str, Array]) -> Int[Array, "B N"]:
        """The ids of each picture in their order."""
        if "codes" in batch:
            ids = batch["codes"]
        else:
            first = self.first_stage.parts(parts.fixed["first_stage"])
            ids = self.tokeniser.code(first, self.tokeniser.encode(first, batch["image"])).ids
        return ids.reshape(len(ids), -1).astype(jnp.int32)

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

    def draw(
        self, parts: Parts, words: Sequence[str], *, seed: int, sampler: Any = None, batch_size: int = 64
    ) -> Int[np.ndarray, "N h w *Q"]:
        ids = super().draw(parts, words, seed=seed, sampler=sampler, batch_size=batch_size)
        shape = self.tokeniser.id_shape
        return ids.reshape(len(ids), *(ids.shape[1:3] if ids.ndim > 2 else shape[:2]), *shape[2:])

    def drawn_from(self, parts: Parts, codes: Int[np.ndarray, "N h w *Q"]) -> Float[np.ndarray, "N H W C"]:
        return self.tokeniser.drawn_from_ids(self.first_stage.parts(parts.fixed["first_stage"]), codes)

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
