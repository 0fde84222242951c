"""What a tokeniser can be asked for: pictures drawn again, ways from one to the next, figures of reconstructions."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from genjax.data import decode_whole
from genjax.data.codes import write_codes
from genjax.errors import InputError
from genjax.metrics.distortion import psnr
from genjax.metrics.frechet import frechet_distance
from genjax.quantisation.usage import usage
from genjax.runs.outputs import Events, Images, Numbers, Output, say
from genjax.runs.parts import Parts

__all__ = ["CodesFolder", "JudgeReconstructions", "Reconstruct"]

MOST_NUMBERS = 1024
"""Numbers of a picture at most for a Fréchet distance in pixels: covariances have their square of entries."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Draw pictures again, side by side with what they were: left the picture, right its reconstruction."""

    num: int = 16
    """Number of pictures, the first of the held-out ones."""
    image: str | None = None
    """A picture of your own instead, of any sides that the model's stride divides: PNG, JPEG or WebP."""
    interpolate: int = 0
    """That many steps from each picture to the next, along a line between what the bottleneck sees; a row each."""
    codes: bool = False
    """Write the codes of all pictures of the data alone, for a second stage; what is there already is left."""

    def check(self, task: Any) -> None:
        if self.codes and (self.image is not None or self.interpolate):
            raise InputError("--codes are of the pictures of the data alone: not with --image or --interpolate")
        if self.num < 1:
            raise InputError(f"--num is the number of pictures, at least 1, not {self.num}")
        if self.interpolate < 0:
            raise InputError(f"--interpolate is a number of steps, 0 or more, not {self.interpolate}")
        if self.interpolate and self.image is not None:
            raise InputError("--interpolate leads from picture to picture, and --image is one: leave one out")
        if self.interpolate and self.num < 2:
            raise InputError(f"--interpolate leads from picture to picture: --num is at least 2, not {self.num}")
        if self.image is not None:
            self._own(task)

    def _own(self, task: Any) -> Float[np.ndarray, "1 H W C"]:
        path, stride = Path(self.image), task.model.stride
        if not path.is_file():
            raise InputError(f"--image is a PNG, JPEG or WebP file, and there is none at {path}")
        picture = decode_whole(path.read_bytes(), str(path), channels=task.data.image_shape[-1])
        height, width, _ = picture.shape
        if height % stride or width % stride:
            raise InputError(
                f"--image has sides of {height} and {width} pixels, and this run takes multiples of {stride}, its"
                " model's stride"
            )
        return picture[None]

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        if self.codes:
            yield CodesFolder(task, parts)
            return
        images = task.pictures("test", self.num) if self.image is None else self._own(task)
        if self.interpolate and len(images) < 2:
            raise InputError("--interpolate leads from picture to picture, and the data holds out one")
        vectors = task.vectors_of(parts, images)
        if self.interpolate:
            steps = np.linspace(0, 1, self.interpolate + 2, dtype=np.float32)[:, None, None, None]
            way = np.concatenate([a + steps * (b - a) for a, b in zip(vectors[:-1], vectors[1:], strict=True)])
            said = f"{len(images)} held-out pictures, {self.interpolate} steps between each and the next"
            yield Images(task.drawn_from(parts, way), columns=self.interpolate + 2, said=said)
            return
        drawn = task.drawn_from(parts, vectors)
        ratio = psnr(images, drawn).mean()
        whose = f"{len(images)} held-out pictures" if self.image is None else self.image
        positions = int(np.prod(vectors.shape[1:3]))
        each = f"{positions * task.bits_per_position:.0f} bits" if task.is_discrete else f"{vectors[0].size} numbers"
        said = f"{whose} beside what {each} each make of them: {ratio:.2f} dB"
        pairs = np.stack([images, drawn], axis=1).reshape(-1, *images.shape[1:])
        columns = 2 * int(np.ceil(np.sqrt(len(images) / 2)))
        yield Images(pairs, columns=columns, said=said, arrays={"psnr": psnr(images, drawn)})


@dataclass(frozen=True)
class CodesFolder:
    """The codes of all pictures that a tokeniser was trained and is judged on (`genjax.data.Codes`)."""

    task: Any
    parts: Parts

    def show(self, console: Console) -> None:
        what = f"ids below {self.task.bottleneck.size}" if self.task.is_discrete else "vectors"
        say(console, f"the codes of all pictures: {what}, {' x '.join(map(str, self.task.id_shape))} each")

    def write(self, folder: Path) -> Path:
        task, discrete = self.task, self.task.is_discrete
        encode = partial(task.ids_of if discrete else task.vectors_of, self.parts)
        size = task.bottleneck.size if discrete else 0
        write_codes(folder, encode, task.data, fingerprint=task.fingerprint(self.parts), size=size, shape=task.id_shape)
        return folder

    def record(self, folder: Path, step: int, events: Events) -> None:
        self.write(folder)


@dataclass(frozen=True, kw_only=True)
class JudgeReconstructions:
    """Measure reconstructions of all held-out pictures: PSNR, mean absolute error, and how the codebook is used.

    The Fréchet distance in pixels, where a picture has 1,024 numbers at most, is that of reconstructions to the
    held-out pictures themselves, beside that of training pictures to them. Usage is over all positions of all held-out
    pictures.
    """

    def check(self, task: Any) -> None:
        """There is nothing to ask wrongly."""

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        number, ratios, errors, counts, pixels = 0, 0.0, 0.0, 0, []
        for images in task.picture_blocks("test"):
            vectors = task.vectors_of(parts, images)
            drawn = task.drawn_from(parts, vectors)
            number += len(images)
            ratios += psnr(images, drawn).sum()
            errors += np.abs(images - drawn, dtype=np.float64).sum()
            if task.is_discrete:
                counts = counts + task.counts_of(task.ids_from(parts, vectors))
            if images[0].size <= MOST_NUMBERS:
                pixels.append([each.reshape(len(each), -1) for each in (images, drawn)])
        size = int(np.prod(task.data.image_shape))
        figures: dict[str, float | int | str] = {"psnr": ratios / number, "mean_absolute_error": errors / number / size}
        if pixels:
            test, made = (np.concatenate(each) for each in zip(*pixels, strict=True))
            train = task.pictures("train").reshape(-1, size)
            figures["frechet_distance"] = frechet_distance(made, test)
            figures["frechet_distance_train_to_test"] = frechet_distance(train, test)
        if task.is_discrete:
            for level, found in enumerate(map(usage, counts)):
                suffix = f"/level={level}" if task.levels > 1 else ""
                figures |= {f"{name}{suffix}": value for name, value in found._asdict().items()}
            figures["codes"] = task.bottleneck.size
            figures["bits_per_picture"] = float(np.prod(task.code_shape[:2]) * task.bits_per_position)
            figures["positions_counted"] = int(number * np.prod(task.code_shape[:2]))
        else:
            figures["numbers_per_picture"] = int(np.prod(task.code_shape))
        yield Numbers(figures | {"test_images": number})
