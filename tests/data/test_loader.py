import json
import threading
import time
from dataclasses import replace
from itertools import islice

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genjax.data import Examples, Loader
from genjax.errors import InputError


def numbers(count: int, bad: tuple[int, ...] = (), on_bad: str = "skip") -> Examples:
    """The examples 0 .. count - 1, of which some are bad."""

    def read(item: int):
        if item in bad:
            raise InputError(f"file {item} is bad.")
        return item

    return Examples(range(count), read, on_bad)


def transform(example: int, rng: np.random.Generator) -> dict:
    return {"number": example, "draw": rng.random(2)}


def loader(source, **arguments) -> Loader:
    return Loader(source, **{"batch_size": 4, "seed": 0, "transform": transform, "threads": 2} | arguments)


def taken(batches) -> list[int]:
    return [int(number) for batch in batches for number in batch["number"]]


def assert_same(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], strict=True)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**70))
def test_each_epoch_is_a_permutation_though_batches_straddle_epochs(count, batch_size, seed):
    stream = taken(islice(loader(numbers(count), batch_size=batch_size, seed=seed, threads=0), 2 * count))
    epochs = [stream[start : start + count] for start in range(0, len(stream) - count + 1, count)]
    assert len(epochs) >= 2 and all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_the_order_differs_from_epoch_to_epoch_and_from_seed_to_seed():
    streams = [taken(islice(loader(numbers(40), seed=seed), 30)) for seed in range(3)]
    epochs = [tuple(stream[start : start + 40]) for stream in streams for start in (0, 40, 80)]
    assert len(set(epochs)) == 9


def test_without_shuffling_the_order_is_that_of_the_source():
    assert taken(islice(loader(numbers(6), shuffle=False), 3)) == [*range(6), *range(6)]


def test_random_numbers_differ_at_every_position_and_are_those_of_the_seed():
    batches = list(islice(loader(numbers(5)), 10))
    assert len({tuple(draw) for batch in batches for draw in batch["draw"]}) == 40
    assert_same(batches, islice(loader(numbers(5)), 10))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("augmented", [False, True])
def test_the_rows_are_those_of_a_pipeline_of_grain_to_the_bit(threads, augmented):
    """Runs on record drew their rows from it; what a step draws, in whatever types, is no other's business."""

    def augment(example, rng):
        return example + int(rng.integers(3, dtype=np.uint32)) * 100

    def drawing(example, rng):
        odd = {"half": rng.random(dtype=np.float32)} if example % 2 else {"half": np.float32(rng.integers(9))}
        return {"number": example, "draw": rng.normal(size=3), "byte": rng.integers(7, dtype=np.uint8)} | odd

    source = replace(numbers(11, bad=(4,)), augment=augment if augmented else None)
    seeds = list(map(int, np.random.SeedSequence(5).generate_state(3)))
    stream = grain.MapDataset.source(source).shuffle(seeds[0]).repeat()
    stream = stream.random_map(augment, seed=seeds[1]) if augmented else stream
    rows = (row for row in map(stream.random_map(drawing, seed=seeds[2]).__getitem__, range(60)) if row is not None)
    ours = islice(loader(source, seed=5, transform=drawing, threads=threads, batch_size=6), 8)
    for batch in ours:
        own = [next(rows) for _ in range(6)]
        assert_same([batch], [{key: np.stack([row[key] for row in own]) for key in own[0]}])


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_threads_change_nothing(threads):
    def slow(example, rng):
        time.sleep(0.002 * (example % 3))
        return transform(example, rng)

    assert_same(islice(loader(numbers(7), threads=threads, transform=slow), 6), islice(loader(numbers(7)), 6))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_batches_of_all_processes_concatenate_to_the_global_batch(process_count, shuffle):
    arguments = {"batch_size": 8, "shuffle": shuffle}
    parts = [
        islice(loader(numbers(11), **arguments, process_index=index, process_count=process_count), 5)
        for index in range(process_count)
    ]
    together = [
        {key: np.concatenate([b[key] for b in batches]) for key in batches[0]} for batches in zip(*parts, strict=True)
    ]
    assert_same(together, islice(loader(numbers(11), **arguments), 5))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 9), st.sampled_from([(), (3,), (0, 5, 6)]), st.sampled_from([0, 2]), st.sampled_from([1, 2]))
def test_a_restored_loader_goes_on_to_the_bit(batches, bad, threads, process_count):
    arguments = {"threads": threads, "process_index": process_count - 1, "process_count": process_count}
    first = loader(numbers(7, bad), **arguments)
    list(islice(first, batches))
    state, skipped = json.loads(json.dumps(first.state())), first.skipped
    second = loader(numbers(7, bad), **arguments)
    list(islice(second, 2))
    second.restore(state)
    assert second.skipped == skipped and second.state() == state
    assert_same(islice(first, 6), islice(second, 6))
    assert second.skipped == first.skipped and second.state() == first.state()


