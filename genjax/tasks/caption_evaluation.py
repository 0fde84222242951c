"""What can be said in numbers of pictures that were drawn from captions, where there are no classes to count.

    retrieval              share of samples whose own caption, to a judge of images and captions, is nearer than 49 others;
                           beside it the share of the real pictures of the same captions, which is what the judge can see
    Fréchet distance       of samples to held-out pictures in the judge's features, beside that of the real ones
    nearest-neighbour      mean distance of samples to their nearest training picture in pixels, beside that of held-out
    distance               pictures; a ratio far below 1 means that samples are training pictures

Retrieval is taken of three parts: captions that were trained on, pairs of parts that were only seen with others (where
the dataset holds such out), and captions that were held out whole. The first says what is remembered, the second what
is composed, and the third what the words alone give away.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from genjax.data import LabelledImages
from genjax.data.examples import ImageExample
from genjax.errors import InputError
from genjax.metrics.frechet import frechet_distance
from genjax.metrics.neighbours import nearest_distances
from genjax.metrics.retrieval import retrieval_accuracy
from genjax.models.image_text import ImageText
from genjax.models.word_encoder import WordEncoder, words
from genjax.tasks.image_evaluation import labelled_images
from genjax.tasks.image_text_judge import Judge, real_pictures, train_judge

AMONG = 50
"""Captions that a picture's own is sought among; all of a part where it has fewer."""


def caption_figures(
    data: LabelledImages, draw: Callable[[list[str]], Float[np.ndarray, "N H W C"]], judge: Judge, *, num: int
) -> dict[str, float | int]:
    """The figures of what `draw` makes, in [-1, 1], of at most `num` captions of each part of the data.

    Distances are of the samples of trained captions; a Fréchet distance compares only at equal numbers of samples.
    """
    figures: dict[str, float | int] = {}
    samples, real = {}, {}
    for part, examples in chosen_parts(data, num):
        captions = [example["captions"][0] for example in examples]
        texts = judge.text_features(captions)
        samples[part], real[part] = draw(captions), np.stack([example["image"] for example in examples])
        among = min(AMONG, len(captions))
        for name, images in ((part, samples[part]), (f"{part}_real_pictures", real[part])):
            figures[f"retrieval_{name}"] = retrieval_accuracy(judge.image_features(images), texts, among=among)
        figures |= {f"retrieval_{part}_samples": len(captions), f"retrieval_{part}_among": among}
    train, test = (labelled_images(data.source(split))[0] for split in ("train", "test"))
    held_out = judge.image_features(test)
    figures["frechet_distance"] = frechet_distance(judge.image_features(samples["trained"]), held_out)
    figures["frechet_distance_train_to_test"] = frechet_distance(judge.image_features(real["trained"]), held_out)
    drawn, seen, unseen = (images.reshape(len(images), -1) for images in (samples["trained"], train, test))
    nearest, nearest_of_test = (nearest_distances(each, seen).mean() for each in (drawn, unseen))
    figures["nearest_neighbour_distance"] = float(nearest)
    figures["nearest_neighbour_distance_of_test"] = float(nearest_of_test)
    figures["nearest_neighbour_ratio"] = float(nearest / nearest_of_test)
    return figures | {"test_images": len(test), "train_images": len(train)}


def judge_of(data: LabelledImages, *, steps: int) -> Judge:
    """A judge of these pictures, whose text tower reads their longest caption."""
    captions = (caption for example in real_pictures(data) for caption in example["captions"])
    longest = max(len(words(caption)) for caption in captions)
    return train_judge(data, steps=steps, model=ImageText(text=WordEncoder(max_length=longest, pooled_width=128)))


def chosen_parts(data: LabelledImages, num: int) -> Iterator[tuple[str, Sequence[ImageExample]]]:
    """Name and examples of each part: at most `num`, of different first captions, the same at every call.

    A part with fewer than two captions is left out, for there is nothing to tell apart. Raises InputError where that is
    so of the training data.
    """
    parts = {"trained": data.source("train"), "held_out": data.source("test")}
    if hasattr(data, "held_out_pairs"):
        parts["held_out_pairs"] = data.held_out_pairs()
    for name, source in parts.items():
        found: dict[str, ImageExample] = {}
        for index in np.random.default_rng(0).permutation(len(source)):
            if (example := source[index]) is not None:
                found.setdefault(example["captions"][0], example)
            if len(found) == num:
                break
        if len(found) > 1:
            yield name, list(found.values())
        elif name == "trained":
            raise InputError(f"the training data have {len(found)} different captions; retrieval takes two or more")
