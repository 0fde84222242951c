"""Laws of checkpoints: whole, exact, on any number of devices, and damage is told."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.parallel.mesh import Mesh, replicated
from genjax.runs.checkpoints import Checkpoint, Checkpoints, fingerprint


def state_at(step, devices=1):
    tree = {"w": jnp.arange(20_000.0) + step, "inner": (jnp.asarray(step), {"b": jnp.full((3,), 1 / 3)})}
    return jax.device_put(tree, replicated(Mesh(data=devices).build()))


def trees_at(step, devices=1):
    """A state, a small tree that may be read alone, and an empty one."""
    return {"state": state_at(step, devices), "average": {"a": jnp.full((4,), 0.5 + step)}, "nothing": {}}


def template(devices=1):
    whole = replicated(Mesh(data=devices).build())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), trees_at(0))


def saved(directory, *steps, devices=1, **config):
    checkpoints = Checkpoints(directory, Checkpoint(**config))
    for step in steps:
        checkpoints.save(step, trees_at(step, devices), {"batches": step})
    checkpoints.wait()
    checkpoints.close()


def assert_equal(a, b):
    chex.assert_trees_all_equal(a, b)


def test_an_empty_directory_holds_none(tmp_path):
    assert Checkpoints(tmp_path / "c", Checkpoint()).restore(template()) is None


@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 1), (1, 4), (4, 2)])
def test_what_is_restored_is_what_was_saved_on_any_number_of_devices(tmp_path, before, after):
    saved(tmp_path / "c", 3, devices=before)
    step, trees, record = Checkpoints(tmp_path / "c").restore(template(after))
    assert (step, record["batches"]) == (3, 3)
    assert_equal(trees, trees_at(3))
    assert len(trees["state"]["w"].sharding.device_set) == after


def test_one_tree_is_read_alone(tmp_path):
    """A sampler reads the average, and is not in the way of damage elsewhere."""
    saved(tmp_path / "c", 3)
    damage_by_removing([file for file in (tmp_path / "c" / "3" / "state").rglob("*") if file.is_file()])
    step, trees, _ = Checkpoints(tmp_path / "c").restore({"average": template()["average"]})
    assert step == 3
    assert_equal(trees, {"average": trees_at(3)["average"]})


def test_a_state_donated_right_after_an_asynchronous_save_is_saved_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", Checkpoint(asynchronous=True))
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    state = state_at(5)
    checkpoints.save(5, {"state": state}, {})
    spoil(state)
    checkpoints.wait()
    assert_equal(checkpoints.restore({"state": template()["state"]}).trees["state"], state_at(5))


def test_reading_leaves_a_running_save_alone_and_a_new_run_clears_what_was_left(tmp_path):
    directory = tmp_path / "c"
    saved(directory, 1)
    half = directory / "2.orbax-checkpoint-tmp"
    half.mkdir()
    before = sorted(directory.rglob("*"))
    assert Checkpoints(directory).restore(template())[0] == 1
    assert sorted(directory.rglob("*")) == before
    assert Checkpoints(directory, Checkpoint()).restore(template())[0] == 1
    assert not half.exists()


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path / "c", 1, 2, 3, 4, keep=2)
    assert sorted(int(p.name) for p in (tmp_path / "c").iterdir()) == [3, 4]


def damage_by_removing(files):
    for file in files:
        file.unlink()


def damage_by_truncating(files):
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_by_flipping_a_byte(files):
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [damage_by_removing, damage_by_truncating, damage_by_flipping_a_byte])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(tmp_path, caplog, damage):
    directory = tmp_path / "c"
    saved(directory, 1, 2)
    damage([file for file in (directory / "2" / "state").rglob("*") if file.is_file()])
    checkpoints = Checkpoints(directory, Checkpoint())
    with caplog.at_level(logging.WARNING):
        logging.getLogger("genjax").propagate = True
        step, trees, _ = checkpoints.restore(template())
    assert step == 1
    assert_equal(trees, trees_at(1))
    assert "checkpoint 2" in caplog.text
    # It is moved out of the way, not deleted, so that step 2 can be saved again.
    checkpoints.set_aside_after(1)
    assert (tmp_path / "unreadable-2").is_dir()
    checkpoints.save(2, trees_at(2), {"batches": 2})
    checkpoints.wait()
    assert checkpoints.restore(template())[0] == 2
    # And again, when the same step is damaged once more.
    checkpoints.set_aside_after(1)
    assert (tmp_path / "unreadable-2-2").is_dir()


def test_what_another_process_cannot_read_is_passed_over(tmp_path, monkeypatch):
    """Its message is played: it can read 1, and of 2 and 3 one not at all and the other with other numbers."""
    saved(tmp_path / "c", 1, 2, 3, keep=3)
    answers, asked = iter([False, True, False, True, True]), []

    def together(action):
        asked.append(action.__name__)
        found = action()
        if not next(answers):
            raise InputError("process 1 has failed, and shows why")
        return found

    monkeypatch.setattr("genjax.runs.checkpoints.together", together)
    step, trees, _ = Checkpoints(tmp_path / "c", Checkpoint()).restore(template())
    assert (step, asked) == (1, ["read", "read", "compare", "read", "compare"])
    assert_equal(trees, trees_at(1))
    # Who only reads, reads alone.
    assert Checkpoints(tmp_path / "c").restore(template())[0] == 3


def test_the_first_process_says_which_checkpoint_is_the_newest(tmp_path, monkeypatch):
    saved(tmp_path / "c", 1, 2)
    monkeypatch.setattr("genjax.runs.checkpoints.first_says", lambda step: min(step, 1))
    assert Checkpoints(tmp_path / "c", Checkpoint()).restore(template())[0] == 1


def test_only_the_largest_file_damaged_is_told_too(tmp_path):
    """A flipped byte in the stored numbers themselves."""
    directory = tmp_path / "c"
    saved(directory, 1, 2)
    files = [file for file in (directory / "2" / "state").rglob("*") if file.is_file()]
    damage_by_flipping_a_byte([max(files, key=lambda file: file.stat().st_size)])
    assert Checkpoints(directory).restore(template())[0] == 1


def test_when_all_are_damaged_training_does_not_start_over_in_silence(tmp_path):
    directory = tmp_path / "c"
    saved(directory, 1, 2)
    for step in ("1", "2"):
        damage_by_removing([file for file in (directory / step / "state").rglob("*") if file.is_file()])
    with pytest.raises(InputError, match="none of the checkpoints in .* can be read"):
        Checkpoints(directory).restore(template())


def test_a_state_of_other_shapes_is_refused(tmp_path):
    saved(tmp_path / "c", 1)
    state = template()["state"]
    other = state | {"w": jax.ShapeDtypeStruct((7,), jnp.float32, sharding=state["w"].sharding)}
    with pytest.raises(InputError):
        Checkpoints(tmp_path / "c").restore({"state": other})


def test_only_the_first_process_moves_what_cannot_be_read(tmp_path, monkeypatch):
    saved(tmp_path / "c", 1, 2)
    checkpoints = Checkpoints(tmp_path / "c", Checkpoint())
    with monkeypatch.context() as second:
        second.setattr(jax, "process_index", lambda: 1)
        checkpoints.set_aside_after(1)
    assert not (tmp_path / "unreadable-2").exists()
    checkpoints.set_aside_after(1)
    assert (tmp_path / "unreadable-2").is_dir()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(InputError, match="at least 1"):
        Checkpoint(**wrong)


def test_the_fingerprint_sees_every_single_flipped_bit():
    tree = {"w": jnp.arange(50.0), "n": jnp.asarray(3)}
    bits = np.asarray(tree["w"]).view(np.uint32)
    for place in (0, 1, 48, 49):
        for bit in range(32):
            changed = bits.copy()
            changed[place] ^= np.uint32(1) << np.uint32(bit)
            assert fingerprint(tree | {"w": jnp.asarray(changed.view(np.float32))}) != fingerprint(tree)
    assert fingerprint(tree | {"n": jnp.asarray(4)}) != fingerprint(tree)
    assert fingerprint(tree | {"w": tree["w"][::-1]}) != fingerprint(tree)


def test_the_fingerprint_does_not_depend_on_the_devices():
    assert fingerprint(state_at(1)) == fingerprint(state_at(1, devices=4))
