"""Laws of how programs are compiled: convolutions by XLA, and what the first process compiled the second finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genjax.parallel import compilation

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
CONVOLUTION = """
import jax
import jax.numpy as jnp
import sample, train
from genjax import evaluate
from genjax.parallel.compilation import convolve_by_xla
convolve_by_xla()
image, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
convolved = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", **layout))
multiplied = jax.jit(lambda x, y: x @ y)
for program in convolved.lower(image, kernel), multiplied.lower(jnp.ones((256, 256)), jnp.ones((256, 256))):
    print("ynn" in program.compile().as_text())
"""
"""After all that the doors import, no program may have been compiled yet."""


def run(program: str, *words: str, **environment) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | environment
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""} | environment | {"JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", program, *words]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def start(cache: Path, wanted: bool, **environment):
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return run(PROGRAM, str(wanted), **environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, by_ynnpack",
    [
        ("", ["False", "True"]),
        ("--xla_force_host_platform_device_count=2", ["False", "True"]),
        ("--xla_cpu_experimental_ynn_fusion_type=", ["False", "False"]),
    ],
)
def test_convolutions_alone_stay_with_xla_at_every_door_unless_one_says_otherwise(flags, by_ynnpack):
    assert run(CONVOLUTION, XLA_FLAGS=flags) == by_ynnpack


def test_what_is_said_is_added_to_flags_of_ones_own_and_said_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    compilation.convolve_by_xla()
    compilation.convolve_by_xla()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_force_host_platform_device_count=2", compilation.BY_XLA]


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
