"""Pictures from vectors that are drawn several at once, each by denoising: the second stage of continuous tokens, MAR
(Li et al. 2024, arXiv:2406.11838).

    loss = mean over masked places i, times and noise of  w(t) |head(x_t, t, z_i) - target(x_i, eps, t)|^2
    z    = transformer(prefix, vectors that are not masked),      x_t = alpha(t) x_i + sigma(t) eps

x_i is the vector of place i: what the bottleneck of the first stage sees of a picture, brought to unit variance by
`space`. Each row counts by its own mean, and several times and noises are drawn for one z (`noises`), which cost
little beside it. Process, solver and all predictions of one vector are those of any denoising. The paper's are
`--process CosineVP --prediction Eps`, with a learned variance, which is not here, and a hundred steps of
`--sampler.solver Ancestral`; its temperature scales the noise of each step, and the sampler's here that of the start.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from genjax.diffusion.guidance import classifier_free_guidance
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import Prediction, SquaredError, Velocity
from genjax.diffusion.process import Process, RectifiedFlow, prior_std
from genjax.diffusion.solvers import integrate
from genjax.diffusion.times import LogitNormal, TimeDensity, open_uniform
from genjax.diffusion.weightings import Unweighted, Weighting
from genjax.errors import InputError, placed
from genjax.language.masked_decoding import draw_masks, high_share, masked_counts, reveal_vectors
from genjax.models.mar import MAR
from genjax.runs.parts import Parts
from genjax.tasks import sampling
from genjax.tasks.code_sampling import MaskedVectorSampler
from genjax.tasks.second_stage import SecondStage
from genjax.tasks.spaces import Latents
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE

__all__ = ["MaskedAutoregressive"]


@dataclass(frozen=True, kw_only=True)
class MaskedAutoregressive(SecondStage):
    """A system that draws vectors by denoising each, told those that are known."""

    model: MAR
    space: Latents = Latents()
    process: Process = RectifiedFlow()
    prediction: Prediction = Velocity()
    weighting: Weighting = Unweighted()
    times: TimeDensity = LogitNormal()
    noises: int = 4
    """Times and noises for each vector in training."""
    sampler: MaskedVectorSampler = field(default=MaskedVectorSampler(), metadata=FREE)

    @property
    def places(self) -> int:
        """N: vectors of a picture."""
        return int(np.prod(self.tokeniser.code_shape[:2]))

    def check_model(self) -> None:
        self.first_stage.check_vectors(self.data)
        if self.noises < 1:
            raise InputError(f"noises is a number of draws, at least 1, not {self.noises}")
        for name, ours, theirs, of in (
            ("vector_width", self.model.vector_width, self.tokeniser.code_shape[2], "numbers of a vector"),
            ("vocabulary", self.model.vocabulary, self.condition.vocabulary(self.pictures), "ids of the condition"),
        ):
            if ours != theirs:
                raise InputError(f"model.{name} is {ours}, and there are {theirs} {of}")
        if not isinstance(self.prediction, SquaredError):
            kind = type(self.prediction).__name__
            raise InputError(f"prediction is {kind}, and a head says one vector of one time: choose another")

    def check_sampler(self, sampler: MaskedVectorSampler) -> None:
        self.check_guidance(sampler.guidance)
        masked_counts(self.places, sampler.steps)
        if sampler.temperature != 1 and sampler.solver.stochastic:
            kind = type(sampler.solver).__name__
            raise InputError(
                f"temperature scales the noise of the start alone, and {kind} draws more: only 1 is accepted"
            )
        with placed("sampler", MaskedVectorSampler):
            self._times(sampler)

    def _times(self, sampler: MaskedVectorSampler) -> Float[np.ndarray, " T"]:
        return sampling.times(sampler.solver, sampler.grid, sampler.denoising_steps, self.process, self.prediction)

    # ------------------------------------------------------------------ training

    def init_model(self, key: Key[Array, ""]) -> PyTree[Array]:
        vectors = jnp.zeros((1, self.places, self.model.vector_width))
        places = jnp.zeros((1, self.places))
        prefix = jnp.zeros((1, self.prefix_length), jnp.int32)
        return self.model.init(key, prefix, vectors, places > 0, vectors, places)["params"]

    def codes_of(self, parts: Parts, batch: dict[str, Array]) -> Float[Array, "B N D"]:
        """x_i of each picture, in the order of reading."""
        vectors = self.space.to_x_0(self.first_stage.vectors(parts.fixed["first_stage"], batch, self.data))
        return vectors.reshape(len(vectors), -1, vectors.shape[-1])

    def losses(
        self, parts: Parts, prefix: Int[Array, "B C"], codes: Float[Array, "B N D"], keys: Key[Array, " B"], *,
        training: bool = True,
    ) -> Float[Array, " B"]:  # fmt: skip
        """The denoising loss of each row, for each masked place."""
        mask_keys, time_keys, noise_keys = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(keys), 1, 0)
        rows, places, width = codes.shape
        hidden = draw_masks(mask_keys, places, high_share)
        z = self.read(parts.trained, prefix, codes, hidden)
        each = self.noises, places
        u = open_uniform(time_keys, each)
        eps = jax.vmap(lambda key: jax.random.normal(key, (*each, width)))(noise_keys)

        def flat(array):
            return jnp.broadcast_to(array, (rows, *each, *array.shape[3:])).reshape(-1, *array.shape[3:])

        losses = denoising_loss(
            lambda x, t: self.denoise(parts.trained, x, t, flat(z[:, None])),
            self.process,
            self.prediction,
            flat(codes[:, None]),
            flat(eps),
            self.times.quantile(flat(u), self.process),
            self.weighting,
        )
        of_places = losses.reshape(rows, *each).mean(axis=1)
        return (of_places * hidden).sum(axis=1) / hidden.sum(axis=1)

    # ------------------------------------------------------------------ the network, in the precision of the policy

    def read(
        self,
        trained: PyTree[Array],
        prefix: Int[Array, "B C"],
        vectors: Float[Array, "B N D"],
        hidden: Bool[Array, "B N"],
    ) -> Float[Array, "B N W"]:
        """z of each place."""
        weights = cast(trained["model"], POLICIES[self.train.precision].compute)
        return self.model.apply({"params": weights}, prefix, vectors, hidden, method="read")

    def denoise(
        self, trained: PyTree[Array], x_t: Float[Array, "M D"], t: Float[Array, " M"], z: Float[Array, "M W"]
    ) -> Float[Array, "M D"]:
        """What the head says of noised vectors; float32."""
        policy = POLICIES[self.train.precision]
        weights = cast(trained["model"], policy.compute)
        return self.model.apply({"params": weights}, x_t, t, z, method="denoise").astype(policy.accumulate)

    # ------------------------------------------------------------------ sampling

    def draw_rows(
        self,
        trained: PyTree[Array],
        prefix: Int[Array, "B C"],
        keys: Key[Array, " B"],
        sampler: MaskedVectorSampler,
        numbers: dict[str, Float[Array, ""]],
    ) -> Float[Array, "B h w D"]:
        """What the first stage draws pictures from; pure."""
        times = self._times(sampler)
        null = jnp.broadcast_to(jnp.asarray(self.condition.null(self.pictures)), prefix.shape)

        def draw(known, hidden, which, share, keys):
            def z_of(prefix):
                read = self.read(trained, prefix, known, hidden)
                return jnp.take_along_axis(read, which[..., None], axis=1).reshape(-1, read.shape[-1])

            predict, z = partial(self.denoise, trained), z_of(prefix)
            if sampler.leads:
                scale = 1 + (numbers["guidance"] - 1) * share
                predict = classifier_free_guidance(predict, z_of(null), scale)

            def denoised(x, t):
                output = predict(*self.prediction.inputs(self.process, x, t), z)
                return self.prediction.denoised(self.process, output, x, t)

            of_places = jax.vmap(partial(jax.random.split, num=which.shape[1]))(keys).reshape(-1)
            start_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(of_places), 1, 0)
            noise = jax.vmap(lambda key: jax.random.normal(key, known.shape[2:]))(start_keys)
            start = numbers["temperature"] * prior_std(self.process, times[0]) * noise
            drawn = integrate(sampler.solver, self.process, denoised, start, times, keys=step_keys)
            return drawn.reshape(*which.shape, -1)

        vectors = reveal_vectors(draw, keys, self.places, self.model.vector_width, steps=sampler.steps)
        return self.space.to_image(vectors).reshape(len(vectors), *self.tokeniser.code_shape)

    def drawn_from(self, parts: Parts, codes: Float[np.ndarray, "N h w D"]) -> Float[np.ndarray, "N H W C"]:
        return self.tokeniser.drawn_from(self.first_stage.parts(parts.fixed["first_stage"]), codes)
