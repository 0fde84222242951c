"""What sample.py writes: grid.png, one PNG per sample, samples.npz and, if wished, the way there as an animation."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree
from rich.console import Console

from genjax.errors import InputError
from genjax.tasks.text_to_image import Sampler, TextToImage
from genjax.training import pictures


def save_samples(
    task: TextToImage,
    weights: Callable[[], tuple[PyTree[Array], int]],
    out: Path,
    *,
    prompt: str | None,
    number: int,
    sampler: Sampler,
    seed: int,
    trajectory: bool,
) -> dict[str, Any]:
    """Draw `number` samples and write them below `out`; the input is checked before the weights are read.

    samples.npz holds `images` uint8 (N,H,W,C), `prompts` (N,) and `seed`. Raises InputError for a number below 1, a
    prompt that is too long, or a directory that cannot be written to.
    """
    if number < 1:
        raise InputError(f"--num is the number of samples, at least 1, not {number}")
    captions = [prompt] if prompt is not None else [captions[0] for captions in task.captions()]
    prompts = [captions[i % len(captions)] for i in range(number)]
    task.tokenize(captions)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(f"the output directory {out} cannot be written to: {error.strerror}") from None

    params, step = weights()
    start = time.perf_counter()
    states = task.sample(params, prompts, seed=seed, sampler=sampler, trajectory=trajectory)
    images = pictures.to_uint8(states[-1] if trajectory else states)
    seconds = time.perf_counter() - start

    pictures.save_png(pictures.grid(images), out / "grid.png", smallest_side=512)
    for i, image in enumerate(images):
        pictures.save_png(image, out / f"{i:04d}.png")
    np.savez(out / "samples.npz", images=images, prompts=np.array(prompts), seed=np.array(seed))
    if trajectory:
        frames = np.stack([pictures.grid(frame) for frame in pictures.to_uint8(states)])
        pictures.save_gif(frames, out / "trajectory.gif", smallest_side=512)
    Console().print(
        f"{number} samples of step {step} in {out / 'grid.png'}: {sampler.solver}, {sampler.steps} steps,"
        f" guidance {sampler.guidance:g}, {sampler.evaluations} network evaluations each, seed {seed},"
        f" {seconds:.1f} s with compilation",
        highlight=False,
        soft_wrap=True,
    )
    return {"images": images, "prompts": prompts}
