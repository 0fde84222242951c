"""Laws of sources: a tree from a file, or a part of it, and one sentence where it is not there."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.interop.trees import write_tree
from genjax.runs.directory import shipped_runs
from genjax.runs.source import Source
from genjax.runs.weights import read_weights

TREE = {"model": {"a": np.arange(3.0), "b": np.ones((2, 2))}, "text": {"c": np.zeros(1)}}


@pytest.fixture
def file(tmp_path):
    write_tree(tmp_path / "weights.safetensors", TREE)
    return str(tmp_path / "weights.safetensors")


def test_a_source_that_names_nothing_is_none():
    assert not Source()
    assert Source("x")


def test_a_part_of_a_file_is_that_part_of_its_tree(file):
    chex.assert_trees_all_equal(Source(file).read(), TREE)
    chex.assert_trees_all_equal(Source(file, "model").read(), TREE["model"])
    np.testing.assert_array_equal(Source(file, "model.b").read(), TREE["model"]["b"])


def test_a_run_is_read_by_the_weights_that_it_samples_with():
    name = shipped_runs()[0].name
    task, parts = Source(name).run()
    chex.assert_trees_all_equal(Source(name).read(), parts.trained)
    chex.assert_trees_all_equal(read_weights(shipped_runs()[0], task)[0].trained, parts.trained)


def test_a_file_of_halves_is_read_in_the_type_that_is_needed(tmp_path):
    """Shipped weights are stored in half their size; to train on in float16 would be another run."""
    write_tree(tmp_path / "half.safetensors", {"a": np.arange(3, dtype=np.float16)})
    read = Source(str(tmp_path / "half.safetensors")).read_as({"a": jnp.zeros(3)})
    assert read["a"].dtype == np.float32
    np.testing.assert_array_equal(read["a"], np.arange(3.0))


@pytest.mark.parametrize("part", ["modle", "model.a.b"])
def test_a_part_that_is_not_there_is_refused(file, part):
    with pytest.raises(InputError, match=f"holds no part '{part}'"):
        Source(file, part).read()


@pytest.mark.parametrize("path", ["nowhere", "nowhere.safetensors"])
def test_a_place_where_there_is_nothing_is_refused(path):
    with pytest.raises(InputError, match="nowhere"):
        Source(path).read()


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        ({"a": jnp.zeros(3)}, "b is not known"),
        ({"a": jnp.zeros(4), "b": jnp.ones((2, 2))}, r"a has the shape \(3,\) and not \(4,\)"),
        ({"a": jnp.zeros(3), "b": jnp.ones((2, 2)), "c": jnp.zeros(1)}, "c is missing"),
        ({"a": jnp.zeros(3, jnp.int32), "b": jnp.ones((2, 2))}, "a has the type float64 and not int32"),
    ],
)
def test_weights_of_another_system_are_refused(file, needed, said):
    with pytest.raises(InputError, match=said):
        Source(file, "model").read_as(needed)
