"""Laws of a config as a tree: what is named is replaced, what is misnamed or mistyped is refused in one sentence."""

import jax.numpy as jnp

from genjax import config as C
from tests.config.conftest import Net, Player, System, refused


def test_override_replaces_values_and_whole_parts():
    changes = {"train.clip": 1, "players.1.rate": 5.0, "data.mixture.extra-set": 2, "model": Net(depth=9)}
    new = C.override(System(), changes)
    assert C.differences(System(), new) == [
        ("model.depth", 2, 9),
        ("data.mixture.extra-set", 0.5, 2.0),
        ("players.1.rate", 2e-3, 5.0),
        ("train.clip", None, 1.0),
    ]
    assert new.times is System().times


def test_a_list_becomes_a_tuple_and_anything_else_that_does_not_fit_is_refused():
    assert C.override(System(), {"train.betas": [1, 0.5]}).train.betas == (1.0, 0.5)
    assert refused(C.override, System(), {"train.steps": jnp.ones((3, 3))}).startswith(
        "train.steps takes an int, not a"
    )


def test_override_refuses_unknown_names_and_wrong_types():
    assert refused(C.override, System(), {"train.stesp": 3}).endswith("; did you mean train.steps?")
    assert refused(C.override, System(), {"steps": 3}).endswith("; did you mean train.steps?")
    assert refused(C.override, System(), {"train": Player()}) == "train takes a Train, not a Player"
    assert refused(C.override, System(), {"times.std": 0}) == "LogitNormal takes a positive std, not 0.0"
