"""What can be said of pictures that were drawn from captions: do they show what they say, also what was never shown?

A judge of pictures and captions (image_text_judge.py) is trained on all real pictures, and asked of each sample which
of 50 captions it shows:

    retrieval of trained captions       of pictures that the system was trained on
    retrieval of held-out pairs         names that were trained, in skin tones that were trained on other names only
    retrieval of held-out captions      of pictures whose names were never shown
    Fréchet distance                    of samples to other real pictures, in the judge's features, beside the same
                                        number of real ones
    nearest-neighbour ratio             as in image_evaluation.py

Each retrieval stands beside the judge's own on the real pictures of the same captions.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Float

from genjax.data import LabelledImages, readable
from genjax.metrics.frechet import frechet_distance
from genjax.metrics.neighbours import nearest_distances
from genjax.metrics.retrieval import retrieval_accuracy
from genjax.tasks.image_text_judge import Judge, train_judge

__all__ = ["AMONG", "caption_figures"]

AMONG = 50
"""Captions that the judge chooses from, or as many as there are."""


def caption_figures(
    data: LabelledImages,
    draw: Callable[[list[str]], Float[np.ndarray, "N H W C"]],
    number: int,
    *,
    judge_steps: int,
    seed: int = 0,
    judge: Judge | None = None,
) -> dict[str, float | int | str]:
    """Figures of `number` samples of each kind of caption, drawn by `draw(prompts)`; fewer where there are fewer.

    The judge is trained for `judge_steps` unless it is given. Raises InputError as it does.
    """
    judge = judge or train_judge(data, steps=judge_steps, seed=seed)
    rng = np.random.default_rng(seed)
    train = list(readable(data.source("train")))
    chosen = [train[i] for i in rng.permutation(len(train))]
    kinds = {"trained_captions": chosen[:number]}
    if hasattr(data, "held_out_pairs"):
        kinds["held_out_pairs"] = _some(data.held_out_pairs(), number, rng)
    kinds["held_out_captions"] = _some(data.source("test"), number, rng)

    figures: dict[str, float | int | str] = {}
    for name, examples in kinds.items():
        prompts = [example["captions"][0] for example in examples]
        samples, real = draw(prompts), np.stack([example["image"] for example in examples])
        texts = judge.text_features(prompts)
        for suffix, images in (("", samples), ("_of_real_pictures", real)):
            among = min(AMONG, len(examples))
            figures[f"retrieval_of_{name}{suffix}"] = retrieval_accuracy(
                judge.image_features(images), texts, among=among, seed=seed
            )
        figures[f"samples_of_{name}"] = len(samples)
        if name == "trained_captions":
            others = [example["image"] for example in chosen[number : 2 * number]]
            if len(others) > 1:
                features = judge.image_features(np.stack(others))
                figures["frechet_distance"] = frechet_distance(judge.image_features(samples), features)
                figures["frechet_distance_of_real_pictures"] = frechet_distance(judge.image_features(real), features)
            drawn = samples
    pixels = [np.stack(list(images)).reshape(len(images), -1) for images in (drawn, _images(kinds["held_out_captions"]),
                                                                             _images(train))]  # fmt: skip
    nearest, nearest_of_test = (nearest_distances(each, pixels[2]).mean() for each in pixels[:2])
    figures["nearest_neighbour_ratio"] = float(nearest / nearest_of_test)
    return figures | {"captions_among": AMONG, "judge_steps": judge_steps}


def _some(source: Sequence, number: int, rng: np.random.Generator) -> list:
    """Up to `number` examples of a source, in an order of their own."""
    return list(islice(readable(source, rng.permutation(len(source))), number))


def _images(examples: Sequence) -> list[np.ndarray]:
    return [example["image"] for example in examples]
