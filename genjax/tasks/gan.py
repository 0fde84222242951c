"""Generative adversarial networks (Goodfellow et al. 2014): a generator and a critic, composed.

    min over G, max over D of   E objective(D(x), D(G(z)))  -  penalty(D),        z ~ N(0, I)

Objective, penalty and constraint come from `genjax.adversarial`, the networks from `genjax.models`; any goes with any.
The two players move by gradients of one forward pass, the generator at every `generator_every`-th step. Rows are points
of the plane or pictures, with the label of their class where the networks have classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.adversarial.constraints import Constraint, Unconstrained, projected_updates
from genjax.adversarial.latents import truncated_normal
from genjax.adversarial.objectives import NonSaturating, Objective
from genjax.adversarial.penalties import R1, Penalty
from genjax.data import Densities, LabelledImages, in_blocks, stacked
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.models.critics import DCGANCritic, MLPCritic, ResNetCritic
from genjax.models.generators import DCGANGenerator, MLPGenerator, ResNetGenerator
from genjax.parallel.rules import by_rows, unbox
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.tasks.gan_requests import DrawSamples, JudgePictures, JudgePoints
from genjax.training.optimizer import Adam, Optimizer
from genjax.training.players import Player
from genjax.training.precision import POLICIES, cast
from genjax.training.task import Sums, Task

__all__ = ["GAN", "Projected"]


@dataclass(frozen=True)
class Projected:
    """An optimiser after whose every step the parameters are moved back to where a constraint allows them."""

    optimizer: Optimizer
    constraint: Constraint

    def schedule(self, steps: int) -> optax.Schedule:
        return self.optimizer.schedule(steps)

    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.chain(self.optimizer.build(steps), projected_updates(self.constraint.project))


@dataclass(frozen=True, kw_only=True)
class GAN(Task):
    """A game of two networks, of which one learns to draw."""

    generator: MLPGenerator | DCGANGenerator | ResNetGenerator = field(default_factory=DCGANGenerator)
    """Draws rows from latents."""
    critic: MLPCritic | DCGANCritic | ResNetCritic = field(default_factory=DCGANCritic)
    """Scores rows, real and drawn."""
    latent: int = 64
    """Number of coordinates of z."""
    objective: Objective = NonSaturating()
    """What either player loses by the scores."""
    penalty: Penalty = R1()
    """What the critic pays for its slope."""
    constraint: Constraint = Unconstrained()
    """Where the critic's parameters are kept."""
    generator_every: int = 1
    """Steps of the critic for one of the generator."""
    optimizer: Optimizer = Adam(learning_rate=2e-4, warmup_steps=0, b1=0.0, b2=0.99, clip_norm=None)
    """The generator's."""
    critic_optimizer: Optimizer = Adam(learning_rate=2e-4, warmup_steps=0, b1=0.0, b2=0.99, clip_norm=None)
    """The critic's."""
    data: LabelledImages | Densities

    @property
    def num_classes(self) -> int:
        """Classes that a sample can be asked for; 0 for none."""
        return self.generator.num_classes

    @property
    def draws_points(self) -> bool:
        """Whether a sample is a point of the plane, and not a picture."""
        return not hasattr(self.data, "image_shape")

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        if self.latent < 1:
            raise InputError(f"latent is the number of coordinates of z, at least 1, not {self.latent}")
        if self.generator_every < 1:
            raise InputError(
                f"generator_every is a number of the critic's steps, at least 1, not {self.generator_every}"
            )
        if self.critic.num_classes != self.num_classes:
            raise InputError(
                f"generator.num_classes is {self.num_classes} and critic.num_classes is {self.critic.num_classes}:"
                " both players have the same classes, or none"
            )
        known = 0 if self.draws_points else len(self.data.class_names)
        if self.num_classes not in (0, known):
            raise InputError(f"generator.num_classes is {self.num_classes}, and the data has {known} classes")
        super().check()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one row of the data."""
        return (2,) if self.draws_points else tuple(self.data.image_shape)

    # ------------------------------------------------------------------ training

    def init_generator(self, key: Key[Array, ""]) -> tuple[PyTree[Array], Array]:
        """Fresh parameters, and what they draw from z = 0."""
        output, variables = self.generator.init_with_output(key, jnp.zeros((1, self.latent)), self._label(1))
        return variables["params"], output

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"critic": ..., "generator": ...}.

        Raises InputError where the networks do not fit each other or the data.
        """
        generator_key, critic_key, constraint_key = jax.random.split(key, 3)
        generator, drawn = self.init_generator(generator_key)
        if drawn.shape[1:] != self.sample_shape:
            raise InputError(
                f"the generator draws arrays of shape {drawn.shape[1:]}, and those of the data have {self.sample_shape}"
            )
        rows = jnp.zeros((1, *self.sample_shape))
        critic = self.critic.init(critic_key, rows, self._label(1))["params"]
        state = self.constraint.initial(unbox(critic), constraint_key)
        return Parts({"critic": critic, "generator": generator}, {}, {"constraint": state} if state else {})

    def _label(self, rows: int) -> Int[Array, " B"] | None:
        return jnp.zeros(rows, jnp.int32) if self.num_classes else None

    def players(self) -> Mapping[str, Player]:
        return {
            "critic": Player(Projected(self.critic_optimizer, self.constraint)),
            "generator": Player(self.optimizer, self.generator_every),
        }

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A point or a picture, and its class where there is one."""
        row = {"x": example["point"] if self.draws_points else example["image"]}
        return row | {"label": np.int32(example["label"])} if self.num_classes else row

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """Both players' losses, and the mean scores of real and drawn rows."""
        latent_keys, penalty_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        z = jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(latent_keys)
        label, real = batch.get("label"), batch["x"]
        fake = self.draw(parts.trained["generator"], z, label)
        score = partial(self.score, parts, label=label)
        real_scores, fake_scores = score(real), score(fake)
        critic = self.objective.critic(real_scores, fake_scores)
        # The penalty is the critic's alone: where drawn rows come from is none of its business.
        critic = critic + self.penalty(score, real, jax.lax.stop_gradient(fake), penalty_keys)
        generator = self.objective.generator(real_scores, fake_scores)
        rows = jnp.float32(len(real))
        return Sums(
            {"critic": critic.sum() / totals["rows"], "generator": generator.sum() / totals["rows"]},
            {"score_of_data": (_total(real_scores), rows), "score_of_samples": (_total(fake_scores), rows)},
        )

    def advance(self, parts: Parts, statistics: PyTree[Array]) -> PyTree[Array]:
        if "constraint" not in parts.variables:
            return parts.variables
        return {"constraint": self.constraint.advance(parts.trained["critic"], parts.variables["constraint"])}

    # ------------------------------------------------------------------ the networks, in the precision of the policy

    def draw(
        self, params: PyTree[Array], z: Float[Array, "B Z"], label: Int[Array, " B"] | None
    ) -> Float[Array, "B *shape"]:
        """What the generator makes of latents, float32."""
        policy = POLICIES[self.train.precision]
        return self.generator.apply({"params": cast(params, policy.compute)}, z.astype(policy.compute), label).astype(
            policy.accumulate
        )

    def score(
        self, parts: Parts, x: Float[Array, "B *shape"], label: Int[Array, " B"] | None = None
    ) -> Float[Array, "B *patches"]:
        """The critic's scores, float32, under its constraint."""
        policy = POLICIES[self.train.precision]
        params = self.constraint.applied(parts.trained["critic"], parts.variables.get("constraint", {}))
        scores = self.critic.apply({"params": cast(params, policy.compute)}, x.astype(policy.compute), label)
        return scores.astype(policy.accumulate)

    # ------------------------------------------------------------------ sampling

    def latents(self, seed: int, number: int, truncation: float | None = None) -> Float[np.ndarray, "N Z"]:
        """z of samples 0 to N - 1, each a function of the seed and its place; redrawn beyond `truncation`, if given."""
        limit = np.inf if truncation is None else truncation
        draw = jax.vmap(lambda key: truncated_normal(key, (self.latent,), limit))
        return np.asarray(draw(row_keys(seed, jnp.arange(number))))

    def sample(
        self,
        params: PyTree[Array],
        z: Float[np.ndarray, "N Z"],
        labels: Int[np.ndarray, " N"] | None = None,
        *,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "N *shape"]:
        """What the generator with the parameters `params` makes of each latent."""
        if self.num_classes and labels is None:
            labels = np.arange(len(z)) % self.num_classes
        draw = partial(by_rows, partial(_draw, self), params)
        return in_blocks(draw, z, labels, size=min(batch_size, len(z)))

    # ------------------------------------------------------------------ what people look at

    def validate(self, parts: Parts) -> dict[str, float]:
        """Mean scores of 512 training and held-out rows at most, and of as many samples.

        A critic that tells training rows from held-out ones has learnt them by heart.
        """

        def mean_score(x, labels):
            return float(by_rows(partial(_scores, self), parts, x, labels).mean())

        found = {}
        for split, name in (("train", "data"), ("test", "held_out")):
            batch = stacked(islice(self.fixed_rows(split), 512))
            found[f"validation_score_of_{name}"] = mean_score(batch["x"], batch.get("label"))
        labels = np.arange(512) % self.num_classes if self.num_classes else None
        samples = self.sample(parts.trained["generator"], self.latents(0, 512), labels)
        return found | {"validation_score_of_samples": mean_score(samples, labels)}

    def request(self, door: Door) -> Request:
        """Samples, or figures of samples."""
        if door == "evaluate":
            return JudgePoints() if self.draws_points else JudgePictures()
        return DrawSamples(num=2500 if self.draws_points else 16 if door == "sample" else 40)


@partial(jax.jit, static_argnums=0)
def _draw(task: GAN, params, z, labels):
    return task.draw(params, z, labels)


@partial(jax.jit, static_argnums=0)
def _scores(task: GAN, parts, x, labels):
    return task.score(parts, x, labels)


def _total(scores: Array) -> Array:
    """The sum over rows of their scores, a mean over patches where there are any."""
    return scores.reshape(len(scores), -1).mean(axis=1).sum()
