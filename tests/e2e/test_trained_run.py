"""What `python train.py --config configs/sd3.py` trains is good, by the evaluation.json that genjax.evaluate writes.

Judges the run directory that the environment variable GENJAX_TRAINED_RUN names; CI trains it with the README's words.
"""

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def evaluation() -> dict[str, float]:
    if "GENJAX_TRAINED_RUN" not in os.environ:
        pytest.skip("GENJAX_TRAINED_RUN names no trained and evaluated run directory")
    return json.loads((Path(os.environ["GENJAX_TRAINED_RUN"]) / "evaluation.json").read_text(encoding="utf-8"))


def test_samples_show_what_their_captions_say(evaluation):
    assert evaluation["conditional_accuracy"] >= 0.97


def test_samples_are_distributed_like_the_data(evaluation):
    assert evaluation["frechet_distance"] <= 1.0


def test_samples_are_not_copies_of_the_training_data(evaluation):
    assert evaluation["nearest_neighbour_ratio"] >= 0.85
