"""Laws of the positions in the data."""

from genjax.training.positions import own_position, positions_of_all, skipped_by_all


def test_positions_of_several_processes_are_each_process_own():
    alone = {"batches": 3, "skipped": 0, "process": [0, 1], "seed": 0}
    assert own_position(positions_of_all(alone), (0, 1)) == alone
    two = [alone | {"process": [i, 2], "skipped": i} for i in range(2)]
    assert [own_position(two, (i, 2)) for i in range(2)] == two
    # On another number of processes one that has skipped examples is taken, which the loader then refuses.
    assert own_position(two, (0, 1)) == two[1]


def test_each_example_that_was_passed_over_is_counted_once():
    """By all processes; two that compute the same rows together read the same ones."""
    positions = [{"process": [share, 2], "skipped": skipped} for share, skipped in ((0, 3), (0, 3), (1, 4))]
    assert skipped_by_all(positions) == 7
