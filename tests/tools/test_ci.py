"""What CI promises: time enough for what it runs, and nothing compiled twice."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tests import conftest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
jax.config.update("jax_num_cpu_devices", {devices})
{program}
print(len(hits))
"""
COMPILE = "jax.jit(lambda x: jnp.tanh(x @ x) + 8.125).lower(jax.ShapeDtypeStruct((3, 3), jnp.float32)).compile()"


def test_the_workflow_gives_what_the_script_takes_and_more():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    stated = re.search(r"^# .*under (\d+) minutes", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    jobs = re.split(r"^  (?=\w+:$)", workflow.partition("\njobs:\n")[2], flags=re.MULTILINE)
    (whole,) = (job for job in jobs if "run: .ci/run" in job)
    limit = int(re.search(r"timeout-minutes: (\d+)", whole)[1])
    assert limit >= 90 and limit >= 2 * int(stated[1])  # their machines are slower than ours


@pytest.fixture
def keeps_everything():
    """Otherwise what compiles in a blink is not kept, and whether this program does is a matter of the machine."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)


def test_what_a_test_has_compiled_a_process_that_it_starts_does_not_compile_again(keeps_everything):
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    eval(COMPILE, {"jax": jax, "jnp": jnp})
    program = PROGRAM.format(devices=jax.local_device_count(), program=COMPILE)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) >= 1, run.stderr


@pytest.mark.parametrize(
    "nodeid, room",
    [
        ("tests/nn/deeper/test_mlp.py::test_law[3-4]", "nn"),
        ("tests/test_house.py::test_law", "test_house"),
        ("tests/systems/test_life.py::test_resumes[sd3-preempted]", "systems/sd3"),
        ("tests/systems/test_life.py::test_resumes[configs/sd3.py:medium]", "systems/sd3"),
        ("tests/systems/test_life.py::test_of_all", "systems"),
    ],
)
def test_seconds_are_counted_by_room_and_in_systems_by_config(nodeid, room):
    assert conftest.room_of(nodeid) == room


@pytest.mark.parametrize(
    ("expression", "args", "collected"),
    [
        ("not slow", ["tests"], False),
        ("slow", ["tests/tools"], False),
        ("not slow and not parity", ["tests"], False),
        ("not gpu and not whole", ["tests"], False),
        ("parity", ["tests"], True),
        ("gpu", ["tests"], True),
        ("gpu and not slow", ["tests"], True),
        ("not slow", ["tests/pallas_kernels"], True),
        ("not slow", ["tests/tools", "tests/pallas_kernels/test_tuning.py::test_law"], True),
    ],
)
def test_the_suite_of_the_kernels_runs_where_it_is_named_and_where_a_gpu_or_a_reference_is_asked_for(
    expression, args, collected
):
    asked = SimpleNamespace(
        option=SimpleNamespace(markexpr=expression), args=args, invocation_params=SimpleNamespace(dir=ROOT)
    )
    assert (conftest.pytest_ignore_collect(conftest.KERNELS, asked) is None) is collected
    assert conftest.pytest_ignore_collect(conftest.KERNELS.parent / "nn", asked) is None
