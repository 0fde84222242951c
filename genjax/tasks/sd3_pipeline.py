"""Stable Diffusion 3 from weights on disk: pictures of prompts, pictures of pictures, pictures drawn anew in part.

    prompt --CLIP-L, CLIP-bigG, T5--> (context, pooled) --MM-DiT, `steps` times--> latent --autoencoder--> picture

It is a `Denoising` whose condition has been encoded beforehand, so that whatever draws samples of one (any solver, grid
and guidance, starts from pictures, one compiled program) draws them here. Networks are read from disk when it is their
turn. Encoders, which take most of the memory, are let go before pictures are drawn.

What is computed is what diffusers' StableDiffusion3Pipeline computes, at the same noise, with the grid of its scheduler
(`SD3Times`); the latent of a picture is the mean of its posterior, where diffusers draws one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.data import SubwordTokenizer
from genjax.diffusion.grids import SD3Times
from genjax.diffusion.solvers import Euler, Solver
from genjax.errors import InputError
from genjax.interop import networks
from genjax.interop.weight_files import read_json
from genjax.keys import check_seed
from genjax.models.autoencoder import Autoencoder
from genjax.models.clip_text import CLIPText
from genjax.models.mmdit import MMDiT
from genjax.models.sd3_text import SD3Text
from genjax.models.t5_encoder import T5Encoder
from genjax.runs.outputs import Images, Output
from genjax.tasks import sampling
from genjax.tasks.denoising import Denoising
from genjax.tasks.sampling import Sampler
from genjax.tasks.spaces import Latents
from genjax.tasks.starts import Start, kept_of, picture_of
from genjax.training.precision import POLICIES, cast
from genjax.training.task import Train

__all__ = ["DrawCheckpoint", "Encoded", "EncodedPrompt", "LatentShape", "Pipeline"]

ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}
"""Parts of a checkpoint, and fields of SD3Text."""
T5_LENGTH = 256
"""Tokens of T5's texts, as in diffusers; padding is read too, so that another length is another picture."""
LATENTS = Latents(scale=1.5305, shift=0.0609)
"""Of the released autoencoder, where no config tells."""
SHIFT = 3.0
"""Of the grid, where no config tells."""
PATCH = 2
"""Pixels of which sides are multiples in all checkpoints; released ones ask for 16, which `Pipeline.task` knows."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A condition that was encoded beforehand: rows are what encoders said."""

    dropout: float = 1.0
    """Released networks were trained on the empty prompt too, so that guidance is possible."""
    asked_by = "prompt"

    def encode(self, trained: Any, rows: dict[str, Array], dtype: Any) -> tuple[Array, Array]:
        return rows["context"].astype(dtype), rows["pooled"].astype(dtype)


@dataclass(frozen=True)
class LatentShape:
    """Latents of one shape, of which there are no examples."""

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """What encoders say of prompts."""

    rows: dict[str, np.ndarray]
    """{"context": (N,L,D), "pooled": (N,P)} float32."""
    said: list[str]
    """What people should know of it: which encoder there is not, and which end of a prompt was not read."""


