"""Images by denoising the codes of a tokeniser that holds still: latent diffusion (Rombach et al. 2022,
arXiv:2112.10752, section 3), and with an MM-DiT and rectified flow Stable Diffusion 3 (Esser et al. 2024, section 5.1).

    x_0 = (code of a picture - shift) scale,    picture = decoder of (x_0 / scale + shift)

A code is what the bottleneck sees of a picture: the mean of a Gaussian posterior (latent diffusion's code draws from
it), or the vector that a quantiser would bring to a code of its own, which it does with what is drawn too. Data may be
pictures, whose codes are found anew at each step, or `Codes` of a Gaussian posterior, which are on disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.data import Codes, LabelledImages
from genjax.errors import InputError
from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.tasks.denoising import Denoising
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.spaces import Latents, Space
from genjax.tasks.tokeniser import Tokeniser

__all__ = ["LatentDenoising"]


@dataclass(frozen=True, kw_only=True)
class LatentDenoising(Denoising):
    """A system that draws codes by denoising, and so pictures."""

    first_stage: FirstStage
    space: Space = Latents()
    data: LabelledImages | Codes

    @cached_property
    def tokeniser(self) -> Tokeniser:
        """The system of the first stage."""
        return self.first_stage.tokeniser(self.data)

    noises_data = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tokeniser.code_shape

    def check(self) -> None:
        self.first_stage.check(self.data)
        if not isinstance(self.space, Latents):
            raise InputError(f"space is {type(self.space).__name__}, and what is drawn are codes: take Latents")
        self.first_stage.check_vectors(self.data)
        self.sources()
        super().check()

    def sources(self) -> Mapping[str, Source]:
        return {"first_stage": self.first_stage.source(self.data)}

    def init(self, key: Key[Array, ""]) -> Parts:
        own_key, first_key = jax.random.split(key)
        fixed = {"first_stage": self.first_stage.init(first_key, self.data)}
        return super().init(own_key)._replace(fixed=fixed)

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        name = "codes" if isinstance(self.data, Codes) else "image"
        row = {name: example[name]} | self.coupling.row(example)
        return row | self.condition.row(example, rng, self.data)

    def x_0(self, parts: Parts, batch: dict[str, Array]) -> Float[Array, "B h w D"]:
        return self.space.to_x_0(self.first_stage.vectors(parts.fixed["first_stage"], batch, self.data))

    def pictures(self, parts: Parts, words: Sequence[str], **how: Any) -> Float[np.ndarray, "... N H W C"]:
        codes = self.sample(parts.trained, words, **how)
        first = self.first_stage.parts(parts.fixed["first_stage"])
        images = self.tokeniser.drawn_from(first, codes.reshape(-1, *codes.shape[-3:]))
        return images.reshape(*codes.shape[:-3], *images.shape[1:])
