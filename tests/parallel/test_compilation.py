"""Laws of the cache of compiled programs: the second process finds what the first compiled, unless it is turned off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from genjax.parallel import compilation
compilation.SECONDS = 0
import jax
heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
print(compilation.keep_compiled(sys.argv[1] == "True"))
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))).block_until_ready()
print("/jax/compilation_cache/cache_hits" in heard)
"""


def start(cache: Path, wanted: bool, **environment):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | environment
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    words = [sys.executable, "-c", PROGRAM, str(wanted)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    folder = str(tmp_path / "genjax" / "compiled")
    assert start(tmp_path, True) == [folder, "False"]
    assert start(tmp_path, True) == [folder, "True"]
    assert start(tmp_path, False) == ["None", "False"]


@pytest.mark.parametrize("named", ["elsewhere"])
def test_a_directory_of_ones_own_comes_first(tmp_path, named):
    where = str(tmp_path / named)
    assert start(tmp_path, True, JAX_COMPILATION_CACHE_DIR=where)[0] == where
    assert not (tmp_path / "genjax").exists()
