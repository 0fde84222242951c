"""Image tokenisers: an autoencoder, a bottleneck, and perhaps a critic, composed.

    z = E(x),    code = bottleneck(z),    y = G(code)
    autoencoder lowers    |x - y| + perceptual(x, y) + losses of the bottleneck + w lambda r  generator's loss(D(y))
    critic lowers         critic's loss(D(x), D(y)) + penalty + LeCam

A quantiser as the bottleneck makes it VQGAN (Esser et al. 2021, arXiv:2012.09841), or without a critic VQ-VAE (van den
Oord et al. 2017); a Gaussian posterior makes it the autoencoder of latent diffusion (Rombach et al. 2022,
arXiv:2112.10752). Any quantiser goes with any objective.

lambda is VQGAN's adaptive weight, |grad_K (|x - y| + perceptual)| / |grad_K generator's loss| at the last kernel K. The
gradients are those of the whole batch, which are known after a step: so it is the weight of the step before. r rises
from 0 to 1 over `adversarial_ramp` steps from step `adversarial_start` on, and the critic learns from the first step:
in VQGAN's code the critic's own loss is switched on with its term, which then is that of an untrained critic. Skipped
steps do not count.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.adversarial.adaptive import adaptive_weight, kernel_gradients
from genjax.adversarial.lecam import LeCam
from genjax.adversarial.objectives import Hinge, Objective
from genjax.adversarial.penalties import NoPenalty, Penalty
from genjax.data import LabelledImages, in_blocks
from genjax.errors import InputError
from genjax.metrics.distortion import psnr
from genjax.models.autoencoder import Autoencoder
from genjax.models.patch_critic import PatchCritic
from genjax.parallel.rules import by_rows
from genjax.quantisation.posterior import Posterior
from genjax.quantisation.quantiser import Quantised, Quantiser
from genjax.quantisation.usage import count, usage
from genjax.runs.checkpoints import fingerprint
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.tasks.perceptual import Perceptual
from genjax.tasks.tokeniser_requests import JudgeReconstructions, Reconstruct
from genjax.training.optimizer import Adam, Optimizer
from genjax.training.players import Player
from genjax.training.precision import POLICIES, cast
from genjax.training.task import Sums, Task

__all__ = ["Tokeniser"]

VALIDATED = 512
"""Held-out pictures at most that are looked at while a run trains."""


@dataclass(frozen=True, kw_only=True)
class Tokeniser(Task):
    """An autoencoder that learns to say little of a picture and to draw it again."""

    model: Autoencoder
    bottleneck: Quantiser | Posterior
    """What stands between encoder and decoder: a quantiser, or a Gaussian posterior."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean square error of the pixels."""
    perceptual: Perceptual | None = None
    """What pictures look like to a network that holds still; None for pixels alone."""
    critic: PatchCritic | None = None
    """Tells pictures from reconstructions; None for no adversarial term."""
    objective: Objective = Hinge()
    """What either player loses by the critic's scores (VQGAN's code halves the critic's)."""
    penalty: Penalty = NoPenalty()
    """What the critic pays for its slope (MAGVIT: R1 with a weight of 10)."""
    lecam: LeCam | None = None
    """What it pays for scores far from those of the other side."""
    adversarial_weight: float = 0.8
    """Weight w of the adversarial term (0.75 for depth maps, 0.5 in latent diffusion)."""
    adaptive: bool = True
    """Whether it is multiplied by lambda too."""
    adaptive_most: float = 1e4
    """Largest lambda. Latent diffusion sums errors over a picture: its 1e4 is 1e4 / numbers of a picture here."""
    adversarial_start: int = 0
    """Step from which the adversarial term counts; the critic learns from the first."""
    adversarial_ramp: int = 0
    """Steps over which it comes to its whole weight."""
    optimizer: Optimizer = Adam(learning_rate=1e-4, warmup_steps=0, b1=0.5, b2=0.9, clip_norm=None)
    """The autoencoder's; VQGAN has a learning rate of 4.5e-6 times the batch."""
    critic_optimizer: Optimizer = Adam(learning_rate=1e-4, warmup_steps=0, b1=0.5, b2=0.9, clip_norm=None)
    """The critic's."""
    data: LabelledImages

    # ------------------------------------------------------------------ what it is

    @property
    def is_discrete(self) -> bool:
        """Whether a picture becomes ids, and not vectors."""
        return not isinstance(self.bottleneck, Posterior)

    @property
    def couples_rows(self) -> bool:
        """Whether the critic takes its moments over the batch."""
        return self.critic is not None and self.critic.norm == "batch"

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(h, w, D) of the code of a picture of the data."""
        height, width, _ = self.data.image_shape
        return height // self.model.stride, width // self.model.stride, self.model.code_width

    @property
    def id_shape(self) -> tuple[int, ...]:
        """(h, w) of the ids of a picture, (h, w, Q) of sums of codes, (h, w, D) of vectors."""
        *place, width = self.code_shape
        return (*place, *([] if self.levels == 1 else [self.levels if self.is_discrete else width]))

    @property
    def levels(self) -> int:
        """Ids for each position; 0 of a Gaussian posterior."""
        return self.bottleneck.ids_per_position if self.is_discrete else 0

    @property
    def bits_per_position(self) -> float:
        """Bits that the ids of a position take, written down alike; 0 of a Gaussian posterior."""
        return self.levels * float(np.log2(self.bottleneck.size)) if self.is_discrete else 0.0

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        height, width, channels = self.data.image_shape
        if channels != self.model.image_channels:
            raise InputError(
                f"model.image_channels is {self.model.image_channels}, and the images of the data have {channels}"
            )
        if height % self.model.stride or width % self.model.stride:
            raise InputError(
                f"images of {height}x{width} are not divided by the stride of the model, {self.model.stride}: take"
                " images of other sides, or fewer model.widths"
            )
        if self.model.moments == self.is_discrete:
            wanted = "a code, and model.moments False" if self.is_discrete else "moments, and model.moments True"
            raise InputError(f"a bottleneck of {type(self.bottleneck).__name__} takes {wanted}")
        if self.is_discrete and self.bottleneck.width != self.model.code_width:
            channels = "z_channels" if self.model.code_channels is None else "code_channels"
            raise InputError(
                f"codes of {type(self.bottleneck).__name__} have {self.bottleneck.width} coordinates, and those of the"
                f" model {self.model.code_width}: take model.{channels} of {self.bottleneck.width}"
            )
        if self.critic is None and (self.lecam is not None or self.penalty != NoPenalty()):
            raise InputError("lecam and penalty are what a critic pays, and there is no critic")
        if self.couples_rows and self.penalty != NoPenalty():
            raise InputError(
                "penalty is of the slope of each row's score, and critic.norm batch mixes rows: take group"
            )
        slopes = self.adaptive or self.penalty != NoPenalty()
        if self.critic is not None and slopes and self.train.precision == "fp16":
            raise InputError(
                "train.precision is fp16, in which the gradients that adaptive and penalty take inside the loss vanish:"
                " take bf16"
            )
        if self.train.start and "codebook" in self._quantiser_shapes()[1]:
            kind = type(self.bottleneck).__name__
            raise InputError(
                f"train.start gives what gradients move, which is not the codebook of {kind}: that would begin"
                " anew: take VQ or FSQ"
            )
        for name in ("adversarial_weight", "adversarial_start", "adversarial_ramp", "adaptive_most"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is 0 or more, not {getattr(self, name)}")
        self.sources()
        super().check()

    # ------------------------------------------------------------------ training

    def _quantiser_shapes(self) -> tuple[PyTree[Array], PyTree[Array]]:
        return jax.eval_shape(self.bottleneck.init, jax.random.key(0)) if self.is_discrete else ({}, {})

    def sources(self) -> Mapping[str, Source]:
        return {} if self.perceptual is None else {"perceptual": self.perceptual.source()}

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"autoencoder": {"network", "quantiser"}, "critic"}, what is empty left out."""
        network_key, quantiser_key, critic_key, perceptual_key = jax.random.split(key, 4)
        image = jnp.zeros((1, *self.data.image_shape))
        own, variables = {"network": self.model.init(network_key, image)["params"]}, {}
        if self.is_discrete:
            params, state = self.bottleneck.init(quantiser_key)
            own |= {"quantiser": params} if params else {}
            variables |= {"quantiser": state} if state else {}
        trained = {"autoencoder": own}
        if self.critic is not None:
            trained["critic"] = self.critic.init(critic_key, image)["params"]
            variables |= {"step": jnp.zeros((), jnp.int32)}
            variables |= {"adaptive_weight": jnp.zeros(())} if self.adaptive else {}
            variables |= {"anchors": self.lecam.initial()} if self.lecam is not None else {}
        fixed = {} if self.perceptual is None else {"perceptual": self.perceptual.init(perceptual_key, image)}
        return Parts(trained, fixed, variables)

    def players(self) -> Mapping[str, Player]:
        critic = {} if self.critic is None else {"critic": Player(self.critic_optimizer)}
        return {"autoencoder": Player(self.optimizer)} | critic

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture."""
        return {"image": example["image"]}

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The players' losses, and what each is made of."""
        code_keys, penalty_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        image = batch["image"]
        code = self.code(parts, self.encode(parts, image), code_keys)
        features = self.features(parts, code.z_q)
        network = parts.trained["autoencoder"]["network"]
        drawn = self.to_image(network["conv_out"], features)
        terms = self.unlikeness(parts, image, drawn) | {name: _per_row(loss) for name, loss in code.losses.items()}
        rows = jnp.float32(len(image))
        own = sum(terms.values())
        statistics = {"quantiser": code.statistics} if jax.tree.leaves(code.statistics) else {}
        if self.critic is None:
            return Sums({"autoencoder": own.sum() / totals["rows"]}, _told(terms, rows), statistics)

        score = partial(self.score, parts.trained["critic"])
        real_scores, fake_scores = score(image), score(drawn)
        terms["adversarial"] = self.objective.generator(real_scores, fake_scores)
        own = own + self.adversarial_scale(parts.variables) * terms["adversarial"]
        critic = self.objective.critic(real_scores, fake_scores)
        critic = critic + self.penalty(score, image, jax.lax.stop_gradient(drawn), penalty_keys)
        if self.lecam is not None:
            critic = critic + self.lecam(real_scores, fake_scores, parts.variables["anchors"])
        terms |= {"score_of_data": _per_row(real_scores), "score_of_reconstructions": _per_row(fake_scores)}
        means = {"real": terms["score_of_data"], "fake": terms["score_of_reconstructions"]}
        statistics["scores"] = {name: mean.sum() / totals["rows"] for name, mean in means.items()}
        if self.adaptive:
            still, fixed, theirs, reals = jax.lax.stop_gradient(
                (features, network["conv_out"], parts.trained["critic"], real_scores)
            )

            def of_kernel(kernel):
                drawn = self.to_image({**fixed, "kernel": kernel}, still)
                adversarial = self.objective.generator(reals, self.score(theirs, drawn))
                unlike = sum(self.unlikeness(parts, image, drawn).values())
                return unlike.sum() / totals["rows"], adversarial.sum() / totals["rows"]

            statistics["kernel_gradients"] = kernel_gradients(of_kernel, fixed["kernel"])
        losses = {"autoencoder": own.sum() / totals["rows"], "critic": critic.sum() / totals["rows"]}
        told = _told(terms, rows) | {"adversarial_scale": (self.adversarial_scale(parts.variables) * rows, rows)}
        return Sums(losses, told, statistics)

    def adversarial_scale(self, variables: PyTree[Array]) -> Float[Array, ""]:
        """w lambda r: what the adversarial term is multiplied by at this step."""
        since = (variables["step"] - self.adversarial_start).astype(jnp.float32)
        share = jnp.clip(since / self.adversarial_ramp, 0, 1) if self.adversarial_ramp else jnp.float32(since >= 0)
        return self.adversarial_weight * share * (variables["adaptive_weight"] if self.adaptive else 1.0)

    def advance(self, parts: Parts, statistics: PyTree[Array]) -> PyTree[Array]:
        after = dict(parts.variables)
        if "quantiser" in after:
            after["quantiser"] = self.bottleneck.advance(after["quantiser"], statistics.get("quantiser", {}))
        if "step" in after:
            after["step"] = after["step"] + 1
        if "adaptive_weight" in after:
            after["adaptive_weight"] = adaptive_weight(*statistics["kernel_gradients"], most=self.adaptive_most)
        if "anchors" in after:
            after["anchors"] = self.lecam.advance(after["anchors"], statistics["scores"])
        return after

    def unlikeness(
        self, parts: Parts, image: Float[Array, "B H W C"], drawn: Float[Array, "B H W C"]
    ) -> dict[str, Float[Array, " B"]]:
        """How unlike each picture and its reconstruction are: the mean error of its numbers, and how it looks."""
        difference = image - drawn
        terms = {"reconstruction": _per_row(jnp.abs(difference) if self.reconstruction == "l1" else difference**2)}
        if self.perceptual is not None:
            distance = self.perceptual.distance(parts.fixed["perceptual"], image, drawn)
            terms["perceptual"] = self.perceptual.weight * distance
        return terms

    # ------------------------------------------------------------------ the networks, in the precision of the policy

    def encode(self, parts: Parts, image: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """What the encoder says of pictures: vectors, or moments; float32."""
        return self._applied("encode", parts.trained["autoencoder"]["network"], image)

    def code(self, parts: Parts, said: Float[Array, "B H W C"], keys: Key[Array, " B"] | None = None) -> Quantised:
        """The code of what the encoder said. That of a Gaussian posterior, which has no ids, is drawn where there are
        keys, and its mean where there are none; its loss is in nats for each number of a picture."""
        if self.is_discrete:
            return self.bottleneck(said, *self._quantiser(parts))
        code = self.bottleneck.mean(said) if keys is None else self.bottleneck.draw(said, keys)
        numbers = self.model.stride**2 * self.model.image_channels
        losses = {"divergence": self.bottleneck.weight * self.bottleneck.divergence(said) / numbers}
        return Quantised(code, jnp.zeros((*said.shape[:-1], 0), jnp.int32), losses)

    def codes(self, parts: Parts, ids: Int[Array, "B H W *Q"]) -> Float[Array, "B H W D"]:
        """The codes that ids stand for."""
        return self.bottleneck.codes(ids, *self._quantiser(parts))

    def features(self, parts: Parts, code: Float[Array, "B H W D"]) -> Float[Array, "B H2 W2 C2"]:
        """What the last convolution sees of codes."""
        return self._applied("features", parts.trained["autoencoder"]["network"], code)

    def to_image(self, conv_out: PyTree[Array], features: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        """Pictures of features by the parameters of the last convolution; not clipped."""
        return self._applied("to_image", {"conv_out": conv_out}, features)

    def decode(self, parts: Parts, code: Float[Array, "B H W D"]) -> Float[Array, "B H2 W2 C2"]:
        """Pictures of codes; not clipped."""
        return self._applied("decode", parts.trained["autoencoder"]["network"], code)

    def score(self, critic: PyTree[Array], x: Float[Array, "B H W C"]) -> Float[Array, "B *patches"]:
        """The critic's scores, float32."""
        policy = POLICIES[self.train.precision]
        return self.critic.apply({"params": cast(critic, policy.compute)}, x.astype(policy.compute))

    def _applied(self, method: str, params: PyTree[Array], x: Array) -> Array:
        policy = POLICIES[self.train.precision]
        said = self.model.apply({"params": cast(params, policy.compute)}, x.astype(policy.compute), method=method)
        return said.astype(policy.accumulate)

    def _quantiser(self, parts: Parts) -> tuple[PyTree[Array], PyTree[Array]]:
        return parts.trained["autoencoder"].get("quantiser", {}), parts.variables.get("quantiser", {})

    # ------------------------------------------------------------------ pictures and their codes, on the host

    def vectors_of(self, parts: Parts, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N h w D"]:
        """What the bottleneck sees of pictures (their means, of a Gaussian posterior), in blocks of 64."""
        return _in_blocks(_vectors, self, parts, images)

    def ids_of(self, parts: Parts, images: Float[np.ndarray, "N H W C"]) -> Int[np.ndarray, "N h w *Q"]:
        """The ids of pictures, of a quantiser."""
        return self.ids_from(parts, self.vectors_of(parts, images))

    def ids_from(self, parts: Parts, vectors: Float[np.ndarray, "N h w D"]) -> Int[np.ndarray, "N h w *Q"]:
        """The ids of what the quantiser sees of pictures."""
        return _in_blocks(_ids, self, parts, vectors)

    def drawn_from(self, parts: Parts, vectors: Float[np.ndarray, "N h w D"]) -> Float[np.ndarray, "N H W C"]:
        """Pictures of vectors, which are quantised first where there is a quantiser; clipped to [-1, 1]."""
        return _in_blocks(_drawn, self, parts, vectors)

    def drawn_from_ids(self, parts: Parts, ids: Int[np.ndarray, "N h w *Q"]) -> Float[np.ndarray, "N H W C"]:
        """Pictures of ids; clipped to [-1, 1]."""
        return _in_blocks(_drawn_from_ids, self, parts, ids)

    def fingerprint(self, parts: Parts) -> int:
        """Of all that codes depend on."""
        return fingerprint((parts.trained["autoencoder"], parts.variables.get("quantiser", {})))

    def counts_of(self, ids: Int[np.ndarray, "N h w *Q"]) -> Int[np.ndarray, "Q K"]:
        """How often each id comes at each level of these; counts add up."""
        return np.stack([count(level, self.bottleneck.size) for level in ids.reshape(-1, self.levels).T])

    # ------------------------------------------------------------------ what people look at

    def pictures(self, split: Literal["train", "test"], most: int | None = None) -> Float[np.ndarray, "N H W C"]:
        """The first pictures of a split that can be read, all of them by default."""
        return np.stack([row["image"] for row in islice(self.fixed_rows(split), most)])

    def picture_blocks(self, split: Literal["train", "test"]) -> Iterator[Float[np.ndarray, "N H W C"]]:
        """All of them, 512 at a time."""
        rows = self.fixed_rows(split)
        while block := [row["image"] for row in islice(rows, VALIDATED)]:
            yield np.stack(block)

    def validate(self, parts: Parts) -> dict[str, float]:
        """PSNR of 512 held-out pictures at most, and how much of the codebook their ids use."""
        images = self.pictures("test", VALIDATED)
        vectors = self.vectors_of(parts, images)
        figures = {"validation_psnr": float(psnr(images, self.drawn_from(parts, vectors)).mean())}
        if self.is_discrete:
            levels = [usage(counts) for counts in self.counts_of(self.ids_from(parts, vectors))]
            figures["validation_usage"] = float(np.mean([level.usage for level in levels]))
            figures["validation_perplexity"] = float(np.mean([level.perplexity for level in levels]))
        return figures

    def request(self, door: Door) -> Request:
        """Pictures beside their reconstructions, or figures of them."""
        return JudgeReconstructions() if door == "evaluate" else Reconstruct(num=16 if door == "sample" else 20)


def _in_blocks(function, task: Tokeniser, parts: Parts, rows: np.ndarray) -> np.ndarray:
    return in_blocks(partial(by_rows, partial(function, task), parts), rows, size=min(64, len(rows)))


@partial(jax.jit, static_argnums=0)
def _vectors(task: Tokeniser, parts, images):
    said = task.encode(parts, images)
    return said if task.is_discrete else task.bottleneck.mean(said)


@partial(jax.jit, static_argnums=0)
def _ids(task: Tokeniser, parts, vectors):
    return task.code(parts, vectors).ids


@partial(jax.jit, static_argnums=0)
def _drawn(task: Tokeniser, parts, vectors):
    return jnp.clip(task.decode(parts, task.code(parts, vectors).z_q if task.is_discrete else vectors), -1, 1)


@partial(jax.jit, static_argnums=0)
def _drawn_from_ids(task: Tokeniser, parts, ids):
    return jnp.clip(task.decode(parts, task.codes(parts, ids)), -1, 1)


def _per_row(values: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    return values.reshape(len(values), -1).mean(axis=1)


def _told(terms: Mapping[str, Float[Array, " B"]], rows: Float[Array, ""]) -> dict[str, tuple[Array, Array]]:
    return {name: (term.sum(), rows) for name, term in terms.items()}