@dataclass(frozen=True)
class Pipeline:
    """The parts of a checkpoint, each read when it is asked for.

    Raises InputError where the transformer or the autoencoder is missing, and where there are two of an encoder.
    """

    path: Path
    """A folder of diffusers, a released file, or a file of our trees."""
    tokenizers: Path
    """A folder with `tokenizer`, `tokenizer_2` and `tokenizer_3`; that of a folder of diffusers itself."""
    encoders: Path | None = None
    """Where text encoders are that `path` does not hold: a file, or a folder of files or of diffusers."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What networks compute in; in float16 T5 overflows."""
    parts: dict[str, Callable[[], networks.Network]] = field(init=False)

    def __post_init__(self):
        found = networks.parts(self.path) | ({} if self.encoders is None else _encoders(self.encoders))
        missing = [part for part in ("transformer", "vae") if part not in found]
        if missing:
            raise InputError(f"{self.path} has no {' and no '.join(missing)}; it has {', '.join(found)}")
        object.__setattr__(self, "parts", found)

    def encode_prompts(self, prompts: Sequence[str]) -> Encoded:
        """What the encoders say of prompts; one that the checkpoint lacks says nothing: zeros.

        Raises InputError where it has no encoder at all, and where a tokenizer is missing.
        """
        found = {name: self.parts[part]() for part, name in ENCODERS.items() if part in self.parts}
        if not found:
            raise InputError(f"{self.path} has no text encoder: {', '.join(ENCODERS)}; --encoders says where they are")
        left_out = tuple(name for name in ENCODERS.values() if name not in found)
        kinds = {"clip_l": CLIPText, "clip_g": CLIPText, "t5": T5Encoder}
        model = SD3Text(**{name: kinds[name](**found[name].sizes) for name in found}, left_out=left_out)
        lengths = {"clip_l": model.clip_l.positions, "clip_g": model.clip_g.positions, "t5": T5_LENGTH}
        pads = {"clip_l": model.clip_l.end, "clip_g": self._pad("tokenizer_2"), "t5": 0}
        tokens, said = [], []
        for part, name in ENCODERS.items():
            if name in left_out:
                said.append(f"there is no {part}, and it says nothing")
                tokens.append(np.zeros((len(prompts), lengths[name]), np.int32))
                continue
            tokenizer = self._tokenizer(part, lengths[name], pads[name])
            tokens.append(np.stack([tokenizer.encode(prompt) for prompt in prompts]))
            ends = filter(None, map(tokenizer.left_out, dict.fromkeys(prompts)))
            said += [f"{part} does not read the end of a prompt: {end!r}" for end in ends]
        dtype = POLICIES[self.precision].compute
        params = {name: cast(network.params, dtype) for name, network in found.items()}
        context, pooled = jax.jit(model.apply)({"params": params}, *tokens)
        rows = {"context": np.asarray(context, np.float32), "pooled": np.asarray(pooled, np.float32)}
        return Encoded(rows, said)

    def task(self, height: int, width: int) -> tuple[Denoising, dict[str, Any]]:
        """(The system that draws latents of pictures of a size, its weights).

        Raises InputError where the sides are not whole patches of latents, or larger than positions go.
        """
        network = self.parts["transformer"]()
        model = MMDiT(**network.sizes)
        side = self.stride * model.patch_size
        most = side * model.pos_embed_max_size
        if height % side or width % side or not 0 < height <= most or not 0 < width <= most:
            raise InputError(f"height and width are multiples of {side} up to {most}, not {height} and {width}")
        scale, shift = self.vae.latents or (LATENTS.scale, LATENTS.shift)
        task = Denoising(
            model=model,
            condition=EncodedPrompt(),
            space=Latents(scale, shift or 0.0),
            data=LatentShape((height // self.stride, width // self.stride, model.channels)),
            sampler=Sampler(Euler(), steps=28, guidance=7.0, grid=SD3Times(self._shift())),
            train=Train(precision=self.precision),
        )
        return task, {"model": network.params}

    def encode(self, image: Float[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N h w C"]:
        """The latents of pictures in [-1, 1]."""
        return self._with_autoencoder("encode", image)

    def decode(self, latents: Float[np.ndarray, "N h w C"]) -> Float[np.ndarray, "N H W 3"]:
        """Pictures in [-1, 1], one at a time."""
        return np.concatenate([self._with_autoencoder("decode", latent[None]) for latent in latents])

    @cached_property
    def vae(self) -> networks.Network:
        """The autoencoder."""
        return self.parts["vae"]()

    @property
    def stride(self) -> int:
        """Pixels along a side of a picture for one of a latent."""
        return Autoencoder(**self.vae.sizes).stride

    def _with_autoencoder(self, method: str, x: np.ndarray) -> np.ndarray:
        model = Autoencoder(**self.vae.sizes)
        return np.asarray(_coded(model, method, POLICIES[self.precision].compute, self.vae.params, x), np.float32)

    def _tokenizer(self, part: str, length: int, pad: int) -> SubwordTokenizer:
        return SubwordTokenizer(str(self.tokenizers / part.replace("text_encoder", "tokenizer")), length, pad)

    def _pad(self, folder: str) -> int:
        """The id of padding that a tokenizer's config names; 0, as in the released one, where it names none."""
        told = self._told(self.tokenizers / folder / "tokenizer_config.json").get("pad_token")
        name = told.get("content") if isinstance(told, dict) else told
        return (name and SubwordTokenizer(str(self.tokenizers / folder), 1, 0).id_of(name)) or 0

    def _told(self, file: Path) -> dict[str, Any]:
        """What a JSON file says; nothing where there is none."""
        return read_json(file) if file.is_file() else {}

    def _shift(self) -> float:
        return float(self._told(self.path / "scheduler" / "scheduler_config.json").get("shift", SHIFT))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _coded(model: Autoencoder, method: str, dtype: Any, params: Any, x: Array) -> Array:
    """The mean of what the encoder says of pictures, or pictures of codes."""
    found = model.apply({"params": cast(params, dtype)}, x.astype(dtype), method=method)
    return found[..., : model.code_width] if method == "encode" else jnp.clip(found, -1, 1)


def _encoders(path: Path) -> dict[str, Callable[[], networks.Network]]:
    """The text encoders of a file, of a folder of diffusers, or of the files in a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    found: dict[str, Callable[[], networks.Network]] = {}
    for each in files or [path]:
        for part, load in networks.parts(each).items():
            if part in found:
                raise InputError(
                    f"{path} holds more than one {part}: --encoders is a file, or a folder with one of each"
                )
            if part in ENCODERS:
                found[part] = load
    return found


@dataclass(frozen=True, kw_only=True)
class DrawCheckpoint:
    """Draw pictures from the released weights of Stable Diffusion 3, or whatever has their layout."""

    prompt: str = ""
    """Text to draw."""
    negative: str = ""
    """Text that guidance leads away from."""
    num: int = 1
    """Number of pictures."""
    height: int = 1024
    """Pixels, a multiple of 16."""
    width: int = 1024
    """Pixels, a multiple of 16."""
    steps: int = 28
    """Steps of the solver."""
    guidance: float = 7.0
    """Scale of classifier-free guidance, 1 for none."""
    solver: Solver = Euler()
    """Solver of the sampling ODE."""
    seed: int = 0
    """Seed of the noise; picture i depends on the seed, i and what is asked alone."""
    image: str | None = None
    """Picture to start from, in place of noise, which says height and width: PNG, JPEG or WebP."""
    strength: float = 0.6
    """Share of the steps taken from --image on, in (0, 1]: how little of it is left."""
    mask: str | None = None
    """Picture of the same size, white where --image is drawn anew, black where it is kept; all anew when not given."""
    tokenizers: str | None = None
    """Folder with tokenizer, tokenizer_2 and tokenizer_3, which a released file does not hold."""
    encoders: str | None = None
    """File of text encoders, or a folder of files or of diffusers, where --checkpoint does not hold them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What networks compute in."""

    def check(self, path: Path) -> None:
        """Raise InputError for what can be seen to be wrong before weights are read."""
        check_seed("--seed", self.seed)
        if self.num < 1:
            raise InputError(f"--num is the number of pictures, at least 1, not {self.num}")
        Sampler(self.solver, self.steps, self.guidance)  # which refuses what is no number of steps
        if not np.isfinite(self.guidance):
            raise InputError(f"--guidance is a finite number, not {self.guidance}")
        if self.negative and self.guidance == 1:
            raise InputError("--negative is what guidance leads away from, and --guidance 1 is none")
        picture, mask = self._picture(), self._mask()
        height, width = (self.height, self.width) if picture is None else picture.shape[:2]
        if height < 1 or width < 1 or height % PATCH or width % PATCH:
            raise InputError(f"height and width are multiples of {PATCH}, not {height} and {width}")
        if picture is not None:
            Start(picture[None], self.strength).steps(self.steps)  # which refuses what is no share
        if mask is not None and picture is None:
            raise InputError("--mask says what is drawn anew of an --image, and none is given")
        if mask is not None and mask.shape[:2] != picture.shape[:2]:
            raise InputError(f"--mask is of {mask.shape[:2]} pixels, and --image of {picture.shape[:2]}")
        if path.is_file() and self.tokenizers is None:
            raise InputError(f"{path} is a file, and holds no tokenizers: --tokenizers is a folder that does")

    def __call__(self, path: Path) -> Iterator[Output]:
        began = time.perf_counter()
        encoders = None if self.encoders is None else Path(self.encoders)
        pipeline = Pipeline(path, Path(self.tokenizers) if self.tokenizers else path, encoders, self.precision)
        encoded = pipeline.encode_prompts([self.prompt, self.negative])
        picture = self._picture()
        height, width = (self.height, self.width) if picture is None else picture.shape[:2]
        task, trained = pipeline.task(height, width)
        sampler = Sampler(self.solver, self.steps, self.guidance, task.sampler.grid)
        told = {name: np.repeat(array[:, None], self.num, axis=1) for name, array in encoded.rows.items()}
        rows = {name: array[0] for name, array in told.items()}
        if self.guidance != 1:
            rows |= {f"{sampling.OF_NULL}{name}": array[1] for name, array in told.items()}
        start = None if picture is None else self._start(pipeline, picture)
        latents = sampling.sample_rows(
            task, trained, rows, self.num, seed=self.seed, sampler=sampler, start=start, batch_size=4
        )
        images = pipeline.decode(latents)
        said = (
            f"{self.num} pictures of {width} x {height}: {type(self.solver).__name__}, {self.steps} steps, guidance"
            f" {self.guidance:g}, seed {self.seed}, {time.perf_counter() - began:.1f} s with compilation"
        )
        yield Images(
            images, [self.prompt] * self.num, said="\n".join([said, *encoded.said]), arrays={"seed": self.seed}
        )

    def _picture(self) -> np.ndarray | None:
        return None if self.image is None else picture_of("--image", self.image, 3)

    def _mask(self) -> np.ndarray | None:
        return None if self.mask is None else picture_of("--mask", self.mask, 1)

    def _start(self, pipeline: Pipeline, picture: np.ndarray) -> Start:
        latent, mask, stride = pipeline.encode(picture[None]), self._mask(), pipeline.stride
        # as diffusers: the pixel in each latent's first corner decides
        kept = None if mask is None else kept_of(mask[::stride, ::stride])
        return Start(latent, self.strength, kept=kept)
