"""Pictures id by id: the autoregressive second stage.

    loss = - (1/N) sum_i log p(id_i | prefix, id_1 .. id_{i-1})

(Esser et al. 2021, arXiv:2012.09841, section 3.2.) The network is the transformer of GPT-2, as in taming-transformers,
or that of Llama, as in LlamaGen (Sun et al. 2024, arXiv:2406.06525), whose positions however are of two dimensions.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.language.decoding import advance, prefill
from genjax.language.logits_guidance import GuidedCache, guided
from genjax.language.sliding_window import slide
from genjax.models.decoder import Decoder
from genjax.models.gpt import GPT
from genjax.runs.parts import Parts
from genjax.tasks.code_sampling import AutoregressiveSampler
from genjax.tasks.discrete_second_stage import DiscreteSecondStage
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE

__all__ = ["Autoregressive"]


@dataclass(frozen=True, kw_only=True)
class Autoregressive(DiscreteSecondStage):
    """A system that draws one id after the other."""

    model: GPT | Decoder
    sampler: AutoregressiveSampler = field(default=AutoregressiveSampler(), metadata=FREE)
    corruption: float = 0.0
    """Share of the ids in whose place one of all is read in training (1 - pkeep of taming-transformers)."""

    @property
    def row_length(self) -> int:
        """Tokens that the network sees of a picture: all but the last, which nothing follows."""
        return super().row_length - 1

    def check(self) -> None:
        if not 0 <= self.corruption < 1:
            raise InputError(f"corruption is a share of the ids, from 0 and below 1, not {self.corruption}")
        super().check()
        if not getattr(self.model, "causal", True):
            raise InputError("model.causal is False, and what is drawn one id after the other cannot see later ones")

    def check_sampler(self, sampler: AutoregressiveSampler) -> None:
        self.check_guidance(sampler.guidance)
        if sampler.grid is None:
            return
        window = self.tokeniser.id_shape
        if self.levels > 1:
            raise InputError(f"sampler.grid is of one id for each place, and this first stage has {self.levels}")
        if min(np.subtract(sampler.grid, window)) < 0:
            raise InputError(
                f"sampler.grid is {sampler.grid[0]}x{sampler.grid[1]} ids, and the window of this run is"
                f" {window[0]}x{window[1]}: take as many at least"
            )

    def losses(
        self, parts: Parts, prefix: Int[Array, "B C"], ids: Int[Array, "B N"], keys: Key[Array, " B"], *,
        training: bool = True,
    ) -> Float[Array, " B"]:  # fmt: skip
        """The cross-entropy of each row, in nats for each id."""
        read = ids
        if training and self.corruption:
            hit_keys, id_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            hit = jax.vmap(lambda key: jax.random.bernoulli(key, self.corruption, ids.shape[1:]))(hit_keys)
            other = jax.vmap(lambda key: jax.random.randint(key, ids.shape[1:], 0, self.size))(id_keys)
            read = jnp.where(hit, other, ids)
        logits = self.logits(parts.trained, prefix, read)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean(axis=1)

    def logits(
        self, trained: PyTree[Array], prefix: Int[Array, "B C"], ids: Int[Array, "B N"]
    ) -> Float[Array, "B N K"]:
        """The logits of each id by the prefix and those before it; float32."""
        row = jnp.concatenate([self.prefix_tokens(prefix), self.tokens(ids)], axis=1)[:, :-1]
        policy = POLICIES[self.train.precision]
        logits = self.model.apply({"params": cast(trained["model"], policy.compute)}, row)
        return self.logits_of_ids(logits[:, prefix.shape[1] - 1 :].astype(policy.accumulate))

    # ------------------------------------------------------------------ sampling

    def draw_rows(
        self,
        trained: PyTree[Array],
        prefix: Int[Array, "B C"],
        keys: Key[Array, " B"],
        sampler: AutoregressiveSampler,
        numbers: dict[str, Float[Array, ""]],
    ) -> Int[Array, "B N"] | Int[Array, "B H W"]:
        choose, rows, length = sampler.choose(), len(prefix), self.prefix_length
        if sampler.grid is not None:

            def seen_in_window(seen):
                ids = seen.reshape(len(seen), -1)
                scale = numbers["guidance"] if sampler.leads else None
                return self.led(partial(self.logits, trained), prefix, ids, scale)

            return slide(seen_in_window, choose, keys, sampler.grid, self.tokeniser.id_shape, before=length)
        compute = POLICIES[self.train.precision].compute
        network = Partial(_ReadIds(self), self.model.reader(cast(trained["model"], compute)))
        cache = self.model.empty_cache(2 * rows if sampler.leads else rows, self.row_length, compute)
        if sampler.leads:
            network = guided(network, self.condition.null(self.pictures), numbers["guidance"])
            cache = GuidedCache(cache, jnp.zeros(rows, jnp.int32))
        state = prefill(network, cache, prefix, jnp.full(rows, length))
        return advance(network, choose, keys, state, steps=self.ids)[1]


@dataclass(frozen=True)
class _ReadIds:
    """The network as one of prefixes and ids, whose tokens it finds by their place, giving the logits of ids."""

    task: Autoregressive

    def __call__(self, read, ids: Int[Array, "B T"], *, cache):
        task, place = self.task, cache.length - self.task.prefix_length
        is_prefix = place[:, None] + jnp.arange(ids.shape[1]) < 0
        logits, cache = read(jnp.where(is_prefix, task.prefix_tokens(ids), task.tokens(ids, place)), cache=cache)
        return task.logits_of_ids(logits, place + 1), cache
