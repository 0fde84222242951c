"""The house keeps its shape; which room may import which is held by import-linter, in pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "genjax").rglob("*.py"))
KERNELS = sorted((ROOT / "pallas_kernels").rglob("*.py"))
ROOMS = sorted({path.parent for path in MODULES + KERNELS} - {ROOT / "genjax", ROOT / "pallas_kernels"})
DOORS = ["train.py", "sample.py"]


def from_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in MODULES + KERNELS if path.stat().st_size], ids=from_root)
def test_a_module_opens_by_saying_what_it_is_about(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=from_root)
def test_a_module_has_tests_of_its_name(path):
    inside = path.relative_to(ROOT / "genjax")
    own = ROOT / "tests" / inside.with_name(f"test_{inside.name.replace('__', '')}")  # __main__.py: test_main.py
    assert own.is_file(), f"{from_root(own)} does not exist"


@pytest.mark.parametrize("room", [room for room in ROOMS if "pallas_kernels" in room.parts], ids=from_root)
def test_a_room_of_kernels_has_tests(room):
    """By law and not by file: one suite runs over many kernels."""
    assert list((ROOT / "tests" / room.relative_to(ROOT)).glob("test_*.py"))


@pytest.mark.parametrize("room", ROOMS, ids=from_root)
def test_a_room_has_a_tenant(room):
    assert [path for path in room.glob("*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("door", DOORS)
def test_a_front_door_is_thin(door):
    assert len((ROOT / door).read_text(encoding="utf-8").splitlines()) < 100


ABSENT = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


def test_the_doors_and_the_loop_know_no_system():
    """A new system changes none of them: they meet it in a config, or in the run directory that recorded one."""
    graph = grimp.build_graph("genjax", cache_dir=None)
    for system in ("tasks", "models", "nn", "diffusion", "adversarial", "language"):
        for door in ("evaluate", "runs", "training"):
            chain = graph.find_shortest_chain(f"genjax.{door}", f"genjax.{system}", as_packages=True)
            assert chain is None, " -> ".join(chain)


def test_genjax_imports_without_any_reference_implementation_and_starts_no_device():
    absent = ["torch", "diffusers", "transformers", "peft", "tensorflow", "triton", "jax_triton"]
    program = "import sys, jax\n" + ABSENT.format(absent=absent)
    program += "\n".join(f"import {dotted(path)}" for path in MODULES if path.name != "__main__.py")
    program += "\njax.config.update('jax_num_cpu_devices', 3)"  # refused once a device is in use
    imported = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
