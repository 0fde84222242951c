"""The loader: a seeded, endless, resumable stream of batches, and the rows of each that this process owns.

Examples come in a stream: epoch after epoch, each a new permutation of the source drawn from the seed. Element q of the
stream and the random numbers of its transform depend on (seed, q) alone, so neither threads nor the number of processes
nor an interruption can change them. Global batch k of size B is the elements kB .. (k+1)B - 1, across the border of two
epochs if need be; process p of P owns the rows [pB/P, (p+1)B/P) of it. The batches of all processes, concatenated, are
the batch of a single process. The position is one number, told as the batches that were taken, whatever was prefetched.

An element that the source gives as None (see `Examples`) is passed over and counted. A process fills its rows from its
own part of the stream, so batches stay whole, and from the first bad element on its rows are ahead by one: what a
process reads never overlaps another's, but the concatenation law no longer holds, and each process has to save its own
state. Without bad elements all processes have the same state, and it suits any number of processes.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from genjax.data.examples import Examples, readable
from genjax.data.order import shuffled
from genjax.data.rows import Batch, stacked
from genjax.errors import InputError

__all__ = ["Batch", "Loader", "Transform"]

Record = TypeVar("Record")
Transform = Callable[[Record, np.random.Generator], Mapping[str, Any]]


class Loader(Iterator[Batch], Generic[Record]):
    """Iterator over the host batches of one process."""

    def __init__(
        self,
        source: Examples[Record] | Sequence[Record | None],
        *,
        batch_size: int,
        seed: int,
        transform: Transform[Record],
        shuffle: bool = True,
        repeat: bool = True,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 4,
    ):
        """Check the arguments and stand at the beginning; nothing is read before the first batch.

        Args:
            source: random access to examples, such as `dataset.source("train")`.
            batch_size: examples of a global batch.
            seed: decides the order of examples and the random numbers of their transforms.
            transform: `transform(example, rng)` gives the arrays and scalars of one row; drawn anew in each epoch.
            shuffle: False for the order of the source.
            repeat: False for a single epoch, whose last batch may be shorter.
            process_index: which rows of a batch to give.
            process_count: the number of processes that share a batch.
            threads: threads that read and transform ahead; 0 to do it when a batch is asked for.

        Raises:
            InputError: an argument is out of its range, or they do not fit each other.
        """
        self._identity = {"seed": seed, "batch_size": batch_size, "shuffle": shuffle, "examples": len(source)}
        self._process = [process_index, process_count]
        processes = {"process_index": process_index, "process_count": process_count}
        for holds, sentence in _laws(**self._identity, **processes, repeat=repeat, threads=threads):
            if not holds:
                raise InputError(f"{sentence}.")
        self._source = source
        self._local_batch = batch_size // process_count

        shuffle_seed, augment_seed, transform_seed = map(int, np.random.SeedSequence(seed).generate_state(3))
        order = partial(shuffled, count=len(source), seed=shuffle_seed) if shuffle else partial(_in_order, len(source))
        augment = getattr(source, "augment", None)
        steps = [(augment, augment_seed)] if augment else []
        length = sys.maxsize if repeat else len(source)
        stream = _Stream(source, order, [*steps, (transform, transform_seed)], length)
        self._stream = _RowsOfProcess(stream, batch_size, process_index, process_count)
        self._threads = threads
        self._elements: Iterator | None = None
        self._batches = self._taken = self._skipped = 0

    @property
    def skipped(self) -> int:
        """Bad elements passed over so far on the way to the batches taken, by this process."""
        return self._skipped

    def __next__(self) -> Batch:
        """The next batch: each field of the transform's rows, stacked.

        Raises `InputError` when the source does, and when all of its examples are bad. The position then stays where it
        was: the next call meets the same element.
        """
        if self._elements is None:
            self._elements = self._elements_from(self._taken + self._skipped)
        rows, skipped, run = [], 0, 0
        try:
            while len(rows) < self._local_batch:
                element = next(self._elements, _END)
                if element is _END:
                    break
                if element is None:
                    skipped, run = skipped + 1, run + 1
                    if run == min(len(self._source), len(self._stream)):
                        self._require_a_usable_example()
                else:
                    rows.append(element)
                    run = 0
        except BaseException:
            # Grain counts an element that raises as not taken, and yet goes on to the one after it.
            self.close()
            raise
        self._skipped += skipped
        self._taken += len(rows)
        if not rows:
            raise StopIteration
        self._batches += 1
        return stacked(rows)

    def state(self) -> dict[str, Any]:
        """The position after the batches taken so far, as plain data for JSON."""
        return {"batches": self._batches, "skipped": self._skipped, "process": list(self._process), **self._identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` told, here or in an earlier run; the batches from there on are the same.

        Raises `InputError` when the state is not one, or belongs to a loader of other arguments or another source.
        """
        missing = [key for key in self.state() if key not in state]
        if missing:
            raise InputError(f"the saved data position lacks {', '.join(missing)}; expected what Loader.state() gives.")
        for key, value in self._identity.items():
            if state[key] != value:
                raise InputError(
                    f"the saved data position has {key} = {state[key]}, but this run has {value}; a run resumes with"
                    " the same data order."
                )
        if state["skipped"] and list(state["process"]) != self._process:
            raise InputError(
                f"the saved data position is that of process {state['process']} (index, count) and has skipped"
                f" examples; this is process {self._process}, and needs its own."
            )
        self.close()
        position = min(state["batches"] * self._local_batch + state["skipped"], len(self._stream))
        self._batches, self._skipped = state["batches"], state["skipped"]
        self._taken = position - self._skipped

    def close(self) -> None:
        """Stop the threads and forget what was prefetched; the position stays, and reading can go on."""
        if self._elements is not None:
            self._elements.close()
        self._elements = None

    def _require_a_usable_example(self) -> None:
        next(readable(self._source))

    def _elements_from(self, position: int) -> Iterator:
        if not self._threads:
            return (self._stream[index] for index in range(position, len(self._stream)))
        ahead = max(2 * self._local_batch, self._threads)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        rest = self._stream.slice(slice(position, None))
        return iter(rest.to_iter_dataset(options, allow_nones=True))


