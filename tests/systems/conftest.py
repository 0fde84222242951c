"""What the laws of all systems run on: every variant of every config file that offers a small size, trained once."""

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genjax import config
from genjax.parallel.mesh import Mesh
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

    @property
    def spec(self) -> str:
        return f"{self.file}:{self.variant}"

    def task(self, *more: str) -> Any:
        """The config as train.py reads it, four steps long, with a checkpoint and a line at every second."""
        few = (
            f"--config {self.spec} --train.steps {STEPS} --train.log_every 2 --train.validate_every 4"
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


def pytest_generate_tests(metafunc):
    if "system" in metafunc.fixturenames:
        metafunc.parametrize("system", SYSTEMS, ids=lambda system: system.name, scope="module")


@pytest.fixture(scope="module")
def trained(system, tmp_path_factory):
    """(run directory, last state) of the system, trained on one device without a break."""
    directory = tmp_path_factory.mktemp(system.name) / "run"
    return directory, fit(system.task("--mesh.data", "1"), directory)


@pytest.fixture(scope="session")
def one_device():
    return Mesh(data=1)
