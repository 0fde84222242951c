"""Language models: the next token of packed rows, in nats, and texts that go on from a prompt.

    loss = - sum over tokens of log p(token_{t+1} | tokens up to t of the same document)  /  number of those tokens

The number is taken over the whole batch first (`totals`), so that a row of little text weighs what it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.data import Text, Texts, filled, stacked
from genjax.data.text import PADDING
from genjax.errors import InputError
from genjax.keys import check_seed, row_keys
from genjax.language.decoding import Filters, TokenSampler, generate
from genjax.language.losses import bits_per_byte, next_token_loss, shifted_targets
from genjax.metrics.compression import compressed_bits_per_byte
from genjax.models.decoder import Decoder
from genjax.parallel.rules import by_rows
from genjax.runs.outputs import Door, Numbers, Output, Request
from genjax.runs.outputs import Text as Written
from genjax.runs.parts import Parts
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE, Sums, Task

__all__ = ["HeldOut", "LanguageModel", "MeasureText", "WriteText", "held_out_nats"]


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """A system that writes."""

    model: Decoder = field(default_factory=Decoder)
    sampler: TokenSampler = field(default=TokenSampler(temperature=0.8, top_p=0.95), metadata=FREE)
    data: Texts = Text()

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        needed = self.data.tokenizer.vocabulary
        if self.model.vocabulary < needed:
            raise InputError(f"model.vocabulary is {self.model.vocabulary}, and the data has {needed} token ids")
        super().check()

    # ------------------------------------------------------------------ training

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` are the parameters of the network."""
        return Parts(self.model.init(key, jnp.zeros((1, 2), jnp.int32))["params"])

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row of tokens, and the document that each is of."""
        return {"tokens": example["tokens"], "segments": example["segments"]}

    def totals(self, batch: dict[str, Array]) -> PyTree[Array]:
        """The number of tokens that are predicted."""
        return {"tokens": jnp.float32(shifted_targets(batch["tokens"], batch["segments"])[1].sum())}

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The mean loss of a token, in nats."""
        losses, counts = self.token_losses(parts, batch)
        predicted = counts.sum().astype(jnp.float32)
        return Sums({"loss": losses.sum() / totals["tokens"]}, {"tokens": (predicted, predicted / totals["tokens"])})

    def token_losses(self, parts: Parts, batch: dict[str, Array]) -> tuple[Float[Array, "B T"], Array]:
        """(the loss of the token after each token, which of them count)."""
        policy = POLICIES[self.train.precision]
        logits = self.model.apply(
            {"params": cast(parts.trained, policy.compute)}, batch["tokens"], segments=batch["segments"]
        )
        return next_token_loss(logits.astype(policy.accumulate), batch["tokens"], batch["segments"])

    # ------------------------------------------------------------------ writing

    def write(
        self,
        params: PyTree[Array],
        prompts: list[str] | list[bytes],
        *,
        tokens: int,
        seed: int,
        sampler: TokenSampler | None = None,
        chunk: int = 8,
    ) -> Iterator[Int[np.ndarray, "B n"]]:
        """Ids that follow each prompt, `chunk` at a time; row i depends on (seed, i, prompt i) alone.

        An empty prompt begins a document. Raises InputError for what cannot be sampled.
        """
        tokenizer = self.data.tokenizer
        rows = [np.concatenate([[tokenizer.border], tokenizer.encode(prompt)]) for prompt in prompts]
        lengths = np.array([len(row) for row in rows])
        # Lengths are rounded up, so that prompts of about one length share a compilation.
        width = -(-int(lengths.max()) // 32) * 32
        padded = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
        compute = POLICIES[self.train.precision].compute
        cache = self.model.empty_cache(len(rows), width + tokens + chunk, compute)
        network = self.model.reader(cast(params, compute))
        keys = row_keys(jax.random.key(seed), np.arange(len(rows)))
        yield from generate(
            network, sampler or self.sampler, cache, padded, lengths, keys, tokens=tokens, end=tokenizer.border,
            chunk=min(chunk, tokens),
        )  # fmt: skip

    def texts(self, params: PyTree[Array], prompts: list[str], **options) -> Iterator[Written]:
        """One text after another, each streamed as it comes; the options are those of `write`."""
        seed = options.pop("seed")
        for i, prompt in enumerate(prompts):
            ids = (piece[0] for piece in self.write(params, [prompt], seed=seed + i, **options))
            yield Written(prompt, self.data.tokenizer.stream(ids), name=f"{i:04d}")

    # ------------------------------------------------------------------ what people look at

    def validate(self, parts: Parts) -> dict[str, float]:
        """Loss and bits per token of 128 held-out rows at most."""
        source = self.data.source("test")
        nats, count, _ = held_out_nats(self, parts, min(len(source), 128))
        return {"validation_loss": nats / count, "validation_bits_per_token": bits_per_byte(nats, count)}

    def request(self, door: Door) -> Request:
        """Texts after a prompt, bits per byte of all that is held out, or one text of a fixed seed."""
        if door == "evaluate":
            return MeasureText()
        given = {each.name: getattr(self.sampler, each.name) for each in fields(Filters)}
        return WriteText(**given) if door == "sample" else WriteText(**given, max_tokens=200)


@dataclass(frozen=True, kw_only=True)
class WriteText(Filters):
    """Write on from a prompt."""

    prompt: str = ""
    """Beginning of the text; a new document when empty."""
    num: int = 1
    """Number of texts."""
    max_tokens: int = 256
    """Tokens to write at most; a text may end before."""
    seed: int = 0
    """Seed of the draws; text i is that of seed + i."""

    def sampler(self) -> TokenSampler:
        """How tokens are chosen."""
        return TokenSampler(**{each.name: getattr(self, each.name) for each in fields(Filters)})

    def check(self, task: LanguageModel) -> None:
        if self.num < 1 or self.max_tokens < 1:
            raise InputError(f"--num and --max_tokens are at least 1, not {self.num} and {self.max_tokens}")
        check_seed("--seed", self.seed)
        check_seed("--seed of the last text, --seed + --num - 1,", self.seed + self.num - 1)

    def __call__(self, task: LanguageModel, parts: Parts) -> Iterator[Output]:
        yield from task.texts(
            parts.trained, [self.prompt] * self.num, tokens=self.max_tokens, seed=self.seed, sampler=self.sampler()
        )


@dataclass(frozen=True, kw_only=True)
class MeasureText:
    """Measure bits per byte of what is held out, beside gzip and xz."""

    rows: int | None = None
    """Number of held-out rows; all of them when not given."""

    def check(self, task: LanguageModel) -> None:
        if self.rows is not None and self.rows < 1:
            raise InputError(f"--rows is the number of held-out rows, at least 1, not {self.rows}")

    def __call__(self, task: LanguageModel, parts: Parts) -> Iterator[Output]:
        available = len(task.data.source("test"))
        nats, count, rows = held_out_nats(task, parts, min(self.rows or available, available))
        whole = task.data.held_out_bytes()
        figures = {"bits_per_token": bits_per_byte(nats, count)}
        # Of a part, as of what could be read, it is not known which bytes those are that compressors should have.
        if rows == available:
            figures["bits_per_byte"] = bits_per_byte(nats, len(whole))
            figures |= {f"{name}_bits_per_byte": value for name, value in compressed_bits_per_byte(whole).items()}
        yield Numbers(figures | {"nats_per_token": nats / count, "tokens": count, "rows": rows, "bytes": len(whole)})


class HeldOut(NamedTuple):
    """What a language model loses on text that it was not trained on."""

    nats: float
    """The summed loss."""
    tokens: int
    """How many are predicted."""
    rows: int
    """How many were read, which are fewer than were asked for where some cannot be."""


def held_out_nats(task: LanguageModel, parts: Parts, rows: int, *, batch_size: int = 32) -> HeldOut:
    """The loss of the first held-out rows that can be read, `rows` of them at most."""
    held_out, size = islice(task.fixed_rows("test"), rows), min(batch_size, rows)
    nats, count, read = 0.0, 0, 0
    while block := list(islice(held_out, size)):
        batch = {name: filled(array, size) for name, array in stacked(block).items()}
        batch["segments"][len(block) :] = PADDING
        summed, counted = by_rows(partial(_sums, task), parts, batch)
        nats, count, read = nats + float(summed), count + int(counted), read + len(block)
    return HeldOut(nats, count, read)


@partial(jax.jit, static_argnums=0)
def _sums(task: LanguageModel, parts, batch):
    losses, counts = task.token_losses(parts, batch)
    return losses.sum(), counts.sum()
