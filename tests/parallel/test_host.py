"""Laws of what hosts hold and agree on; several processes are in tests/e2e/test_hosts.py."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genjax.errors import InputError
from genjax.parallel.host import Agreement, on_the_first, whole
from genjax.parallel.mesh import Mesh


def test_divided_replicated_and_plain_arrays_come_whole():
    mesh = Mesh(fsdp=2, tensor=2).build()
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    specs = [
        PartitionSpec(),
        PartitionSpec("fsdp"),
        PartitionSpec("tensor", "fsdp"),
        PartitionSpec(None, ("fsdp", "tensor")),
    ]
    tree = {"on devices": [jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs], "here": x, "step": 3}
    found = whole(tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    for leaf in (*found["on devices"], found["here"]):
        np.testing.assert_array_equal(leaf, x)
    assert found["step"] == 3


@pytest.mark.parametrize("place", [0, 1])
def test_what_the_first_process_refuses_all_refuse(monkeypatch, place):
    """The others without having looked; their messages are played here."""
    looked, heard = [], []

    def look():
        looked.append(1)
        raise InputError("that is no directory")

    monkeypatch.setattr(jax, "process_index", lambda: place)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    tell = "genjax.parallel.host.multihost_utils.broadcast_one_to_all"
    monkeypatch.setattr(tell, lambda flag: heard.append(bool(flag)) or np.array(True))
    with pytest.raises(InputError, match="that is no directory" if place == 0 else "the first process has refused"):
        on_the_first(look)
    assert (looked, heard) == (([1], [True]) if place == 0 else ([], [False]))
    monkeypatch.setattr(tell, lambda flag: np.array(False))
    on_the_first(lambda: None)


def test_a_single_process_hears_itself_at_once():
    stop = Agreement()
    assert [stop(flag) for flag in (False, True, False)] == [False, True, False]


@pytest.mark.parametrize(
    ("every", "heard"),
    [(1, [False, False, False, True, True, True]), (2, [False, False, False, False, False, True])],
)
def test_several_hear_what_was_sent_before_and_a_flag_stays_up_until_it_is_sent(every, heard, monkeypatch):
    stop = Agreement(every)
    monkeypatch.setattr(stop, "_processes", 2)  # This process plays both.
    flags = [False, False, True, False, False, False]
    assert [stop(flag) for flag in flags] == heard
