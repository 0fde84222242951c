"""A small classifier of images, to score how often class-conditional samples show what was asked for.

Train it on real data that the generative model did not see: then neither the model nor the judge has an advantage. A
support vector machine (Cortes and Vapnik 1995) is deterministic, and learns from a few hundred small images.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Classifier", "train_classifier"]

Classifier = Callable[[Float[np.ndarray, "N *shape"]], Int[np.ndarray, " N"]]


def train_classifier(images: Float[np.ndarray, "N *shape"], labels: Int[np.ndarray, " N"]) -> Classifier:
    """A function from images (M, *shape) to labels (M,), a Gaussian-kernel machine on flattened pixels.

    Trained on scikit-learn's 540 test digits it is right on 99.0 % of the other 1,257, for any price C of an
    error from 10 to 100.
    """
    # scikit-learn takes a second to import: only those who classify wait for it.
    from sklearn.svm import SVC

    machine = SVC(C=10, kernel="rbf", gamma="scale").fit(images.reshape(len(images), -1), labels)
    return lambda images: machine.predict(images.reshape(len(images), -1))
