"""Laws of what hosts hold and agree on; several processes are in tests/e2e/test_hosts.py."""

import contextlib

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genjax.errors import InputError
from genjax.parallel.host import Agreement, ending_all, first_says, on_the_first, together, whole
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


@pytest.fixture
def one_of_two(monkeypatch):
    """This process plays one of two: `one_of_two(place, other)`, where the other says whether it has failed."""

    def play(place, other):
        monkeypatch.setattr(jax, "process_index", lambda: place)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        flags = (lambda flag: [flag, other]) if place == 0 else (lambda flag: [other, flag])
        gather = "genjax.parallel.host.multihost_utils.process_allgather"
        monkeypatch.setattr(gather, lambda flag: np.array(flags(bool(flag))))

    return play


def failing(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize("error", [InputError("that is no directory"), OSError("no space left on device")])
def test_where_one_process_fails_all_do(one_of_two, error):
    """Each by its own error, or by that of another; whatever it is: a full disk as well as bad input."""
    one_of_two(0, other=False)
    with pytest.raises(type(error), match=str(error)):
        together(failing(error))
    one_of_two(0, other=True)
    with pytest.raises(InputError, match="process 1 has failed, and shows why"):
        together(lambda: 3)
    one_of_two(1, other=False)
    assert together(lambda: 3) == 3


def test_who_is_interrupted_says_so_before_going(one_of_two, monkeypatch):
    """Ctrl-C, while signals are not yet requests to stop: the others would wait for ever."""
    one_of_two(0, other=False)
    told, gather = [], "genjax.parallel.host.multihost_utils.process_allgather"
    monkeypatch.setattr(gather, lambda flag: told.append(bool(flag)) or np.array([bool(flag), False]))
    with pytest.raises(KeyboardInterrupt):
        together(failing(KeyboardInterrupt()))
    assert told == [True]


@pytest.mark.parametrize("error", [InputError("that is no directory"), OSError("no space left on device")])
def test_where_the_first_process_fails_all_do(one_of_two, error):
    """The others without having looked."""
    one_of_two(0, other=False)
    with pytest.raises(type(error), match=str(error)):
        on_the_first(failing(error))
    on_the_first(lambda: None)
    one_of_two(1, other=True)
    with pytest.raises(InputError, match="process 0 has failed, and shows why"):
        on_the_first(failing(error))
    one_of_two(1, other=False)
    on_the_first(failing(error))


def test_the_number_of_the_first_process_is_that_of_all(one_of_two, monkeypatch):
    heard = []
    say = "genjax.parallel.host.multihost_utils.broadcast_one_to_all"
    monkeypatch.setattr(say, lambda number: heard.append(int(number)) or np.array(4))
    one_of_two(1, other=False)
    assert (first_says(7), heard) == (4, [7])


def test_bad_input_that_is_found_meanwhile_is_told_in_one_line_too(one_of_two, monkeypatch, capsys):
    """With the exit code of the doors: that a file of the run was changed, say."""
    ends = []
    monkeypatch.setattr("genjax.parallel.host.os._exit", ends.append)
    one_of_two(1, other=False)
    with ending_all():
        raise InputError("fixed.safetensors is missing")
    assert ends == [2]
    assert capsys.readouterr().err == "error: fixed.safetensors is missing\n"


def test_one_of_several_that_fails_ends_without_waiting_at_its_exit(one_of_two, monkeypatch, capsys):
    """The exit itself is played: it must come before anything that an exception passes on its way."""
    ends = []
    monkeypatch.setattr("genjax.parallel.host.os._exit", ends.append)
    one_of_two(1, other=False)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: ends.append("closed"))
        stack.enter_context(ending_all())
        raise OSError("no space left on device")
    assert ends == [1, "closed"]
    assert "no space left on device" in capsys.readouterr().err
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    with pytest.raises(OSError, match="no space left"), ending_all():
        raise OSError("no space left on device")
    assert ends == [1, "closed"]


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
