"""Tests run on the CPU, made to look like four devices; those marked `gpu` run where `-m gpu` asks for them."""

import os

import hypothesis
import jax
import pytest

DEVICES = 4

# Compilation makes the first example slow whatever the law; in CI a law sees the same examples every time.
hypothesis.settings.register_profile("genjax", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("genjax")


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes that tests start
        jax.config.update("jax_platforms", "cpu")  # for this one, where a plugin may have imported jax before
    jax.config.update("jax_num_cpu_devices", DEVICES)


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and to be asked for with -m gpu"))