class _Stream(grain.MapDataset):
    """The rows of a source in an order, each step with random numbers of its seed and the position alone.

    All that happens to a row is one step of grain's: each of its own keeps books, which for a small row take longer
    than the row. The rows are those of its source, shuffle, repeat and random_map.
    """

    def __init__(
        self, source: Sequence, order: Callable[[int], int], steps: Sequence[tuple[Callable, int]], length: int
    ):
        super().__init__()
        self._source, self._order, self._length = source, order, length
        self._steps = [(step, _Random(seed)) for step, seed in steps]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        row = self._source[self._order(index)]
        for step, random in self._steps:
            if row is not None:
                row = step(row, random.at(index))
        return row


class _Random(threading.local):
    """The random numbers of a seed, by position: a generator of each thread, which is set there and not made anew."""

    def __init__(self, seed: int):
        self._generator = np.random.Generator(np.random.Philox(seed))
        self._start = self._generator.bit_generator.state

    def at(self, position: int) -> np.random.Generator:
        """The generator at a position, from where its numbers are the same every time."""
        # The last word of Philox's counter: a stream of 2^192 numbers at every position.
        self._start["state"]["counter"][3] = position
        self._generator.bit_generator.state = self._start
        return self._generator


class _RowsOfProcess(grain.MapDataset):
    """The elements of a stream that one process owns: its rows of batch 0, of batch 1, and so on."""

    def __init__(self, stream: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
        super().__init__(stream)
        self._batch_size = batch_size
        self._rows = batch_size // process_count
        self._first = process_index * self._rows
        self._length = len(stream) // process_count

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._parent[batch * self._batch_size + self._first + row]


def _in_order(count: int, position: int) -> int:
    return position % count


_END = object()


def _laws(
    *, seed, batch_size, shuffle, examples, repeat, threads, process_index, process_count
) -> Iterator[tuple[bool, str]]:
    """What must hold of a loader's arguments, and what to say when it does not; each rests on those before it."""
    yield examples > 0, "the dataset is empty; a loader needs at least one example"
    yield batch_size >= 1, f"the batch size is {batch_size}; it must be 1 or more"
    yield seed >= 0, f"the data seed is {seed}; it must be 0 or more"
    yield threads >= 0, f"the number of data threads is {threads}; it must be 0 or more"
    yield (
        0 <= process_index < process_count,
        f"process {process_index} of {process_count} does not exist; processes are counted from 0",
    )
    yield (
        batch_size % process_count == 0,
        f"the batch size {batch_size} does not divide over {process_count} processes; it must be a multiple of that",
    )
    yield (
        repeat or process_count == 1 or examples % batch_size == 0,
        f"one pass over {examples} examples does not divide into batches of {batch_size} for {process_count} processes;"
        " choose a batch size that divides it, or repeat",
    )
