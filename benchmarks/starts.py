"""How long a door takes to start: with nothing compiled yet, for the second time, and without keeping what is compiled.

    python benchmarks/starts.py             --rounds 3

Each start is a process of its own: `train.py` for one step, with its validation and preview, and `sample.py` for four
samples of a run that ships. The second start finds what the first has compiled below the user's cache directory, which
is a fresh one in every round. Seconds of the processor are those of all cores; where the machine has other work they
say more than those of the clock.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import side_by_side as sbs
import tyro

ROOT = Path(__file__).parents[1]
DOORS = {
    "train.py": ["--config", "configs/sd3.py", "--train.steps", "1"],
    "sample.py": ["--workdir", "sd3-nano", "--num", "4"],
}
OUTPUT = {"train.py": "--workdir", "sample.py": "--out"}
WAYS = ("nothing compiled", "second start", "nothing kept")


@dataclass(frozen=True)
class Starts:
    """How often each door is started in each way."""

    rounds: int = 3


def start(door: str, cache: Path, *, keeps: bool) -> tuple[float, float]:
    """(seconds of the clock, seconds of the processor) from the command to its end."""
    # What a user's shell has, but for settings that would compile otherwise or elsewhere.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    env |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, door, *DOORS[door], OUTPUT[door], out, "--compile_cache", str(keeps)]
        began, used = time.perf_counter(), _of_children()
        subprocess.run(words, cwd=ROOT, env=env, check=True, capture_output=True)
        return time.perf_counter() - began, _of_children() - used


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(options: Starts) -> None:
    measured = {(door, way): [] for door in DOORS for way in WAYS}
    for _ in range(options.rounds):
        for door in DOORS:
            with tempfile.TemporaryDirectory() as cache:
                for way in WAYS:
                    measured[door, way].append(start(door, Path(cache), keeps=way != "nothing kept"))
    medians = {
        each: [statistics.median(column) for column in zip(*runs, strict=True)] for each, runs in measured.items()
    }
    rows, ratios = [], {}
    for door in DOORS:
        first, second = medians[door, WAYS[0]], medians[door, WAYS[1]]
        ratios[door] = {"clock": round(first[0] / second[0], 2), "processor": round(first[1] / second[1], 2)}
        for way in WAYS:
            clock, processor = medians[door, way]
            rows.append([door, way, clock, processor, first[0] / clock, first[1] / processor])
    columns = ["door", "start", "clock, s", "processor, s", "first / this: clock", "processor"]
    sbs.print_table(f"starts of the doors, medians of {options.rounds}", columns, rows)
    sbs.print_result(benchmark="starts", first_over_second=ratios, rounds=options.rounds)


if __name__ == "__main__":
    main(tyro.cli(Starts))
