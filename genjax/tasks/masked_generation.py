"""Pictures in a few steps: the masked second stage, MaskGIT (Chang et al. 2022, arXiv:2202.04200).

    loss = - mean over masked places of log p(id | prefix, ids that are not masked)

of a network that sees every place. Each row counts by its own mean: how many of its places are masked is drawn, and
MaskGIT's code divides by the number in the whole batch.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.language.masked_decoding import MASKED, draw_masks, masked_counts, reveal
from genjax.models.gpt import GPT
from genjax.runs.parts import Parts
from genjax.tasks.code_sampling import MaskedSampler
from genjax.tasks.discrete_second_stage import DiscreteSecondStage
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE

__all__ = ["MaskedGeneration"]


@dataclass(frozen=True, kw_only=True)
class MaskedGeneration(DiscreteSecondStage):
    """A system that draws all ids at once, and keeps the surest."""

    model: GPT
    """One that is not causal."""
    sampler: MaskedSampler = field(default=MaskedSampler(), metadata=FREE)
    label_smoothing: float = 0.1
    """Share of the wanted probability that is spread over all ids."""

    further_tokens = 1

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is a share, from 0 and below 1, not {self.label_smoothing}")
        if self.model.causal:
            raise InputError("model.causal is True, and a masked network sees every place: take model.causal False")
        super().check()

    def check_sampler(self, sampler: MaskedSampler) -> None:
        self.check_guidance(sampler.guidance)
        masked_counts(self.ids, sampler.steps)

    def losses(
        self, parts: Parts, prefix: Int[Array, "B C"], ids: Int[Array, "B N"], keys: Key[Array, " B"], *,
        training: bool = True,
    ) -> Float[Array, " B"]:  # fmt: skip
        """The cross-entropy of each row, in nats for each masked id; it is smoothed in training alone."""
        hidden = draw_masks(keys, ids.shape[1])
        logits = self.logits(parts.trained, prefix, jnp.where(hidden, MASKED, ids))
        wanted = jax.nn.one_hot(ids, self.size)
        if training:
            wanted = optax.smooth_labels(wanted, self.label_smoothing)
        return (optax.softmax_cross_entropy(logits, wanted) * hidden).sum(axis=1) / hidden.sum(axis=1)

    def logits(
        self, trained: PyTree[Array], prefix: Int[Array, "B C"], known: Int[Array, "B N"]
    ) -> Float[Array, "B N K"]:
        """The logits of each id by the prefix and the ids that are known; float32."""
        tokens = jnp.where(known == MASKED, self.vocabulary, self.tokens(known))
        row = jnp.concatenate([self.prefix_tokens(prefix), tokens], axis=1)
        policy = POLICIES[self.train.precision]
        logits = self.model.apply({"params": cast(trained["model"], policy.compute)}, row)
        return self.logits_of_ids(logits[:, prefix.shape[1] :].astype(policy.accumulate))

    def draw_rows(
        self,
        trained: PyTree[Array],
        prefix: Int[Array, "B C"],
        keys: Key[Array, " B"],
        sampler: MaskedSampler,
        numbers: dict[str, Float[Array, ""]],
    ) -> Int[Array, "B N"]:
        def network(known):
            return self.led(
                partial(self.logits, trained), prefix, known, numbers["guidance"] if sampler.leads else None
            )

        options = {"steps": sampler.steps, "temperature": numbers["choice_temperature"]}
        return reveal(network, sampler.choose(), keys, self.ids, **options)