def test_a_position_without_skips_suits_any_number_of_processes():
    alone = loader(numbers(7))
    list(islice(alone, 3))
    half = loader(numbers(7), process_index=1, process_count=2)
    half.restore(alone.state())
    assert_same([next(half)], [{key: rows[2:] for key, rows in next(alone).items()}])


def test_the_state_is_that_of_the_batches_taken_and_not_of_those_read_ahead():
    read = []
    ahead = threading.Event()

    def watched(example, rng):
        read.append(example)
        if len(read) >= 8:
            ahead.set()
        return transform(example, rng)

    reader = loader(numbers(50), transform=watched)
    next(reader)
    assert ahead.wait(10) and reader.state()["batches"] == 1


def test_bad_examples_are_skipped_and_counted_in_every_epoch():
    reader = loader(numbers(10, bad=(2, 7)))
    stream = taken(islice(reader, 4))  # two epochs of eight examples that can be used
    assert sorted(stream[:8]) == sorted(stream[8:]) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert 2 <= reader.skipped <= 4
    list(islice(reader, 1))
    assert reader.skipped >= 4


def test_one_pass_ends_with_a_shorter_batch_and_counts_every_skip():
    reader = loader(numbers(10, bad=(0, 9)), shuffle=False, repeat=False, batch_size=3)
    batches = list(reader)
    assert [len(batch["number"]) for batch in batches] == [3, 3, 2] and taken(batches) == list(range(1, 9))
    assert reader.skipped == 2 and list(reader) == [] and reader.skipped == 2


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_example_raises_its_own_error_and_the_position_stays(threads):
    reader = loader(numbers(12, bad=(6,), on_bad="error"), shuffle=False, threads=threads)
    assert taken([next(reader)]) == [0, 1, 2, 3]
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            next(reader)
        assert type(caught.value) is InputError and str(caught.value) == "file 6 is bad."
        assert reader.state()["batches"] == 1


def test_rows_of_processes_never_overlap_though_one_of_them_skips():
    halves = [loader(numbers(16, bad=(1,)), process_index=index, process_count=2) for index in range(2)]
    rows = [set(taken(islice(half, 3))) for half in halves]  # three batches of two rows out of an epoch of eight
    assert rows[0].isdisjoint(rows[1]) and sum(len(part) for part in rows) == 12


def test_a_single_good_example_is_enough():
    reader = loader(numbers(5, bad=(0, 1, 3, 4)))
    assert taken(islice(reader, 4)) == [2] * 16


@pytest.mark.parametrize("repeat", [True, False])
def test_a_dataset_with_only_bad_examples_is_refused(repeat):
    with pytest.raises(InputError, match="none of the 3 examples"):
        next(loader(numbers(3, bad=(0, 1, 2)), repeat=repeat))


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (0, {}, "the dataset is empty"),
        (5, {"batch_size": 0}, "the batch size is 0"),
        (5, {"batch_size": 6, "process_count": 4}, "6 does not divide over 4 processes"),
        (5, {"process_index": 2, "process_count": 2}, "process 2 of 2 does not exist"),
        (5, {"process_count": 0}, "process 0 of 0 does not exist"),
        (5, {"seed": -1}, "the data seed is -1"),
        (5, {"threads": -1}, "the number of data threads is -1"),
        (5, {"repeat": False, "process_count": 2}, "one pass over 5 examples does not divide into batches of 4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(count, arguments, message):
    with pytest.raises(InputError, match=message):
        loader(numbers(count), **arguments)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "has seed = 0, but this run has 1"),
        ({"batch_size": 2}, "has batch_size = 4, but this run has 2"),
        ({"shuffle": False}, "has shuffle = True"),
    ],
)
def test_a_position_of_another_stream_is_refused(other, message):
    with pytest.raises(InputError, match=message):
        loader(numbers(5), **other).restore(loader(numbers(5)).state())


def test_a_position_in_another_source_or_of_another_process_or_none_at_all_is_refused():
    reader = loader(numbers(5, bad=(1,)))
    list(islice(reader, 3))
    with pytest.raises(InputError, match="has examples = 5, but this run has 6"):
        loader(numbers(6)).restore(reader.state())
    with pytest.raises(InputError, match="has skipped examples; this is process"):
        loader(numbers(5, bad=(1,)), process_count=2).restore(reader.state())
    with pytest.raises(InputError, match="lacks skipped"):
        reader.restore({key: value for key, value in reader.state().items() if key != "skipped"})


def test_a_closed_loader_keeps_its_position():
    reader, other = loader(numbers(7)), loader(numbers(7))
    assert_same([next(reader)], [next(other)])
    reader.close()
    assert_same(islice(reader, 3), islice(other, 3))
