"""Tests run on the CPU, made to look like four devices; those marked `gpu` run where `-m gpu` asks for them.

What one process has compiled, no other compiles again: a cache that is made for this run, unless
JAX_COMPILATION_CACHE_DIR names one, is shared by the workers of xdist and by all processes that tests start.
"""

import collections
import gc
import os
import re
import shutil
import tempfile
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

# The tests call networks and mathematics with every shape and type checked. Machinery, tasks and configs are left out:
# their annotations name protocols for the sake of config, and conforming is more than being an instance.
LEFT_OUT = {"config", "data", "interop", "parallel", "runs", "tasks", "training"}
CHECKED = sorted({room.parent.name for room in (Path(__file__).parents[1] / "genjax").glob("*/__init__.py")} - LEFT_OUT)
jaxtyping.Array = jaxtyping.ArrayLike  # numpy's arrays and numbers do as well as JAX's
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int will do for a float
jaxtyping.install_import_hook([f"genjax.{room}" for room in CHECKED], CHECKER)

HERE = Path(__file__).parent
KERNELS = HERE / "pallas_kernels"
MANY_CASES = ("diffusion", "models", "quantisation")
"""Rooms whose laws are tried in many cases, each compiled for itself."""
DEVICES = 4
CACHE = {"jax_persistent_cache_min_compile_time_secs": 0.05, "jax_persistent_cache_min_entry_size_bytes": -1}
"""Kept is what takes longer to compile than to read: of thousands of programs most are so small that they are not."""

IN_ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"
"""Cutting a program into pieces for threads takes a seventh of the compiler's time, and workers keep the cores busy."""
PLAIN_LOOPS = "--xla_cpu_use_fusion_emitters=false"
QUICK = [IN_ONE_PIECE, PLAIN_LOOPS] if jax.__version_info__ < (0, 11) else [IN_ONE_PIECE]
"""jax 0.12 does not know the second, and ends the process."""

# Compilation makes the first example slow whatever the law; in CI a law sees the same examples every time.
hypothesis.settings.register_profile("genjax", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("genjax")

gc.set_threshold(50_000, 10, 5)
"""Tracing makes millions of objects that stay: looking through them as often as usual takes a twentieth of all time."""

seconds = collections.Counter()
"""Of the tests of each room, and of each system."""


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes that tests start
        jax.config.update("jax_platforms", "cpu")  # for this one, where a plugin may have imported jax before
        share_what_is_compiled(config)
        compile_quickly(config.option.markexpr.startswith("not slow"))
    jax.config.update("jax_num_cpu_devices", DEVICES)


def pytest_ignore_collect(collection_path, config):
    """The kernels' suite is half as long as all others: it runs where it is named, and with -m gpu or parity."""
    if collection_path != KERNELS or re.search(r"(?<!not )\b(gpu|parity)\b", config.option.markexpr):
        return None
    named = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return None if any(path.is_relative_to(KERNELS) for path in named) else True


def compile_quickly(quickly: bool):
    """Laws of tiny shapes: compiling takes far longer than running. What is chosen with -m runs as people run it.

    Without LLVM's costly passes, XLA's newer emitters of fused loops and its threads a program compiles in less than a
    quarter of the time.
    """
    told = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quickly)))  # for other processes too
    jax.config.update("jax_disable_most_optimizations", bool(int(told)))
    from genjax.parallel.compilation import convolve_by_xla  # not before the hook is there

    convolve_by_xla()  # as the doors would on the way: all programs of a run are compiled alike
    flags = os.environ.get("XLA_FLAGS", "").split()
    if int(told):
        os.environ["XLA_FLAGS"] = " ".join(flags + [flag for flag in QUICK if flag not in flags])


def share_what_is_compiled(config):
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # in the first process: workers inherit it
        os.environ["JAX_COMPILATION_CACHE_DIR"] = made = tempfile.mkdtemp(prefix="genjax-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.pop("JAX_COMPILATION_CACHE_DIR", None))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    for name, value in CACHE.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


@pytest.fixture
def unchecked():
    """For a test that a function itself refuses a shape: without the check that would be faster."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    leave_to_ci_all_cases_but_the_first(items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and to be asked for with -m gpu"))


def room_of(nodeid: str) -> str:
    """The first folder below tests/, or a file that lies there; of tests/systems the config, by their parameter."""
    path, _, test = nodeid.partition("::")
    room, *inside = path.removeprefix("tests/").split("/")
    config = re.search(r"\[(?:configs/)?(\w+)", test)
    return f"systems/{config[1]}" if room == "systems" and inside and config else room.removesuffix(".py")


def pytest_runtest_logreport(report):
    seconds[room_of(report.nodeid)] += report.duration


def pytest_terminal_summary(terminalreporter):
    if "PYTEST_XDIST_WORKER" in os.environ or not seconds:
        return
    cells = [f"{room} {took:.0f} s" for room, took in seconds.most_common()]
    width = max(map(len, cells)) + 3
    across = max(1, 120 // width)
    terminalreporter.section("seconds in each room and system, set-up included", sep="-")
    for start in range(0, len(cells), across):
        terminalreporter.line("".join(cell.ljust(width) for cell in cells[start : start + across]).rstrip())


def leave_to_ci_all_cases_but_the_first(items):
    """Of a law in MANY_CASES the default tests take the first case that is not slow; the others are marked so."""
    seen = set()
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in MANY_CASES:
            law = item.path, item.originalname
            if law in seen:
                item.add_marker(pytest.mark.slow)
            elif item.get_closest_marker("slow") is None:
                seen.add(law)
