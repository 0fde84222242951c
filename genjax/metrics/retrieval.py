"""Retrieval: whether the features of an image find its caption among others (Radford et al. 2021, arXiv:2103.00020).

With a judge of images and captions, such as CLIP or a small one trained on the real data, the accuracy on generated
images says how often they show what was asked for. It is 1 / `among` by chance, and the real images give its ceiling.
"""

import numpy as np
from jaxtyping import Float

from genjax.errors import InputError

__all__ = ["retrieval_accuracy"]


def retrieval_accuracy(
    image_features: Float[np.ndarray, "N D"], text_features: Float[np.ndarray, "N D"], *, among: int = 50, seed: int = 0
) -> float:
    """The share of images whose own caption is nearer to them than `among` - 1 others, drawn anew for each image.

    Near is the larger inner product; features are unit vectors where the angle is meant. A tie counts as a miss, and so
    does a feature that is not a number: a judge that gives all the same features is right never. Row i of both arrays
    belongs together.

    Raises InputError when the arrays do not fit each other, or have fewer rows than `among`, which is 2 or more.
    """
    image_features, text_features = (np.asarray(features, np.float64) for features in (image_features, text_features))
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise InputError(
            "features of images and texts are arrays (N, D) of one shape, not of shapes"
            f" {image_features.shape} and {text_features.shape}"
        )
    count = len(image_features)
    if not 2 <= among <= count:
        raise InputError(f"retrieval among {among} captions takes 2 or more, and there are {count}")
    rng = np.random.default_rng(seed)
    hits = 0
    for row, image in enumerate(image_features):
        others = rng.choice(count - 1, among - 1, replace=False)
        others += others >= row  # any but its own
        # In one product, so that equal captions have equal scores to the last bit.
        scores = (text_features[np.append(others, row)] * image).sum(axis=1)
        hits += bool(scores[-1] > scores[:-1].max())
    return hits / count
