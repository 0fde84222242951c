"""Laws of parts: one tree, three names."""

import jax

from genjax.runs.parts import Parts


def test_parts_are_one_tree_and_those_that_are_not_named_are_empty():
    parts = Parts({"w": 1.0}, variables={"mean": 2.0})
    assert jax.tree.leaves(parts) == [1.0, 2.0]
    assert parts.fixed == {}
    assert jax.tree.map(lambda x: -x, parts) == Parts({"w": -1.0}, {}, {"mean": -2.0})
