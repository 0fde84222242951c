"""What the laws of all systems run on: every variant of every config file that offers a small size, trained once.

By default two of them stand for all. The others are marked `slow`: CI runs the first variant of each file, and who
changes what further variants have of their own runs those too, which are marked `whole` as well.
"""

import importlib.util
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from genjax import config
from genjax.parallel.rules import logical_axes
from genjax.training.loop import fit
from train import Options

ROOT = Path(__file__).parents[2]
STEPS = 4


@dataclass(frozen=True)
class System:
    """A variant of a config file, at the size that its file's SMOKE gives: words for each door."""

    file: Path
    variant: str
    words: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.file.stem}-{self.variant}"

    def param(self, *marks: Any) -> Any:
        """The system as a parameter of tests, which with --dist=loadgroup run in one process."""
        return pytest.param(self, id=self.name, marks=[pytest.mark.xdist_group(self.name), *marks])

    @property
    def spec(self) -> str:
        return f"{self.file}:{self.variant}"

    def task(self, *more: str) -> Any:
        """The config as train.py reads it, four steps long: checkpoints at steps 2 and 4, lines at steps 3 and 4."""
        few = (
            f"--config {self.spec} --train.steps {STEPS} --train.log_every 3 --train.validate_every 4"
            " --train.sample_every 4 --checkpoint.every 2 --train.data_threads 0"
        )
        return config.parse_with_config(shlex.split(f"{few} {self.words['train']} {' '.join(more)}"), Options())[1]

    def door(self, door: str) -> list[str]:
        return shlex.split(self.words.get(door, ""))


def _systems() -> list[System]:
    found = []
    for file in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"smoke_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [System(file, variant, words) for variant, words in module.SMOKE.items()]
    return found


SYSTEMS = _systems()
STAND_FOR_ALL = ("gan-toy", "lm-nano")
"""Two players with states of their own, and one with a cache; both compile in seconds."""


def left_out(system: System) -> list[Any]:
    """The marks by which the default tests, or CI too, leave it out."""
    if system.name in STAND_FOR_ALL:
        return []
    first = next(other for other in SYSTEMS if other.file == system.file)
    return [pytest.mark.slow] if system is first else [pytest.mark.slow, pytest.mark.whole]


def pytest_generate_tests(metafunc):
    if "system" in metafunc.fixturenames:
        every = [system.param(*left_out(system)) for system in SYSTEMS]
        metafunc.parametrize("system", every, scope="module")


@pytest.fixture(scope="module")
def trained(system, tmp_path_factory):
    """(run directory, last state) of the system, trained on one device without a break."""
    directory = tmp_path_factory.mktemp(system.name) / "run"
    return directory, fit(system.task("--mesh.data", "1"), directory)


def lines(directory: Path) -> list[dict[str, float]]:
    """What metrics.jsonl tells, but for how fast it went."""
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    timed = ("steps_per_second", "samples_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in found]


def share_by_hand(task: Any) -> int:
    """Bytes of the parameters that each device holds on the task's mesh, from the two sentences that say it.

    A parameter of 1,024 elements or more (of a stack: in each layer) is divided over all devices of fsdp, and over
    those of tensor where an axis of it that is named for them divides evenly. All else is whole.
    """
    boxed, mesh = jax.eval_shape(task.init, jax.random.key(0)).trained, task.mesh
    names = jax.tree.leaves(logical_axes(boxed), is_leaf=lambda leaf: isinstance(leaf, tuple))
    total = 0
    for axes, leaf in zip(names, jax.tree.leaves(boxed), strict=True):
        sizes = [(name, size) for name, size in zip(axes, leaf.shape, strict=True) if name != "layers"]
        large = math.prod(size for _, size in sizes) >= 1024
        by_tensor = any(name in ("vocab", "heads", "mlp") and size % mesh.tensor == 0 for name, size in sizes)
        total += 4 * leaf.size // (mesh.fsdp * (mesh.tensor if by_tensor else 1) if large else 1)
    return total
